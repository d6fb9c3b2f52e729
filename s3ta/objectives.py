"""Training losses: logit pairing and local linearity. Per example until the caller's last line.

B batch, C classes. Offsets d have the images' shape; a dot product sums over an image's pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from s3ta.objective import cross_entropy
from s3ta.settings import LinearitySettings
from s3ta.threat import LinfBall

Function = Callable[[Tensor], Tensor]


def paired(
    clean_BC: Tensor,
    attacked_BC: Tensor,
    labels_B: Tensor,
    pairing_weight: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Adversarial logit pairing ([27]), per example (B,).

    (CE(clean) + CE(attacked)) / 2 + weight * mean over classes of (clean - attacked)^2.
    Its mean over examples is the authors' public code: there the cross-entropy is a mean over all
    examples of both halves, and the squared difference a mean over examples and classes.
    """
    both = [cross_entropy(z, labels_B, label_smoothing) for z in (clean_BC, attacked_BC)]
    distance_B = (clean_BC - attacked_BC).square().mean(dim=1)
    return (both[0] + both[1]) / 2 + pairing_weight * distance_B


@dataclass(frozen=True)
class Linearity:
    """How well a tangent plane tells the loss nearby, per example (B,); with a graph."""

    loss_B: Tensor
    """l(x)."""
    nonlinearity_B: Tensor
    """g = |l(x + d) - l(x) - d grad l(x)|."""
    slope_B: Tensor
    """|d grad l(x)|."""
    moved_BC: Tensor
    """Logits at x + d."""

    def weighted(self, weights: LinearitySettings) -> Tensor:
        """Local linearity regularisation's loss ([42]), per example (B,)."""
        return (
            weights.loss_weight * self.loss_B
            + weights.nonlinearity_weight * self.nonlinearity_B
            + weights.slope_weight * self.slope_B
        )


def linearity(logits: Function, loss: Function, images: Tensor, offsets: Tensor) -> Linearity:
    """The loss l(x) = loss(logits(x)) per example, its tangent plane, and l at images + offsets.

    Offsets are constants, grad l(x) is not: a gradient of this backpropagates twice.
    The last call of `logits` is that at the images themselves (see BatchNorm.seen).
    """
    moved_BC = logits(images + offsets)
    x = images.detach().requires_grad_()
    loss_B = loss(logits(x))
    (gradient,) = torch.autograd.grad(loss_B.sum(), x, create_graph=True)
    slope_B = _dot(offsets, gradient)
    nonlinearity_B = (loss(moved_BC) - loss_B - slope_B).abs()
    return Linearity(loss_B, nonlinearity_B, slope_B.abs(), moved_BC)


def least_linear(
    losses: Function, images: Tensor, ball: LinfBall, start: Tensor, steps: int, rate: float
) -> Tensor:
    """Offsets d at which g is large, found by so many steps in the ball; `losses` is l.

    Adam ascends on g from `start`, a point of the ball, and is put back into it after each step.
    The tangent plane is computed once and held constant meanwhile ([42]).
    """
    x = images.detach().requires_grad_()
    loss_B = losses(x)
    (gradient,) = torch.autograd.grad(loss_B.sum(), x)
    loss_B = loss_B.detach()
    point = start.detach().clone().requires_grad_()
    adam = torch.optim.Adam([point], lr=rate, maximize=True)
    for _ in range(steps):
        gap_B = losses(point) - loss_B - _dot(point - images, gradient)
        # Summed, never averaged: an image's search is its own.
        (point.grad,) = torch.autograd.grad(gap_B.abs().sum(), point)
        adam.step()
        with torch.no_grad():
            ball.project_(point)
    return point.detach() - images


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(dim=1)
