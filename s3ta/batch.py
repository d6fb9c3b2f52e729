"""Images with what is known of them, and what beside model and attack decides their records."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from s3ta.draws import Key, Purpose


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images with what is known of them, on the CPU."""

    images_BCHW: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    """uint8, or float32 in [0, 1]."""
    labels_B: npt.NDArray[np.int64]
    image_ids_B: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        # torch takes neither read-only arrays nor negative strides.
        for name in ("images_BCHW", "labels_B", "image_ids_B"):
            object.__setattr__(self, name, np.require(getattr(self, name), requirements=["C", "W"]))

    def __len__(self) -> int:
        return len(self.labels_B)

    def part(self, start: int, stop: int) -> "Batch":
        return Batch(
            images_BCHW=self.images_BCHW[start:stop],
            labels_B=self.labels_B[start:stop],
            image_ids_B=self.image_ids_B[start:stop],
        )


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What, beside model, attack and image, decides the bits of a record."""

    classes: int
    seed: int
    """Of targets and starts; not the training seed."""
    tile: int = 32


def on_device(array: npt.NDArray[Any], device: str | torch.device) -> Tensor:
    """The array there, without waiting for what the device still has to do: the copy is queued,
    from a buffer of its own. On the CPU it is the array's own memory."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def to_unit(
    images_BCHW: npt.NDArray[np.uint8] | npt.NDArray[np.float32], device: str = "cpu"
) -> Tensor:
    """uint8 -> float32 in [0, 1]; float32 stays as it is."""
    images = on_device(images_BCHW, device)
    return images.float() / 255 if images.dtype == torch.uint8 else images


def draw_targets(batch: Batch, seed: int, classes: int) -> npt.NDArray[np.int64]:
    """The evaluation's target classes: they depend on (seed, image id) alone."""
    key = Key(seed, Purpose.EVAL_TARGET)
    return key.wrong_classes(batch.image_ids_B, batch.labels_B, classes)
