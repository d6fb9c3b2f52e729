"""The learning rate at the points where it is known, and the curriculum's stages."""

import pytest

from s3ta.schedules import Stage, learning_rate, stage_at
from s3ta.settings import Schedule, StageSettings, TrainAttackSettings, TrainSettings

PAPER = TrainSettings()
XIE = TrainSettings(epochs=110, batch=4096, learning_rate=0.1 * 4096 / 256)


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
    ("epoch", "rate"),
    [
        (0, 0.1),
        (1, 0.4),
        (2.5, 0.85),
        (5, 1.6),
        (34.99, 1.6),
        (35, 0.16),
        (69.99, 0.16),
        (70, 0.016),
        (94.99, 0.016),
        (95, 0.0016),
        (109.99, 0.0016),
    ],
)
def test_xie_et_als_own_schedule_warms_up_to_the_batchs_rate_and_decays_in_110_epochs(
    epoch: float, rate: float
) -> None:
    assert learning_rate(XIE, epoch) == pytest.approx(rate, rel=1e-12)


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


GROWING = TrainSettings(
    attack=TrainAttackSettings(epsilon_255=16, steps=10),
    curriculum=[
        StageSettings(unroll=4, attack_steps=2, epsilon_255=4),
        StageSettings(from_epoch=35, unroll=8, epsilon_255=8),
        StageSettings(from_epoch=70, unroll=16, attack_steps=30),
    ],
)


@pytest.mark.parametrize(
    ("epoch", "unroll", "steps", "epsilon_255"),
    [
        (0, 4, 2, 4),
        (34, 4, 2, 4),
        (35, 8, 10, 8),  # steps as in train.attack again: a stage is read by itself
        (69, 8, 10, 8),
        (70, 16, 30, 16),
        (119, 16, 30, 16),
    ],
)
def test_a_stage_lasts_from_its_epoch_to_the_next_ones(
    epoch: int, unroll: int, steps: int, epsilon_255: float
) -> None:
    attack = TrainAttackSettings(epsilon_255=epsilon_255, steps=steps)
    assert stage_at(GROWING, epoch) == Stage(unroll, attack)


def test_without_a_curriculum_every_epoch_is_as_the_settings_say() -> None:
    assert {id(stage_at(PAPER, epoch).attack) for epoch in (0, 50, 119)} == {id(PAPER.attack)}
    assert stage_at(PAPER, 119).unroll is None


def test_a_stage_keeps_what_it_does_not_name() -> None:
    attack = TrainAttackSettings(clean_start_share=0.7, steps=9)
    settings = TrainSettings(attack=attack, curriculum=[StageSettings(attack_steps=3)])
    stage = stage_at(settings, 0)
    assert stage == Stage(None, TrainAttackSettings(clean_start_share=0.7, steps=3))
