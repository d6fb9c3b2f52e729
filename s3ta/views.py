"""What an attack's loss is made of: which answers of the model, and what else it steers.

A recurrent model can be attacked through more than its last answer (S3TA sec. 3: it is a recurrent
network unrolled). Success is always the deployed model's last answer. B images, T glances, Q heads.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from s3ta.attacks import Losses
from s3ta.engine import Engine
from s3ta.objective import attack_loss
from s3ta.settings import Through
from s3ta.trajectory import Trajectory


def losses_of(
    engine: Engine,
    trajectory: Trajectory,
    images: Tensor,
    labels_B: Tensor,
    towards_B: Tensor | None,
) -> Losses:
    """Logits of the deployed model and the attack's losses, at points near these images."""

    def attack(logits_BC: Tensor, slots: Tensor | None) -> Tensor:
        labels, towards = labels_B, towards_B
        if slots is not None:
            labels, towards = labels[slots], None if towards is None else towards[slots]
        return attack_loss(trajectory.loss, logits_BC, labels, towards)

    def plain(points: Tensor, slots: Tensor | None) -> tuple[Tensor, Tensor]:
        logits_BC = engine.logits(points)
        return logits_BC, attack(logits_BC, slots)

    if trajectory.through is Through.attention:
        return _through_attention(engine, trajectory, images, attack)
    if trajectory.through is Through.held_maps:
        return _through_held_maps(engine, images, attack)
    if trajectory.through is Through.answer and trajectory.unroll is None:
        return plain
    deployed = engine.unroll
    chosen = trajectory.unroll or deployed
    first = 0 if trajectory.through is Through.readouts else chosen - 1

    def through(points: Tensor, slots: Tensor | None) -> tuple[Tensor, Tensor]:
        logits_BTC = engine.trace(points, max(chosen, deployed)).logits_BTC
        parts = [attack(logits_BTC[:, t], slots) for t in range(first, chosen)]
        return logits_BTC[:, deployed - 1], torch.stack(parts).sum(dim=0)

    return through


def _through_held_maps(
    engine: Engine, images: Tensor, attack: Callable[[Tensor, Tensor | None], Tensor]
) -> Losses:
    """The attack's loss of the answer that is read where the model looks on the clean image: what
    an attacker reaches who can't move the attention, and doesn't know that it moves."""
    with torch.no_grad():
        clean_BTQHW = engine.trace(images, engine.unroll).maps_BTQHW

    def losses(points: Tensor, slots: Tensor | None) -> tuple[Tensor, Tensor]:
        clean = clean_BTQHW if slots is None else clean_BTQHW[slots]
        return engine.logits(points), attack(engine.read(points, clean), slots)

    return losses


def _through_attention(
    engine: Engine,
    trajectory: Trajectory,
    images: Tensor,
    attack: Callable[[Tensor, Tensor | None], Tensor],
) -> Losses:
    """The attack's loss, less the share of the attention maps' mass that is moved."""
    deployed = engine.unroll
    steps = trajectory.unroll or deployed
    with torch.no_grad():
        clean_BTQHW = engine.trace(images, steps).maps_BTQHW

    def losses(points: Tensor, slots: Tensor | None) -> tuple[Tensor, Tensor]:
        trace = engine.trace(points, max(steps, deployed))
        clean = clean_BTQHW if slots is None else clean_BTQHW[slots]
        moved_BTQHW = (trace.maps_BTQHW[:, :steps] - clean).abs()
        # Half the sum over places is the mass that has moved; the mean over glances and heads.
        moved_B = moved_BTQHW.sum(dim=(3, 4)).mean(dim=(1, 2)) / 2
        losses_B = attack(trace.logits_BTC[:, steps - 1], slots)
        return trace.logits_BTC[:, deployed - 1], losses_B - trajectory.attention_weight * moved_B

    return losses
