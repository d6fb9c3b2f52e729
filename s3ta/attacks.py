"""Projected gradient descent on one tile of images, and what every attack knows of its images.

The model given takes no gradient for its parameters (see engine). B batch, C classes. Steps are
signed and change the images in place; nothing here waits for the device.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from s3ta.objective import attack_loss
from s3ta.threat import LinfBall
from s3ta.trajectory import Trajectory

Losses = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""Points (M, ...) and the slots they belong to, None for all in order -> logits (M, C) and attack
losses (M,)."""


@dataclass(frozen=True)
class Look:
    """What is seen of a model at one point per image."""

    logits_BC: Tensor
    losses_B: Tensor
    """Low is good for the attacker."""
    gradient: Tensor | None
    """Of an image's loss; None where nobody needs it."""


def look(losses: Losses, points: Tensor) -> Look:
    """Logits and losses, with the gradient by backpropagation."""
    x = points.detach().requires_grad_()
    logits_BC, losses_B = losses(x, None)
    # Losses are summed, never averaged: an image's gradient is its own.
    (gradient,) = torch.autograd.grad(losses_B.sum(), x)
    return Look(logits_BC.detach(), losses_B.detach(), gradient)


@torch.no_grad()
def look_only(losses: Losses, points: Tensor) -> Look:
    """Logits and losses, without a gradient."""
    return Look(*losses(points, None), gradient=None)


@dataclass(frozen=True)
class PGD:
    """Steps of one trajectory around some images."""

    logits: Callable[[Tensor], Tensor]
    trajectory: Trajectory
    images: Tensor
    labels_B: Tensor
    targets_B: Tensor | None
    """None for an untargeted attack."""
    ball: LinfBall = field(init=False)

    def __post_init__(self) -> None:
        ball = LinfBall.around(self.images, self.trajectory.epsilon)
        object.__setattr__(self, "ball", ball)

    def begin(self, uniform: Tensor | None) -> Tensor:
        """Start from noise, given as draws on [0, 1) of the images' shape, or from the images."""
        if uniform is None:
            return self.images.clone()
        return self.ball.noise_start(self.images, self.trajectory.epsilon, uniform)

    def run(self, attacked: Tensor, steps: int | None = None) -> Tensor:
        """Take so many steps, by default the whole trajectory's; nothing is read on the way."""
        for _ in range(self.trajectory.steps if steps is None else steps):
            self.step(attacked, self.look(attacked)[1])
        return attacked

    def look(self, attacked: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (B, C) at this point, and the gradient of the attack's loss there."""
        seen = look(self.losses, attacked)
        assert seen.gradient is not None
        return seen.logits_BC, seen.gradient

    def losses(self, points: Tensor, slots: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Losses`."""
        logits_BC = self.logits(points)
        labels_B, targets_B = self.labels_B, self.targets_B
        if slots is not None:
            labels_B = labels_B[slots]
            targets_B = None if targets_B is None else targets_B[slots]
        return logits_BC, attack_loss(self.trajectory.loss, logits_BC, labels_B, targets_B)

    def step(self, attacked: Tensor, gradient: Tensor) -> None:
        """One signed step against the gradient, and back into the ball, in place."""
        attacked.add_(gradient.sign(), alpha=-self.trajectory.step_size)
        self.ball.project_(attacked)
