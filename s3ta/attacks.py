"""Projected gradient descent on one tile of images.

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
        x = attacked.detach().requires_grad_()
        logits_BC = self.logits(x)
        losses_B = attack_loss(self.trajectory.loss, logits_BC, self.labels_B, self.targets_B)
        # Losses are summed, never averaged: an image's gradient is its own.
        return logits_BC.detach(), torch.autograd.grad(losses_B.sum(), x)[0]

    def step(self, attacked: Tensor, gradient: Tensor) -> None:
        """One signed step against the gradient, and back into the ball, in place."""
        attacked.add_(gradient.sign(), alpha=-self.trajectory.step_size)
        self.ball.project_(attacked)
