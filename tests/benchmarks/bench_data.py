"""How fast training photos are read beside bare decoding, and whether a step ever waits for them.

Runs in the environment of `make bench-attack`, for foolbox's 20 photos from ImageNet. In every
round each candidate reads the same 20 files once, ours with draws of its own, in an order that
rotates; ratios are taken within a round, and their median comes with the 95 % interval of the sign
test. A bound is missed if the whole interval is beyond it. All run in one thread, and their seconds
are those of the processor, so that other programs count little: this is speed per core.

`bare` is Image.open(file).convert("RGB"), the whole file. `ours` is everything from the Parquet
file to the batch: draws, decoding, crop, resizing to 224, colours, flip.
"""

import argparse
import io
import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import foolbox  # type: ignore[import-not-found]
import numpy as np
import PIL
import torch
from PIL import Image
from rounds import interval, rotated

from s3ta.augmentation import draw_distortion
from s3ta.model import build
from s3ta.settings import (
    Augmentation,
    Block,
    ModelSettings,
    TrainAttackSettings,
    TrainSettings,
    VisionSettings,
)
from s3ta.sums import StepSums
from s3ta.training import Moment, add_microbatch
from s3ta_platform.data import ParquetImages, write_parquet
from s3ta_platform.feed import Wanted, feed
from s3ta_platform.image_files import Pixels
from s3ta_platform.photos import read_distorted

SIZE = 224
LEAST, MOST = 0.9, 0.02
CLASSES = 10


def _photos() -> list[bytes]:
    folder = Path(foolbox.__file__).parent / "data"
    return [file.read_bytes() for file in sorted(folder.glob("imagenet_*"))]


def _baseline(photo: bytes) -> bytes:
    """As most of ImageNet's files are: no progressive JPEG, and 375 pixels high."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(photo)) as image:
        width = round(image.width * 375 / image.height)
        image.convert("RGB").resize((width, 375)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _stored(folder: str, name: str, photos: Sequence[bytes], size: int = SIZE) -> ParquetImages:
    path = Path(folder) / f"{name}-{size}.parquet"
    labels = [i % CLASSES for i in range(len(photos))]
    names = [str(i) for i in range(CLASSES)]
    write_parquet(path, photos, labels, range(len(photos)), names, source="foolbox, MIT licence")
    return ParquetImages(str(path), channels=3, size=size)


# Candidates: a round's number -> nothing.


def _bare(photos: Sequence[bytes]) -> Callable[[int], None]:
    def decode(epoch: int) -> None:
        for photo in photos:
            Image.open(io.BytesIO(photo)).convert("RGB")

    return decode


def _ours(images: ParquetImages) -> Callable[[int], None]:
    def read_all(epoch: int) -> None:
        read_distorted(images, images.ids_N, 0, epoch)

    return read_all


def _by_pillow(photos: Sequence[bytes]) -> Callable[[int], None]:
    """The same crops and colours with Pillow alone."""

    def read_all(epoch: int) -> None:
        for image_id, photo in enumerate(photos):
            _with_pillow(photo, image_id, epoch)

    return read_all


def _with_pillow(photo: bytes, image_id: int, epoch: int) -> Pixels:
    drawn = draw_distortion(0, epoch, image_id)
    with Image.open(io.BytesIO(photo)) as image:
        image.load()
        crop = drawn.crop(*image.size)
        box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        small = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
    counts_CN = np.array(small.histogram()).reshape(3, 256)
    change_C4 = drawn.colour.affine(counts_CN @ np.arange(256) / SIZE**2 / 255)
    change_C4[:, 0] *= 255
    rows = np.roll(change_C4, -1, axis=1).ravel().tolist()  # Pillow's shift comes last
    changed = np.asarray(small.convert("RGB", tuple(rows))).transpose(2, 0, 1)
    return np.ascontiguousarray(changed[:, :, ::-1] if drawn.flip else changed)


# Rounds and ratios.


@dataclass
class Bounds:
    missed: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, candidates: dict[str, Callable[[int], None]], rounds: int) -> None:
        self.seconds = {name: [] for name in candidates}
        for run in candidates.values():
            run(0)
        names = list(candidates)
        for at in range(rounds):
            for name in rotated(names, at):
                start = time.process_time()
                candidates[name](at + 1)
                self.seconds[name].append(time.process_time() - start)

    def ratio(
        self, what: str, ratios: Sequence[float], least: float = 0.0, most: float = math.inf
    ) -> None:
        middle, low, high = interval(ratios)
        missed, bounded = high < least or low > most, least > 0 or most < math.inf
        self.missed += missed
        bound = f", at least {least:g}" if least else f", at most {most:g}" if bounded else ""
        state = "MISSED" if missed else "ok    " if bounded else "      "
        print(f"  {state}  {what}: {middle:.3f} [{low:.3f}, {high:.3f}]{bound}")

    def over(self, above: str, below: str) -> list[float]:
        """Seconds of one candidate over another's, per round."""
        pairs = zip(self.seconds[above], self.seconds[below], strict=True)
        return [a / b for a, b in pairs]

    def show(self, photos: int) -> None:
        for name, seconds in self.seconds.items():
            print(f"  {name:12}{statistics.median(seconds) / photos * 1e3:8.2f} ms a photo")


