"""An attack that was saved after any step and is continued elsewhere gives the same bits."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from s3ta.batch import Batch, Conditions, to_unit
from s3ta.engine import Engine
from s3ta.evaluation import AttackRun
from s3ta.settings import Dtype, Goal, Mode
from s3ta.tally import Rows
from s3ta.trajectory import Trajectory

Batches = Callable[..., Batch]
Engines = Callable[..., Engine]
Trajectories = Callable[..., Trajectory]
Same = Callable[[Rows, Rows], None]
TILE = 4
CONDITIONS = Conditions(classes=5, seed=3, tile=TILE)


class _Stopped(Exception):  # noqa: N818
    pass


@pytest.fixture(scope="module")
def batch(tiny_engine: Engines, tiny_batch: Batches) -> Batch:
    """Nearly two tiles; most labels are what the model says."""
    batch = tiny_batch(7)
    labels_B = tiny_engine(None, TILE).judged(to_unit(batch.images_BCHW)).argmax(1).numpy()
    labels_B[::4] = 0
    return replace(batch, labels_B=labels_B)


def _run(engine: Engine, batch: Batch, trajectory: Trajectory) -> AttackRun:
    return AttackRun(engine, batch, trajectory, CONDITIONS, keep_attacked=True)


def _result(run: AttackRun) -> Rows:
    rows = run.run()
    assert run.attacked_NCHW is not None
    return {**rows, "attacked": run.attacked_NCHW}


def _through_a_file(state: dict[str, Any]) -> Rows:
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    with np.load(file, allow_pickle=False) as loaded:
        return dict(loaded)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("goal", [Goal.untargeted, Goal.random_target])
@pytest.mark.parametrize("dtype", list(Dtype))
def test_a_run_that_is_stopped_after_any_step_and_continued_gives_the_same_rows(
    dtype: Dtype,
    goal: Goal,
    mode: Mode,
    tiny_engine: Engines,
    batch: Batch,
    trajectory: Trajectories,
    assert_same: Same,
) -> None:
    epsilon_255 = 64 if goal is Goal.random_target else 8
    attack = trajectory(16, 19, goal=goal, mode=mode, epsilon_255=epsilon_255)
    states: list[Rows] = [_run(tiny_engine(None, TILE), batch, attack).state()]
    whole = _run(tiny_engine(None, TILE, dtype=dtype), batch, attack)
    whole.run(lambda run: states.append(run.state()))
    expected = _result(whole)
    assert len(states) > 16
    own = expected["first_target_step" if goal is Goal.random_target else "first_error_step"]
    assert {-1, 0} < {*own.tolist()}
    engine = tiny_engine(None, TILE, dtype=dtype)
    for state in states if dtype is Dtype.float32 else states[5::9]:
        run = _run(engine, batch, attack)
        run.restore(_through_a_file(state))
        assert_same(run.state(), state)
        assert_same(_result(run), expected)


def test_a_continued_run_takes_only_the_steps_that_are_left(
    tiny_engine: Engines, batch: Batch, trajectory: Trajectories
) -> None:
    engine, attack = tiny_engine(None, TILE), trajectory(16)
    saved: list[Rows] = []

    def stop(run: AttackRun) -> None:
        if len(saved) == 20:
            raise _Stopped
        saved.append(run.state())

    with pytest.raises(_Stopped):
        _run(engine, batch, attack).run(stop)
    run, steps = _run(engine, batch, attack), list[int]()
    run.restore(saved[-1])
    run.run(lambda run: steps.append(run.done))
    assert len(steps) == 2 * 17 - 20
    assert steps == sorted(steps)
    assert steps[0] == 4 * 16 + 3 * 4
    assert steps[-1] == run.total == 7 * 16


def test_a_finished_run_gives_its_rows_again(
    tiny_engine: Engines, batch: Batch, trajectory: Trajectories, assert_same: Same
) -> None:
    run = _run(tiny_engine(None, TILE), batch, trajectory(16))
    assert run.done == 0
    first = _result(run)
    assert run.done == run.total
    assert_same(_result(run), first)


def test_a_saved_state_stays_as_it_was_while_the_run_goes_on(
    tiny_engine: Engines, batch: Batch, trajectory: Trajectories, assert_same: Same
) -> None:
    states: list[tuple[Rows, Rows]] = []

    def keep(run: AttackRun) -> None:
        state = run.state()
        states.append((state, {name: array.copy() for name, array in state.items()}))

    run = _run(tiny_engine(None, TILE), batch, trajectory(16, goal=Goal.untargeted))
    run.run(keep)
    again = _run(tiny_engine(None, TILE), batch, run.trajectory)
    again.restore(states[20][0])
    again.run()
    for state, copy in states:
        assert_same(state, copy)
    assert (states[0][0]["attacked"] != states[20][0]["attacked"]).any()
