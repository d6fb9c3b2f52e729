"""What a notebook hands over, checked: arrays become a batch, or an error says what to change.

N images with C channels.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from s3ta.batch import Batch
from s3ta.errors import UserError
from s3ta.settings import AttackSettings
from s3ta_platform.results import Array


def must_be(good: bool, name: str, value: object, constraint: str, remedy: str = "") -> None:
    """UserError unless `good`."""
    if not good:
        remedy = remedy or "Give such a one."
        raise UserError(f"{name} is {value}: it must be {constraint}. {remedy}")


def check_attacks(attacks: Sequence[AttackSettings]) -> None:
    """UserError unless there are some and their names differ."""
    good = isinstance(attacks, Sequence) and all(isinstance(a, AttackSettings) for a in attacks)
    must_be(good and bool(attacks), "attacks", attacks, "a list of at least one AttackSettings")
    led = [attack.name for attack in attacks if attack.sources]
    must_be(not led, "attack.sources of", led, "empty", "Transfer attacks need an experiment file.")
    names = [attack.name for attack in attacks]
    must_be(
        len(set(names)) == len(names),
        "attacks",
        names,
        "without two that differ only in their readings",
        "Put these readings into one.",
    )


def batch_of(images: object, labels: object, ids: object) -> Batch:
    """Images, labels and ids, by default 0, 1, ...; UserError unless they fit one another."""
    pixels = _images(images)
    n = len(pixels)
    numbers = _whole("labels", labels, n)
    known = np.arange(n) if ids is None else _whole("ids", ids, n)
    must_be(bool((known >= 0).all()), "an id", known.min(), "at least 0")
    values, counts = np.unique(known, return_counts=True)
    must_be(len(values) == n, "an id", f"{values[counts.argmax()]} twice", "its image's alone")
    return Batch(images_BCHW=pixels, labels_B=numbers, image_ids_B=known)


def _images(images: object) -> Array:
    pixels = _array(images)
    must_be(
        pixels.ndim == 4 and pixels.size > 0,
        "the shape of images",
        pixels.shape,
        "(N, C, H, W), of at least one image",
        "transpose(0, 3, 1, 2) makes it of (N, H, W, C).",
    )
    if pixels.dtype == np.uint8:
        return pixels
    must_be(
        pixels.dtype.kind == "f",
        "the dtype of images",
        pixels.dtype,
        "uint8, or floating with values in [0, 1]",
        "astype(np.uint8) makes it of whole numbers from 0 to 255.",
    )
    finite = bool(np.isfinite(pixels).all())
    must_be(finite, "images", "NaN or infinite in places", "finite", "Look where they come from.")
    low, high = float(pixels.min()), float(pixels.max())
    must_be(
        low >= 0 and high <= 1,
        "the range of images",
        f"{low:g} to {high:g}",
        "within 0 and 1",
        "Divide bytes by 255; normalise inside the model, as UnitImages does.",
    )
    return pixels.astype(np.float32)


def _whole(name: str, values: object, n: int) -> npt.NDArray[np.int64]:
    numbers = _array(values)
    shape = f"({n},), one for each image"
    must_be(numbers.shape == (n,), f"the shape of {name}", numbers.shape, shape)
    must_be(
        numbers.dtype.kind in "iu",
        f"the dtype of {name}",
        numbers.dtype,
        "one of whole numbers",
        "astype(int) makes it of floats, argmax(1) of one-hot rows.",
    )
    return numbers.astype(np.int64)


def _array(values: object) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)


def check_labels(labels_N: Array, classes: int) -> None:
    """UserError for a label that is no class."""
    must_be(classes >= 2, "the number of logits", classes, "at least 2, or no class is wrong")
    bad = labels_N[(labels_N < 0) | (labels_N >= classes)]
    where = f"from 0 to {classes - 1}, for the model gives {classes} logits"
    must_be(len(bad) == 0, "a label", bad[0] if len(bad) else "", where)


def device_of(name: str) -> str:
    """What `auto` means here, or the device named; UserError if torch has none such."""
    there = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "auto":
        return there
    good = name.partition(":")[0] in ("cpu", there)
    must_be(good, "device", name, "one that torch has here", f"Use {there}, or auto.")
    return name
