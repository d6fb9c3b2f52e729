"""Every full-size model takes one adversarial step at ImageNet's size: not a usual test.

    python -m pytest -m full_size tests/end_to_end/test_full_size.py

Each step runs in a process of its own, on two of the 20 ImageNet photos that foolbox ships (on
noise where it is not installed), and prints what it took.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s3ta.batch import Batch
from s3ta.engine import make_engine
from s3ta.model import build
from s3ta.settings import Dtype, EngineSettings, ModelSettings, TrainAttackSettings, TrainSettings
from s3ta.sums import StepSums
from s3ta.training import Moment, add_microbatch
from s3ta.vision import batchnorms
from s3ta_platform.compose import compose, groups_folder
from s3ta_platform.devices import pin_arithmetic

SIDE, CLASSES, IMAGES = 224, 1000, 2
DEVICE = os.environ.get("S3TA_TEST_DEVICE", "cpu")
MODELS = sorted(
    file.stem
    for file in (groups_folder() / "model").glob("*.yaml")
    if not file.stem.startswith("small_")
)


@pytest.mark.full_size
@pytest.mark.parametrize("name", MODELS)
def test_one_adversarial_step_of_a_full_size_model_reaches_every_weight(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run(
        [sys.executable, __file__, name], capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        print(
            f"\n{found['model']}: {found['seconds']:.1f} s, {found['peak_gb']:.2f} GB at most, "
            f"{found['built_gb']:.2f} GB of it before the step; {IMAGES} {found['photos']}"
        )
    assert found["unreached"] == []
    # The last layer starts small: whatever the image, all classes are about as likely.
    assert found["loss"] == pytest.approx(math.log(CLASSES), abs=1.0)
    # Weights, float64 sums and activations of two images: a small machine holds them.
    assert found["peak_gb"] < 10


def _step(name: str) -> dict[str, object]:
    settings = _settings(name)
    model = build(settings, CLASSES, seed=0)
    with torch.no_grad():
        for norm in batchnorms(model):
            norm.weight.clamp_(min=0.3)  # blocks that start as the identity hide their weights
    batch, photos = _images()
    model = model.to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if DEVICE != "cpu":  # there tiles of the usual size fit, and must not depend on their order
        pin_arithmetic(2)
        for dtype in Dtype:
            make_engine(model, EngineSettings(dtype=dtype), (3, SIDE, SIDE), 32, DEVICE)
    train = TrainSettings(attack=TrainAttackSettings(steps=1), batch=IMAGES, microbatch=IMAGES)
    sums = StepSums(model, train)
    built, start = _gigabytes("VmRSS"), time.perf_counter()
    add_microbatch(model, sums, batch, train, Moment(epoch=0, step=0), 0, CLASSES, DEVICE)
    seconds = time.perf_counter() - start
    return {
        "model": settings.name,
        "photos": photos,
        "seconds": seconds,
        "built_gb": built,
        "peak_gb": _gigabytes("VmHWM"),
        "loss": sums.report().loss,
        "unreached": _unreached(model, sums),
    }


def _unreached(model: torch.nn.Module, sums: StepSums) -> list[str]:
    """Parameters whose gradient is all zeros, or no number."""
    found, at = [], 0
    summed = sums.flat.sum(dim=0)
    for parameter_name, p in model.named_parameters():
        gradient = summed[at : at + p.numel()]
        at += p.numel()
        if not (gradient.isfinite().all() and gradient.any()):
            found.append(parameter_name)
    return found


def _settings(name: str) -> ModelSettings:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mine.yaml"
        groups = f"[schema, {{data: fashion_mnist_sample}}, {{model: {name}}}, _self_]"
        file.write_text(f"defaults: {groups}\nname: mine\n")
        return compose(file).experiment.model


def _images() -> tuple[Batch, str]:
    spec = importlib.util.find_spec("foolbox")  # found, but not imported
    if spec is None or spec.origin is None:
        noise = np.random.default_rng(0).integers(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=np.uint8)
        return _batch(list(noise), [1, 2]), "noise (foolbox is not installed)"
    files = sorted((Path(spec.origin).parent / "data").glob("imagenet_*.jpg"))[:IMAGES]
    labels = [int(file.stem.rpartition("_")[2]) for file in files]
    return _batch([_photo(file) for file in files], labels), "ImageNet photos"


def _photo(file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(file) as image:
        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(small).transpose(2, 0, 1)


def _batch(
    images_CHW: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]], labels: list[int]
) -> Batch:
    return Batch(
        images_BCHW=np.stack(images_CHW),
        labels_B=np.array(labels, np.int64),
        image_ids_B=np.arange(len(labels), dtype=np.int64),
    )


def _gigabytes(what: str) -> float:
    """This process's resident memory now (VmRSS), or the most it ever had (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{what}:"))
    return int(kilobytes) * 1024 / 1e9


if __name__ == "__main__":
    print(json.dumps(_step(sys.argv[1])))