def _decoding(folder: str, photos: Sequence[bytes], rounds: int, bounds: Bounds) -> None:
    kinds = {"as they are": photos, "baseline, 375 pixels high": [_baseline(p) for p in photos]}
    for name, files in kinds.items():
        kilobytes = sum(map(len, files)) / len(files) / 1e3
        print(f"{len(files)} photos {name}, {kilobytes:.0f} kB each", flush=True)
        candidates = {
            "bare": _bare(files),
            "ours": _ours(_stored(folder, name[:4], files)),
            "by Pillow": _by_pillow(files),
        }
        bounds.measure(candidates, rounds)
        bounds.show(len(files))
        least = LEAST if files is photos else 0.0
        bounds.ratio("speed of ours, over bare decoding", bounds.over("bare", "ours"), least)
        bounds.ratio("speed of ours, over Pillow's", bounds.over("by Pillow", "ours"))


# A step.


def _feeding(folder: str, photos: Sequence[bytes], steps: int, bounds: Bounds) -> None:
    """Steps of 4 microbatches of 16 photos at 64 pixels: what share of their time they wait."""
    images = _stored(folder, "step", list(photos) * 4, size=64)
    settings = TrainSettings(
        attack=TrainAttackSettings(steps=10),
        augmentation=Augmentation.imagenet,
        batch=64,
        microbatch=16,
    )
    todo = (
        Wanted(images.ids_N[at : at + 16], epoch)
        for epoch in itertools.count()
        for at in range(0, 64, 16)
    )
    vision = VisionSettings(
        block=Block.basic, depths=[1, 1], widths=[16, 32], strides=[1, 2], stem_channels=16
    )
    model = build(ModelSettings(vision=vision), CLASSES, seed=0)
    sums, batches = StepSums(model, settings), feed(images, settings, todo)
    next(batches)
    shares, seconds = [], []
    for step in range(steps):
        waited, begun = 0.0, time.perf_counter()
        for index in range(settings.microbatches):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            add_microbatch(model, sums, batch, settings, Moment(0, step), index, CLASSES)
        seconds.append(time.perf_counter() - begun)
        shares.append(waited / seconds[-1])
    print("Steps of 4 microbatches of 16 photos at 64 x 64, PGD-10, fed by what cores are left")
    print(f"  {statistics.median(seconds) * 1e3:.0f} ms a step")
    bounds.ratio("share of a step in which it waits for images", shares, most=MOST)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="six rounds, to see that it works")
    options = parser.parse_args()
    rounds = 6 if options.quick else options.rounds
    torch.set_num_threads(1)
    bounds, photos = Bounds(), _photos()
    print(
        f"Pillow {PIL.__version__}, torch {torch.__version__}, {os.cpu_count()} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
    with tempfile.TemporaryDirectory() as folder:
        _decoding(folder, photos, rounds, bounds)
        _feeding(folder, photos, rounds, bounds)
    print(f"{bounds.missed} bounds missed")
    return 1 if bounds.missed else 0


if __name__ == "__main__":
    sys.exit(main())
