"""Square attack (Andriushchenko et al. 2020), L-infinity: random search that sees only losses.

It starts at vertical stripes of +-epsilon, then proposes squares of +-epsilon, ever smaller ones,
and keeps what lowers the loss. The constants are those of its authors' code in AutoAttack. All is
drawn per image; there a batch shares position and sign, a listed deviation. The last place of a
square is drawn too, which their rounding leaves out. C channels, H W pixels.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
from torch import Tensor

from s3ta.attacks import Look
from s3ta.batch import on_device
from s3ta.draws import Key, Purpose
from s3ta.steps import Around, KeepsBest
from s3ta.trajectory import Trajectory

FIRST_SHARE = 0.8
"""Of the image, that the first squares cover."""
SCHEDULE_LENGTH = 10_000
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""The covered share is halved after each of these, of 10,000 queries; other budgets are scaled."""
WORD = 1 << 64


def share(query: int, budget: int) -> float:
    """Of the image's area, that the square of this query covers."""
    scaled = int(query / budget * SCHEDULE_LENGTH)
    return FIRST_SHARE / 2.0 ** sum(scaled > after for after in HALVINGS)


def side(query: int, budget: int, height: int, width: int) -> int:
    """Pixels of that square's side."""
    return min(max(round(sqrt(share(query, budget) * height * width)), 1), height, width)


@dataclass(frozen=True)
class Draws:
    """What an image is changed by, from a key and its id alone."""

    seed: int
    restart: int

    def stripes(self, image_id: int, channels: int, width: int) -> npt.NDArray[np.float32]:
        """(C, 1, W) of -1 and 1: the start."""
        key = Key(self.seed, Purpose.SQUARE, self.restart, step=0)
        return _signs(key.bits(image_id, channels * width)).reshape(channels, 1, width)

    def square(
        self, image_id: int, query: int, channels: int, free: tuple[int, int]
    ) -> tuple[int, int, npt.NDArray[np.float32]]:
        """Row and column of its corner, among `free` ones each, and the channels' signs (C,)."""
        key = Key(self.seed, Purpose.SQUARE, self.restart, step=query)
        words = key.bits(image_id, 2 + channels)
        row, column = (int(w) * n // WORD for w, n in zip(words[:2], free, strict=True))
        return row, column, _signs(words[2:])


def _signs(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    return (words >> np.uint64(63)).astype(np.float32) * 2 - 1


class Square(KeepsBest):
    """The point looked at is a proposal; the state keeps the best one."""

    def __init__(self, trajectory: Trajectory, blank: Tensor, seed: int) -> None:
        self.epsilon, self.budget = trajectory.epsilon, trajectory.steps
        self.draws = Draws(seed, trajectory.restart)
        super().__init__(blank)

    def starts(self, around: Around) -> Tensor:
        """Stripes around every image."""
        channels, _, width = around.images.shape[1:]
        stripes = [self.draws.stripes(int(i), channels, width) for i in around.image_ids_B]
        signs = on_device(np.stack(stripes), around.images.device)
        return around.ball.project(around.images + self.epsilon * signs)

    def move(self, points: Tensor, seen: Look, steps_B: Tensor, around: Around) -> None:
        points.copy_(self.state["best"])
        channels, height, width = points.shape[1:]
        for slot, (image_id, step) in enumerate(
            zip(around.image_ids_B.tolist(), steps_B.tolist(), strict=True)
        ):
            size = side(step, self.budget, height, width)
            free = (height - size + 1, width - size + 1)
            row, column, signs_C = self.draws.square(image_id, step + 1, channels, free)
            change = on_device(2 * self.epsilon * signs_C, points.device)
            area = points[slot, :, row : row + size, column : column + size]
            area += change.view(-1, 1, 1)
        around.ball.project_(points)
