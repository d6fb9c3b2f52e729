"""Losses. Per example until the caller's last line. B batch, C classes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from s3ta.settings import Loss

MARGIN_FLOOR = -30.0
"""Below it an image is so clearly wrong that more budget on it is waste (S3TA sec. 5.2)."""


def cross_entropy(logits_BC: Tensor, classes_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-log p(class), per example (B,)."""
    return F.cross_entropy(logits_BC, classes_B, reduction="none", label_smoothing=label_smoothing)


def margin(logits_BC: Tensor, classes_B: Tensor) -> Tensor:
    """z_y - max over j != y of z_j, per example (B,): negative where another class wins."""
    others_BC = logits_BC.scatter(1, classes_B[:, None], -torch.inf)
    return _of(logits_BC, classes_B) - others_BC.amax(dim=1)


def difference(logits_BC: Tensor, labels_B: Tensor, towards_B: Tensor) -> Tensor:
    """z_y - z_t, per example (B,): negative where t wins against the label."""
    return _of(logits_BC, labels_B) - _of(logits_BC, towards_B)


def dlr(logits_BC: Tensor, labels_B: Tensor, towards_B: Tensor | None) -> Tensor:
    """The difference of logits ratio (Croce and Hein 2020), negated: low is good for the attacker.

    (z_y - max z_j) / (z_(1) - z_(3)), or towards t: (z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2),
    with z_(i) the i-th largest logit. Shifting or scaling all logits changes nothing.
    """
    top_B4 = logits_BC.topk(3 if towards_B is None else 4, dim=1).values
    tiny = torch.finfo(logits_BC.dtype).tiny  # where all are equal: 0, not NaN
    if towards_B is None:
        width_B = top_B4[:, 0] - top_B4[:, 2]
        return margin(logits_BC, labels_B) / width_B.clamp(min=tiny)
    width_B = top_B4[:, 0] - (top_B4[:, 2] + top_B4[:, 3]) / 2
    return difference(logits_BC, labels_B, towards_B) / width_B.clamp(min=tiny)


def attack_loss(
    loss: Loss, logits_BC: Tensor, labels_B: Tensor, towards_B: Tensor | None
) -> Tensor:
    """What an attack descends on, per example (B,): low is good for the attacker.

    Untargeted (`towards_B` None) it drives the label away, else that class in.
    """
    if loss is Loss.dlr:
        return dlr(logits_BC, labels_B, towards_B)
    if loss is Loss.cross_entropy:
        return (
            -cross_entropy(logits_BC, labels_B)
            if towards_B is None
            else cross_entropy(logits_BC, towards_B)
        )
    if loss is Loss.difference:
        return (
            margin(logits_BC, labels_B)
            if towards_B is None
            else difference(logits_BC, labels_B, towards_B)
        )
    gap_B = margin(logits_BC, labels_B) if towards_B is None else -margin(logits_BC, towards_B)
    return gap_B.clamp(min=MARGIN_FLOOR)


def _of(logits_BC: Tensor, classes_B: Tensor) -> Tensor:
    return logits_BC.gather(1, classes_B[:, None]).squeeze(1)
