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
    own_B = logits_BC.gather(1, classes_B[:, None]).squeeze(1)
    others_BC = logits_BC.scatter(1, classes_B[:, None], -torch.inf)
    return own_B - others_BC.amax(dim=1)


def attack_loss(
    loss: Loss, logits_BC: Tensor, labels_B: Tensor, targets_B: Tensor | None
) -> Tensor:
    """What an attack descends on, per example (B,): low is good for the attacker.

    Untargeted (`targets_B` None) it drives the label away, targeted it drives the target in.
    """
    if loss is Loss.cross_entropy:
        if targets_B is None:
            return -cross_entropy(logits_BC, labels_B)
        return cross_entropy(logits_BC, targets_B)
    if targets_B is None:
        return margin(logits_BC, labels_B).clamp(min=MARGIN_FLOOR)
    return (-margin(logits_BC, targets_B)).clamp(min=MARGIN_FLOOR)
