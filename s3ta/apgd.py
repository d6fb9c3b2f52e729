"""Auto-PGD (Croce and Hein 2020, algorithm 1): a step size that adapts to the budget and the loss.

The constants are the authors'. Losses are descended on here, ascended there; nothing else differs,
but that the first window of steps compares with the loss at the start, as their paper has it (their
code compares the very first step with 0). B slots.
"""

import torch
from torch import Tensor

from s3ta.attacks import Look
from s3ta.steps import Around
from s3ta.trajectory import Trajectory

FIRST_WINDOW, SHORTEST, SHORTER = 0.22, 0.06, 0.03
"""Shares of the budget: the first window between checkpoints, the least, and what each is less."""
ENOUGH = 0.75
"""Unless more than this share of a window's steps were better than the step before: halve."""
INERTIA = 0.75
"""The share of the new step; the rest is the last one's direction."""


def windows(budget: int) -> dict[int, int]:
    """Steps at which the step size is looked at, with the number of steps since the last look."""
    length = max(int(FIRST_WINDOW * budget), 1)
    least, less = max(int(SHORTEST * budget), 1), max(int(SHORTER * budget), 1)
    found, step = {}, length
    while step < budget:
        found[step] = length
        length = max(length - less, least)
        step += length
    return found


class APGD:
    """One run with a fixed budget of steps; its result is the point of the lowest loss."""

    def __init__(self, trajectory: Trajectory, blank: Tensor) -> None:
        self.epsilon, self.windows = trajectory.epsilon, windows(trajectory.steps)
        per_slot = torch.zeros(len(blank), device=blank.device)
        numbers = ("size", "loss", "best_loss", "checked_loss", "rises")
        self.state = {name: per_slot.clone() for name in numbers}
        self.state["reduced"] = torch.ones(len(blank), dtype=torch.bool, device=blank.device)
        images = ("before", "best", "best_gradient")
        self.state |= {name: torch.zeros_like(blank) for name in images}

    def begin(self, slots: Tensor) -> None:
        s = self.state
        s["size"][slots] = 2 * self.epsilon
        s["rises"][slots] = 0
        # As if it had just been reduced: the first window is judged by its steps alone.
        s["reduced"][slots] = True
        s["best_loss"][slots] = torch.inf

    def observe(self, points: Tensor, seen: Look, steps_B: Tensor, around: Around) -> None:
        s, losses_B = self.state, seen.losses_B
        first_B = steps_B == 0
        s["rises"] += (losses_B < s["loss"]) & ~first_B
        s["loss"] = losses_B.clone()
        s["checked_loss"] = torch.where(first_B, losses_B, s["checked_loss"])
        better_B = losses_B < s["best_loss"]
        s["best_loss"] = torch.where(better_B, losses_B, s["best_loss"])
        better = better_B.view(-1, 1, 1, 1)
        s["best"] = torch.where(better, points, s["best"])
        if seen.gradient is not None:
            s["best_gradient"] = torch.where(better, seen.gradient, s["best_gradient"])

    def move(self, points: Tensor, seen: Look, steps_B: Tensor, around: Around) -> None:
        assert seen.gradient is not None
        s, before = self.state, self.state["before"]
        reduce = self._reduce(steps_B).view(-1, 1, 1, 1)
        here = torch.where(reduce, s["best"], points)
        gradient = torch.where(reduce, s["best_gradient"], seen.gradient)
        size = s["size"].view(-1, 1, 1, 1)
        step = around.ball.project(here - size * gradient.sign()) - here
        inertia = torch.where((steps_B == 0).view(-1, 1, 1, 1), 1.0, INERTIA)
        moved = here + inertia * step + (1 - inertia) * (here - before)
        before.copy_(here)
        points.copy_(around.ball.project(moved))

    def result(self, points: Tensor, around: Around) -> Tensor:
        return self.state["best"]

    def _reduce(self, steps_B: Tensor) -> Tensor:
        """Halve the step size of those whose window was no good; who goes back to its best."""
        s = self.state
        window_B = torch.zeros_like(steps_B)
        for step, length in self.windows.items():
            window_B = torch.where(steps_B == step, length, window_B)
        check_B = window_B > 0
        restless_B = s["rises"] <= ENOUGH * window_B
        stuck_B = ~s["reduced"] & (s["best_loss"] >= s["checked_loss"])
        reduce_B = check_B & (restless_B | stuck_B)
        s["size"] = torch.where(reduce_B, s["size"] / 2, s["size"])
        s["reduced"] = torch.where(check_B, reduce_B, s["reduced"])
        s["checked_loss"] = torch.where(check_B, s["best_loss"], s["checked_loss"])
        s["rises"] = torch.where(check_B, torch.zeros_like(s["rises"]), s["rises"])
        return reduce_B
