"""Random search among the corners of the ball: fresh random signs of epsilon at every query.

What is broken by chance should be broken by an attack that sees gradients. C channels, H W pixels.
"""

import numpy as np
from torch import Tensor

from s3ta.attacks import Look
from s3ta.batch import on_device
from s3ta.draws import Key, Purpose
from s3ta.steps import Around, KeepsBest
from s3ta.trajectory import Trajectory

WORD_BITS = 64


class Corners(KeepsBest):
    """The first look is at the image itself; the state keeps the point of the lowest loss."""

    def __init__(self, trajectory: Trajectory, blank: Tensor, seed: int) -> None:
        self.epsilon, self.seed, self.restart = trajectory.epsilon, seed, trajectory.restart
        super().__init__(blank)

    def move(self, points: Tensor, seen: Look, steps_B: Tensor, around: Around) -> None:
        drawn = zip(around.image_ids_B.tolist(), steps_B.tolist(), strict=True)
        signs = np.stack([self._signs(i, step + 1, points[0].numel()) for i, step in drawn])
        change = on_device(signs, points.device).view_as(points)
        points.copy_(around.ball.project(around.images + self.epsilon * change))

    def _signs(self, image_id: int, query: int, numbers: int) -> np.ndarray:
        """(C * H * W,) of -1 and 1, for this image's query alone."""
        key = Key(self.seed, Purpose.CORNERS, self.restart, step=query)
        words = key.bits(image_id, -(-numbers // WORD_BITS)).astype("<u8", copy=False)
        bits = np.unpackbits(words.view(np.uint8), count=numbers, bitorder="little")
        return bits.astype(np.float32) * 2 - 1
