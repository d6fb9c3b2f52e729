"""Projected gradient descent as a state machine that can stop and go on at any step.

The model given is frozen by the caller (eval mode, parameters without gradients); see `frozen`.
B batch, C classes. Steps are signed; no host synchronisation happens between readings.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from s3ta.objective import attack_loss, margin
from s3ta.threat import LinfBall
from s3ta.trajectory import Trajectory

NEVER = -1


@dataclass(frozen=True)
class Reading:
    """What the model does with the attacked images after `step` steps."""

    step: int
    predictions_B: Tensor
    losses_B: Tensor
    """The attack's own loss."""
    margins_B: Tensor
    """z_label - max z_other."""
    linf_B: Tensor
    """Distance from the clean image, in [0, 1] units."""
    first_error_steps_B: Tensor
    """The first of the steps 0..step with a wrong prediction; -1 for never."""
    first_target_steps_B: Tensor


@dataclass
class AttackState:
    """All that an attack carries from one step to the next."""

    attacked: Tensor
    first_error_steps_B: Tensor
    first_target_steps_B: Tensor
    step: int = 0
    """Steps taken."""
    readings: list[Reading] = field(default_factory=list)


@dataclass(frozen=True)
class PGD:
    """One trajectory on one tile of images."""

    logits: Callable[[Tensor], Tensor]
    trajectory: Trajectory
    images: Tensor
    labels_B: Tensor
    targets_B: Tensor | None
    """None for an untargeted attack."""

    def begin(self, uniform: Tensor | None) -> AttackState:
        """Start from noise, given as draws on [0, 1) of the images' shape, or from the images."""
        start = self.images
        if uniform is not None:
            start = self._ball().noise_start(self.images, self.trajectory.epsilon, uniform)
        never_B = torch.full_like(self.labels_B, NEVER)
        return AttackState(start.clone(), never_B, never_B.clone())

    def run(self, state: AttackState, until: int | None = None) -> AttackState:
        """Take steps up to `until` (by default the end), and the readings on the way.

        The prediction at a step comes free with the gradient of the next one; only that at the end
        needs a forward pass of its own. A state that is at the end stays as it is.
        """
        end = self.trajectory.steps if until is None else min(until, self.trajectory.steps)
        ball = self._ball()
        while state.step < end:
            gradient = self._look(state, need_gradient=True)
            step = torch.add(state.attacked, gradient.sign(), alpha=-self.trajectory.step_size)
            state.attacked = ball.project(step)
            state.step += 1
        taken = [reading.step for reading in state.readings]
        if end == self.trajectory.steps and self.trajectory.readings and end not in taken:
            self._look(state, need_gradient=False)
        return state

    def _ball(self) -> LinfBall:
        return LinfBall.around(self.images, self.trajectory.epsilon)

    def _look(self, state: AttackState, *, need_gradient: bool) -> Tensor:
        """Note what the model answers now; the gradient of the attack's loss at this point."""
        # Always with a graph: kernels may differ without one, and a reading must not depend on
        # whether it is the last step.
        x = state.attacked.detach().requires_grad_()
        logits_BC = self.logits(x)
        losses_B = attack_loss(self.trajectory.loss, logits_BC, self.labels_B, self.targets_B)
        if self.trajectory.readings:
            self._note(state, logits_BC.detach(), losses_B.detach())
        if not need_gradient:
            return x.detach()
        # Losses are summed, never averaged: an image's gradient is its own.
        return torch.autograd.grad(losses_B.sum(), x)[0]

    def _note(self, state: AttackState, logits_BC: Tensor, losses_B: Tensor) -> None:
        predictions_B = logits_BC.argmax(dim=1)
        wrong_B = predictions_B != self.labels_B
        _keep_first(state.first_error_steps_B, wrong_B, state.step)
        if self.targets_B is not None:
            _keep_first(state.first_target_steps_B, predictions_B == self.targets_B, state.step)
        if state.step in self.trajectory.readings:
            state.readings.append(
                Reading(
                    step=state.step,
                    predictions_B=predictions_B,
                    losses_B=losses_B,
                    margins_B=margin(logits_BC, self.labels_B),
                    linf_B=(state.attacked - self.images).abs().flatten(1).amax(dim=1),
                    first_error_steps_B=state.first_error_steps_B.clone(),
                    first_target_steps_B=state.first_target_steps_B.clone(),
                )
            )


def _keep_first(first_B: Tensor, now_B: Tensor, step: int) -> None:
    first_B.masked_fill_(now_B & (first_B == NEVER), step)


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model as an attack sees it: BatchNorm in test mode, parameters without gradients."""
    modes = [(module, module.training) for module in model.modules()]
    trained = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in trained:
        p.requires_grad_(False)
    try:
        yield model
    finally:
        for p in trained:
            p.requires_grad_(True)
        for module, training in modes:
            module.training = training
