"""Losses against numbers worked out by hand."""

from math import exp, log

import pytest
import torch
from torch import Tensor

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


FIVE = torch.tensor([[1.0, 4.0, 2.0, 0.5, -1.0], [3.0, 3.5, 0.0, 1.0, 2.0]])


def test_dlr_is_what_the_formula_gives_by_hand() -> None:
    labels_B, towards_B = torch.tensor([0, 1]), torch.tensor([2, 0])
    # Sorted: 4, 2, 1, 0.5 and 3.5, 3, 2, 1. Untargeted: (z_y - max) / (z_1 - z_3).
    untargeted = attack_loss(Loss.dlr, FIVE, labels_B, None)
    assert untargeted.tolist() == pytest.approx([(1 - 4) / (4 - 1), (3.5 - 3) / (3.5 - 2)])
    targeted = attack_loss(Loss.dlr, FIVE, labels_B, towards_B)
    expected = [(1 - 2) / (4 - 0.75), (3.5 - 3) / (3.5 - 1.5)]
    assert targeted.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("towards", [None, torch.tensor([2, 0])])
def test_dlr_does_not_change_when_all_logits_are_shifted_or_scaled(towards: Tensor | None) -> None:
    labels_B = torch.tensor([0, 1])
    plain = attack_loss(Loss.dlr, FIVE, labels_B, towards)
    for changed in (FIVE + 7, FIVE * 100, FIVE * 0.01 - 3):
        torch.testing.assert_close(attack_loss(Loss.dlr, changed, labels_B, towards), plain)
    assert (attack_loss(Loss.dlr, -FIVE, labels_B, towards) != plain).any()


def test_dlr_of_equal_logits_is_a_number() -> None:
    equal = torch.zeros(2, 5, requires_grad=True)
    for towards in (None, torch.tensor([2, 0])):
        loss = attack_loss(Loss.dlr, equal, torch.tensor([0, 1]), towards).sum()
        (gradient,) = torch.autograd.grad(loss, equal)
        assert loss.item() == 0
        assert not gradient.isnan().any()


def test_the_difference_is_the_labels_logit_less_the_targets() -> None:
    labels_B = torch.tensor([0, 1])
    found = attack_loss(Loss.difference, FIVE, labels_B, torch.tensor([2, 0]))
    assert found.tolist() == [1 - 2, 3.5 - 3]
    assert attack_loss(Loss.difference, FIVE, labels_B, None).tolist() == [1 - 4, 3.5 - 3]
