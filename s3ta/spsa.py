"""Gradients from answers alone: simultaneous perturbation (SPSA; S3TA sec. 5.3, after [54]).

    g = 1/n sum_i v_i (L(x + d v_i) - L(x - d v_i)) / (2 d)

with random signs v_i and the loss L of this one image, at its present point x. Directions are drawn
per image and step, and probes are computed in chunks of a fixed size that hold one image's alone,
so no image's estimate depends on another's, and memory does not grow with n. Probes are not
projected, the image is. P pairs of a chunk, D numbers of an image.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from s3ta.attacks import Look, Losses, look_only
from s3ta.batch import on_device
from s3ta.draws import Key

CHUNK = 32
"""Pairs computed together: a part of every result."""
BLOCK_BITS = 256
"""The generator's draws come in blocks of four words."""


def look_around(
    losses: Losses,
    points: Tensor,
    slots: npt.NDArray[np.int64],
    keys: list[tuple[Key, int]],
    pairs: int,
    delta: float,
) -> Look:
    """Logits and losses at all points, and estimated gradients of those in `slots`, else 0.

    `keys` has, per slot asked for, what its directions are drawn from: a key and an image id.
    """
    seen, gradient = look_only(losses, points), torch.zeros_like(points)
    for slot, (key, image_id) in zip(slots.tolist(), keys, strict=True):
        directions = Directions(key, image_id, points[slot].numel(), points.device)
        gradient[slot] = estimate(losses, points[slot], slot, directions, pairs, delta)
    return Look(seen.logits_BC, seen.losses_B, gradient)


@dataclass(frozen=True)
class Directions:
    """The random signs of one image at one step."""

    key: Key
    image_id: int
    numbers: int
    device: torch.device

    def chunk(self, index: int) -> Tensor:
        """(CHUNK, D) of -1 and 1, the same whichever chunks are asked for before."""
        blocks = -(-CHUNK * self.numbers // BLOCK_BITS)
        words = self.key.bits(self.image_id, 4 * blocks, skip=index * blocks)
        packed = on_device(words.astype("<u8", copy=False).view(np.uint8), self.device)
        bits = (packed[:, None] >> torch.arange(8, device=self.device, dtype=torch.uint8)) & 1
        signs = bits.view(-1)[: CHUNK * self.numbers].view(CHUNK, self.numbers)
        return signs.float().mul_(2).sub_(1)


@torch.no_grad()
def estimate(
    losses: Losses, point: Tensor, slot: int, directions: Directions, pairs: int, delta: float
) -> Tensor:
    """The estimated gradient of one image's loss at its point (C, H, W)."""
    total_D = point.new_zeros(point.numel())
    slots = torch.full((2 * CHUNK,), slot, device=point.device)
    for index in range(-(-pairs // CHUNK)):
        signs_PD = directions.chunk(index).to(point.dtype)
        step_PCHW = signs_PD.view(CHUNK, *point.shape) * delta
        losses_2P = losses(torch.cat([point + step_PCHW, point - step_PCHW]), slots)[1]
        differences_P = losses_2P[:CHUNK] - losses_2P[CHUNK:]
        left = min(CHUNK, pairs - index * CHUNK)  # the last chunk is computed whole, as all are
        total_D += differences_P[:left] @ signs_PD[:left]
    return (total_D / (2 * delta * pairs)).view_as(point)
