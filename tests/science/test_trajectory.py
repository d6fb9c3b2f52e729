"""Step sizes and the runs that an attack's readings need."""

import pytest

from s3ta.settings import AttackSettings, Goal, Loss, Mode, TrainAttackSettings
from s3ta.trajectory import step_size, training_trajectory, trajectories


@pytest.mark.parametrize(
    ("steps", "size_255"),
    [
        (1, 16),
        (5, 3.2),
        (10, 1.6),
        (15, 16 / 15),
        (16, 1),
        (30, 1),
        (100, 1),
        (250, 1),
        (10_000, 1),
    ],
)
def test_step_sizes_are_the_papers(steps: int, size_255: float) -> None:
    assert step_size(16 / 255, steps) * 255 == pytest.approx(size_255, rel=1e-12)


@pytest.mark.parametrize("epsilon", [4 / 255, 0.1, 0.5])
@pytest.mark.parametrize("steps", [1, 10, 16, 40])
def test_any_run_can_cross_from_the_image_to_the_face_of_the_ball(
    epsilon: float, steps: int
) -> None:
    assert steps * step_size(epsilon, steps) >= epsilon * (1 - 1e-12)


def test_readings_below_16_run_alone_and_the_rest_share_a_trajectory() -> None:
    runs = trajectories(AttackSettings(epsilon_255=16, readings=[10, 100, 250, 1000]))
    assert [(r.steps, r.readings) for r in runs] == [(10, (10,)), (1000, (100, 250, 1000))]
    assert [r.step_size * 255 for r in runs] == pytest.approx([1.6, 1.0])
    assert all(r.epsilon == 16 / 255 and r.restart == 0 for r in runs)


def test_short_readings_of_different_length_share_nothing() -> None:
    runs = trajectories(AttackSettings(readings=[5, 10, 15, 16, 17]))
    assert [r.readings for r in runs] == [(5,), (10,), (15,), (16, 17)]


def test_a_trajectory_keeps_goal_and_loss_of_the_attack() -> None:
    (run,) = trajectories(
        AttackSettings(goal=Goal.untargeted, loss=Loss.margin, epsilon_255=4, readings=[200])
    )
    assert (run.goal, run.loss, run.epsilon) == (Goal.untargeted, Loss.margin, 4 / 255)


@pytest.mark.parametrize(("mode", "stops"), [(Mode.full, False), (Mode.until_success, True)])
def test_all_runs_of_an_attack_stop_at_success_or_none(mode: Mode, stops: bool) -> None:
    runs = trajectories(AttackSettings(readings=[10, 100], mode=mode))
    assert [r.until_success for r in runs] == [stops, stops]


def test_the_training_attack_takes_its_steps_with_cross_entropy_and_reads_nothing() -> None:
    run = training_trajectory(TrainAttackSettings(epsilon_255=16, steps=30))
    assert (run.goal, run.loss, run.readings) == (Goal.random_target, Loss.cross_entropy, ())
    assert run.steps == 30
    assert run.step_size * 255 == pytest.approx(1.0)
    assert training_trajectory(TrainAttackSettings(steps=10)).step_size * 255 == pytest.approx(1.6)


def test_training_without_an_attack_is_a_run_of_no_steps() -> None:
    assert training_trajectory(TrainAttackSettings(steps=0)).steps == 0
