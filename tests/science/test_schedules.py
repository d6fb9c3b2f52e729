"""The learning rate at the points where it is known."""

import pytest

from s3ta.schedules import learning_rate
from s3ta.settings import Schedule, TrainSettings

PAPER = TrainSettings()


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (0, 0.1),
        (2.5, 0.15),
        (5, 0.2),
        (34.99, 0.2),
        (35, 0.02),
        (69.99, 0.02),
        (70, 0.002),
        (94.99, 0.002),
        (95, 0.0002),
        (119.99, 0.0002),
    ],
)
def test_the_paper_schedule_warms_up_and_decays_at_35_70_95(epoch: float, rate: float) -> None:
    assert learning_rate(PAPER, epoch) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("epoch", "share"), [(2, 1.0), (4, 0.75), (5, 0.5), (6, 0.25), (8, 0.0), (9, 0.0)]
)
def test_cosine_starts_at_the_full_rate_after_warm_up_and_ends_at_zero(
    epoch: float, share: float
) -> None:
    settings = TrainSettings(epochs=8, warmup_epochs=2, learning_rate=0.4, schedule=Schedule.cosine)
    assert learning_rate(settings, epoch) == pytest.approx(0.4 * share, abs=1e-15)


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert learning_rate(TrainSettings(warmup_epochs=0), 0) == 0.2


def test_the_rate_is_a_pure_function_of_the_epoch() -> None:
    epochs = [100.0, 3.0, 40.0, 0.0, 100.0, 3.0]
    rates = [learning_rate(PAPER, e) for e in epochs]
    assert rates == [learning_rate(TrainSettings(), e) for e in epochs]
    assert rates[:2] == rates[4:]
