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
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import foolbox  # type: ignore[import-not-found]
import numpy as np
import PIL
import torch
from PIL import Image

from s3ta.augmentation import draw_distortion
from s3ta.batch import Batch
from s3ta.model import build
from s3ta.settings import (
    Augmentation,
    Block,
    ModelSettings,
    TrainAttackSettings,
    TrainSettings,
    VisionSettings,
)
from s3ta.training import Moment, StepSums, add_microbatch
from s3ta_platform.data import ParquetImages, Pixels, write_parquet
from s3ta_platform.feed import Wanted, feed, read
from s3ta_platform.photos import read_distorted

SIZE = 224
LEAST, MOST = 0.9, 1.1
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
    matrix, shift = drawn.colour.affine(counts_CN @ np.arange(256) / SIZE**2 / 255)
    rows = np.column_stack([matrix, shift * 255]).ravel().tolist()
    changed = np.asarray(small.convert("RGB", tuple(rows))).transpose(2, 0, 1)
    return np.ascontiguousarray(changed[:, :, ::-1] if drawn.flip else changed)


# Rounds and ratios.


@dataclass
class Bounds:
    missed: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def measure(
        self, candidates: dict[str, Callable[[int], None]], rounds: int, clock: Callable[[], float]
    ) -> None:
        self.seconds = {name: [] for name in candidates}
        for run in candidates.values():
            run(0)
        names = list(candidates)
        for at in range(rounds):
            for name in names[at % len(names) :] + names[: at % len(names)]:
                start = clock()
                candidates[name](at + 1)
                self.seconds[name].append(clock() - start)

    def ratio(self, what: str, above: str, below: str, bound: float = math.nan) -> None:
        """`bound`: below 1 it is the least, above 1 the most."""
        pairs = zip(self.seconds[above], self.seconds[below], strict=True)
        middle, low, high = _interval([a / b for a, b in pairs])
        missed = high < bound if bound < 1 else low > bound
        self.missed += missed
        wanted = "" if math.isnan(bound) else f", at {'least' if bound < 1 else 'most'} {bound:g}"
        state = "      " if math.isnan(bound) else "MISSED" if missed else "ok    "
        print(f"  {state}  {what}: {middle:.3f} [{low:.3f}, {high:.3f}]{wanted}")

    def show(self, each: int, unit: str) -> None:
        for name, seconds in self.seconds.items():
            print(f"  {name:12}{statistics.median(seconds) / each * 1e3:8.2f} ms {unit}")


def _interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The median, and its 95 % interval by the sign test (below 6 rounds: the range)."""
    n, ordered = len(ratios), sorted(ratios)
    tails = [2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n for k in range(n)]
    cut = max((k for k in range(n) if tails[k] <= 0.05), default=0)
    return statistics.median(ratios), ordered[cut], ordered[n - 1 - cut]


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
        bounds.measure(candidates, rounds, time.process_time)
        bounds.show(len(files), "a photo")
        bound = LEAST if files is photos else math.nan
        bounds.ratio("speed of ours, over bare decoding", "bare", "ours", bound)
        bounds.ratio("speed of ours, over Pillow's", "by Pillow", "ours")


# A step.


def _step(batches: Iterator[Batch], settings: TrainSettings) -> None:
    vision = VisionSettings(
        block=Block.basic, depths=[1, 1], widths=[16, 32], strides=[1, 2], stem_channels=16
    )
    model = build(ModelSettings(vision=vision), CLASSES, seed=0)
    sums = StepSums(model)
    for index, batch in enumerate(batches):
        add_microbatch(model, sums, batch, settings, Moment(0, 0), index, CLASSES)


def _feeding(folder: str, photos: Sequence[bytes], rounds: int, bounds: Bounds) -> None:
    """Microbatches of photos at 64 pixels; the step takes one core, reading what is left."""
    images = _stored(folder, "step", list(photos) * 4, size=64)
    settings = TrainSettings(
        attack=TrainAttackSettings(steps=10),
        augmentation=Augmentation.imagenet,
        batch=64,
        microbatch=16,
    )

    def todo(epoch: int) -> list[Wanted]:
        return [Wanted(images.ids_N[at : at + 16], epoch) for at in range(0, 64, 16)]

    kept = [read(images, settings, one) for one in todo(0)]
    candidates: dict[str, Callable[[int], None]] = {
        "in memory": lambda epoch: _step(iter(kept), settings),
        "fed": lambda epoch: _step(feed(images, settings, todo(epoch)), settings),
    }
    print("A step of 4 microbatches of 16 photos at 64 x 64, PGD-10", flush=True)
    bounds.measure(candidates, rounds, time.perf_counter)
    bounds.show(1, "a step")
    bounds.ratio("time of a step that is fed, over one in memory", "fed", "in memory", MOST)


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
        _feeding(folder, photos, max(6, rounds // 4), bounds)
    print(f"{bounds.missed} bounds missed")
    return 1 if bounds.missed else 0


if __name__ == "__main__":
    sys.exit(main())
