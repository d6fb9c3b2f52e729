"""Step rules: how the next point follows from what was seen at this one. Signed steps and Adam.

A rule's state is a tensor per name with one entry per slot of the tile, saved and restored as it
is. Points are changed in place. B slots.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from s3ta.attacks import Look
from s3ta.threat import LinfBall
from s3ta.trajectory import Trajectory

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Around:
    """What is in the slots now."""

    images: Tensor
    ball: LinfBall
    image_ids_B: Ints
    labels_B: Tensor


class Rule(Protocol):
    """What every step rule does."""

    state: dict[str, Tensor]

    def begin(self, slots: Tensor) -> None:
        """These slots have new images."""

    def observe(self, points: Tensor, seen: Look, steps_B: Tensor, around: Around) -> None:
        """Take note of a look at these points, after so many steps; they stay where they are."""

    def move(self, points: Tensor, seen: Look, steps_B: Tensor, around: Around) -> None:
        """One step, in place, from what was seen and noted."""

    def result(self, points: Tensor, around: Around) -> Tensor:
        """What the attack returns if it ends here."""


class _Memory:
    """A rule that keeps nothing but tensors which are 0 for a new image, and returns its point."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def begin(self, slots: Tensor) -> None:
        for tensor in self.state.values():
            tensor[slots] = 0

    def observe(self, points: Tensor, seen: Look, steps_B: Tensor, around: Around) -> None:
        """There is nothing to note."""

    def result(self, points: Tensor, around: Around) -> Tensor:
        return points


class KeepsBest:
    """A random search: the point looked at is a proposal; the state keeps the best one."""

    def __init__(self, blank: Tensor) -> None:
        losses_B = torch.zeros(len(blank), device=blank.device)
        self.state = {"best": torch.zeros_like(blank), "best_loss": losses_B}

    def begin(self, slots: Tensor) -> None:
        self.state["best_loss"][slots] = torch.inf

    def observe(self, points: Tensor, seen: Look, steps_B: Tensor, around: Around) -> None:
        s = self.state
        better_B = seen.losses_B < s["best_loss"]
        s["best_loss"] = torch.where(better_B, seen.losses_B, s["best_loss"])
        s["best"] = torch.where(better_B.view(-1, 1, 1, 1), points, s["best"])

    def result(self, points: Tensor, around: Around) -> Tensor:
        return self.state["best"]


class Sign(_Memory):
    """x - alpha sign(g), back into the ball; with momentum g is mu g' + g / |g|_1 (Dong et al.)."""

    def __init__(self, trajectory: Trajectory, blank: Tensor) -> None:
        self.size, self.momentum = trajectory.step_size, trajectory.momentum
        super().__init__({"velocity": torch.zeros_like(blank)} if self.momentum else {})

    def move(self, points: Tensor, seen: Look, steps_B: Tensor, around: Around) -> None:
        direction = seen.gradient
        assert direction is not None
        if self.momentum:
            length_B = direction.abs().flatten(1).sum(1).view(-1, 1, 1, 1)
            own = direction / length_B.clamp(min=torch.finfo(direction.dtype).tiny)
            direction = self.state["velocity"].mul_(self.momentum).add_(own)
        points.add_(direction.sign(), alpha=-self.size)
        around.ball.project_(points)


class Adam(_Memory):
    """Adam (Kingma and Ba) on the image, back into the ball; the usual decays, epsilon 1e-8."""

    DECAYS = (0.9, 0.999)

    def __init__(self, trajectory: Trajectory, blank: Tensor) -> None:
        self.rate = trajectory.step_size
        super().__init__({"mean": torch.zeros_like(blank), "square": torch.zeros_like(blank)})

    def move(self, points: Tensor, seen: Look, steps_B: Tensor, around: Around) -> None:
        gradient, (first, second) = seen.gradient, self.DECAYS
        assert gradient is not None
        mean, square = self.state["mean"], self.state["square"]
        mean.mul_(first).add_(gradient, alpha=1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        # In float64: 1 - 0.999^t loses digits in float32.
        times_B = steps_B.double().add(1).view(-1, 1, 1, 1)
        scale_B = (self.rate / (1 - first**times_B)).to(points.dtype)
        root_B = (1 - second**times_B).sqrt().to(points.dtype)
        points.sub_(scale_B * mean / (square.sqrt() / root_B + 1e-8))
        around.ball.project_(points)
