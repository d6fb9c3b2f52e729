"""An attack that stops an image at its goal finds what the whole attack finds, with less work."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from s3ta.batch import Batch, Conditions, to_unit
from s3ta.engine import Engine
from s3ta.evaluation import AttackRun, attack_images
from s3ta.hits import NEVER
from s3ta.settings import Dtype, Goal, Mode
from s3ta.tally import Rows
from s3ta.trajectory import Trajectory

Batches = Callable[..., Batch]
Engines = Callable[..., Engine]
Trajectories = Callable[..., Trajectory]
TILE = 8
CONDITIONS = Conditions(classes=5, seed=3, tile=TILE)
EPSILON_255 = {Goal.random_target: 64.0, Goal.untargeted: 16.0}
OWN = {Goal.random_target: "first_target_step", Goal.untargeted: "first_error_step"}


@pytest.fixture(scope="module")
def batch(tiny_engine: Engines, tiny_batch: Batches) -> Batch:
    """Four tiles; most labels are what the model says."""
    batch = tiny_batch(30)
    labels_B = tiny_engine(None, TILE).judged(to_unit(batch.images_BCHW)).argmax(1).numpy()
    labels_B[::8] = 0
    return replace(batch, labels_B=labels_B)


def _counted(engine: Engine, batch: Batch, run: Trajectory) -> tuple[Rows, int]:
    """Rows, and how many steps of the tile they took."""
    steps: list[int] = []
    rows = attack_images(engine, batch, run, CONDITIONS, lambda run: steps.append(run.tick))
    return rows, len(steps)


@pytest.mark.parametrize("goal", [Goal.untargeted, Goal.random_target])
@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("readings", [(10,), (16, 45)])
@pytest.mark.parametrize("images", [1, 5, 30])
def test_it_finds_the_goal_of_the_same_images_at_the_same_steps(
    images: int,
    readings: tuple[int, ...],
    dtype: Dtype,
    goal: Goal,
    tiny_engine: Engines,
    batch: Batch,
    trajectory: Trajectories,
) -> None:
    engine, batch = tiny_engine(None, TILE, dtype=dtype), batch.part(0, images)
    attack = {"goal": goal, "epsilon_255": EPSILON_255[goal]}
    full, most = _counted(engine, batch, trajectory(*readings, **attack))
    short, steps = _counted(engine, batch, trajectory(*readings, mode=Mode.until_success, **attack))
    assert short[OWN[goal]].tolist() == full[OWN[goal]].tolist()
    assert short["clean_prediction"].tolist() == full["clean_prediction"].tolist()
    assert most == -(-images // TILE) * (max(readings) + 1)  # a last look, without a step
    assert steps <= most
    if images == 30:
        assert {-1, 0} < {*full[OWN[goal]].tolist()}
        assert readings == (10,) or steps < 0.8 * most


def test_images_that_are_solved_at_once_cost_16_steps_of_a_hundred(
    tiny_engine: Engines, batch: Batch, trajectory: Trajectories
) -> None:
    wrong = replace(batch, labels_B=(batch.labels_B + 1) % 5)
    engine = tiny_engine(None, TILE)
    easy = wrong.image_ids_B[engine.judged(to_unit(wrong.images_BCHW)).argmax(1) != wrong.labels_B]
    batch = wrong.part(1, 8)
    assert np.isin(batch.image_ids_B, easy).all()
    run = trajectory(100, goal=Goal.untargeted, epsilon_255=0.5, mode=Mode.until_success)
    rows, steps = _counted(engine, batch, run)
    assert rows["first_error_step"].tolist() == [0] * 7
    assert steps == 16


@pytest.mark.parametrize("goal", [Goal.untargeted, Goal.random_target])
def test_rows_tell_the_whole_attack_up_to_success_and_repeat_its_point_from_there(
    goal: Goal, tiny_engine: Engines, batch: Batch, trajectory: Trajectories
) -> None:
    engine = tiny_engine(None, TILE, fold=False, channels_last=False)
    readings = (16, 20, 33, 45)
    run = trajectory(*readings, goal=goal, epsilon_255=EPSILON_255[goal], mode=Mode.until_success)
    every = replace(run, readings=tuple(range(46)), until_success=False)
    rows = attack_images(engine, batch, run, CONDITIONS)
    of_all_steps = attack_images(engine, batch, every, CONDITIONS)
    first_N = of_all_steps[OWN[goal]].reshape(30, 46)[:, -1]
    end_N = np.where(first_N == NEVER, 45, first_N)
    for at, reading in enumerate(readings):
        stopped_N = np.minimum(end_N, reading)
        assert rows["step"][at::4].tolist() == [reading] * 30
        for name in rows.keys() - {"step"}:
            expected = of_all_steps[name].reshape(30, 46)[np.arange(30), stopped_N]
            assert rows[name][at::4].tolist() == expected.tolist(), name
    for low, high in ((NEVER, NEVER), (0, 0), (1, 15), (16, 45)):
        assert ((first_N >= low) & (first_N <= high)).any()


def test_it_keeps_the_images_that_succeeded(
    tiny_engine: Engines, batch: Batch, trajectory: Trajectories
) -> None:
    engine = tiny_engine(None, TILE)
    run = AttackRun(
        engine,
        batch,
        trajectory(45, epsilon_255=32, mode=Mode.until_success),
        CONDITIONS,
        keep_attacked=True,
    )
    rows = run.run()
    assert run.attacked_NCHW is not None
    attacked = torch.from_numpy(run.attacked_NCHW)
    assert engine.judged(attacked).argmax(1).tolist() == rows["prediction"].tolist()
    solved = rows["first_target_step"] != NEVER
    assert 3 < solved.sum() < 30
    assert rows["fooled"].tolist() == solved.tolist()
    distances = (attacked - to_unit(batch.images_BCHW)).abs().flatten(1).amax(1) * 255
    assert distances.tolist() == pytest.approx(rows["linf_255"].tolist())
