"""Losses against numbers worked out by hand."""

from math import exp, log

import pytest
import torch

from s3ta.objective import MARGIN_FLOOR, attack_loss, cross_entropy, margin
from s3ta.settings import Loss

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 5.0, 3.0]], dtype=torch.float64)
LOG_SUMS = (log(exp(2) + exp(1) + 1), log(1 + exp(5) + exp(3)))
LABELS = torch.tensor([0, 2])
TARGETS = torch.tensor([2, 0])


def test_cross_entropy_is_minus_log_probability_per_example() -> None:
    expected = [LOG_SUMS[0] - 2, LOG_SUMS[1] - 3]
    assert cross_entropy(LOGITS, LABELS).tolist() == pytest.approx(expected)


def test_label_smoothing_spreads_its_share_over_all_classes() -> None:
    log_p = LOGITS - torch.tensor(LOG_SUMS, dtype=torch.float64)[:, None]
    expected = [
        -0.9 * log_p[i, label].item() - 0.1 / 3 * log_p[i].sum().item()
        for i, label in enumerate(LABELS)
    ]
    assert cross_entropy(LOGITS, LABELS, 0.1).tolist() == pytest.approx(expected)


def test_margin_is_positive_where_the_class_wins_and_negative_where_another_does() -> None:
    assert margin(LOGITS, LABELS).tolist() == [1.0, -2.0]
    assert margin(LOGITS, torch.tensor([1, 1])).tolist() == [-1.0, 2.0]


@pytest.mark.parametrize(
    ("loss", "targets", "expected"),
    [
        (Loss.cross_entropy, None, [2 - LOG_SUMS[0], 3 - LOG_SUMS[1]]),
        (Loss.cross_entropy, TARGETS, [LOG_SUMS[0], LOG_SUMS[1]]),
        (Loss.margin, None, [1.0, -2.0]),
        (Loss.margin, TARGETS, [2.0, 5.0]),
    ],
)
def test_attack_loss_is_low_where_the_attacker_does_well(
    loss: Loss, targets: torch.Tensor | None, expected: list[float]
) -> None:
    assert attack_loss(loss, LOGITS, LABELS, targets).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("targets", [None, torch.tensor([1, 1])])
def test_margin_loss_has_a_floor_with_no_gradient_below_it(targets: torch.Tensor | None) -> None:
    logits = torch.tensor([[0.0, 29.0], [0.0, 31.0]], requires_grad=True)
    losses = attack_loss(Loss.margin, logits, torch.tensor([0, 0]), targets)
    assert losses.tolist() == [-29.0, MARGIN_FLOOR]
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert gradient.tolist() == [[1.0, -1.0], [0.0, 0.0]]
