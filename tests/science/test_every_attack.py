"""What every attack promises: the same bits however it is cut or interrupted, in the ball, judged.

The attacks stand for all goals, losses, rules and sources of gradients, each in one combination.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from s3ta.batch import Batch, Conditions, to_unit
from s3ta.engine import Engine
from s3ta.evaluation import AttackRun, attack_images
from s3ta.hits import NEVER
from s3ta.settings import (
    AttackSettings,
    Goal,
    Gradient,
    Loss,
    Mode,
    Rule,
    Start,
    Through,
)
from s3ta.tally import Rows
from s3ta.trajectory import Trajectory, trajectories

Batches = Callable[..., Batch]
Engines = Callable[..., Engine]
Same = Callable[[Rows, Rows], None]
TILE = 8
CONDITIONS = Conditions(classes=5, seed=3, tile=TILE)
SPSA = {"gradient": Gradient.spsa, "spsa_pairs": 40}
LIKELIEST: dict[str, Any] = {"goal": Goal.likeliest, "targets": 3}
ATTACKS: dict[str, dict[str, Any]] = {
    "fgsm": {"start": Start.clean, "step_of_epsilon": 1.0, "readings": [1]},
    "momentum": {"momentum": 1.0, "goal": Goal.untargeted},
    "adam": {"rule": Rule.adam, "loss": Loss.margin, "goal": Goal.untargeted},
    "dlr": {"loss": Loss.dlr, "goal": Goal.given_target, "target_of_label": [1, 2, 3, 4, 0]},
    "least likely": {"goal": Goal.least_likely_target, "step_of_epsilon": 0.125},
    "multi-targeted": {"loss": Loss.difference, **LIKELIEST},
    "spsa": {"readings": [17], **SPSA},
    "spsa by adam": {"readings": [17], "rule": Rule.adam, "goal": Goal.untargeted, **SPSA},
    "read-outs": {"through": Through.readouts, "goal": Goal.untargeted},
    "longer": {"unroll": 5},
    "shorter": {"unroll": 1, "goal": Goal.untargeted},
    "attention": {"through": Through.attention, "attention_weight": 10.0},
    "apgd-ce": {"rule": Rule.apgd, "goal": Goal.untargeted},
    "apgd-t": {"rule": Rule.apgd, "loss": Loss.dlr, **LIKELIEST},
    "fab-t": {"rule": Rule.fab, "loss": Loss.difference, **LIKELIEST},
    "square": {"rule": Rule.square, "loss": Loss.margin, "goal": Goal.untargeted},
    "square, targeted": {"rule": Rule.square, "loss": Loss.margin},
    "random": {"rule": Rule.random, "loss": Loss.margin, "goal": Goal.untargeted},
}
every_attack = pytest.mark.parametrize("name", list(ATTACKS))


def _runs(name: str, **changes: Any) -> list[Trajectory]:
    return trajectories(
        AttackSettings(**{"epsilon_255": 8, "readings": [30], **ATTACKS[name], **changes})
    )


@pytest.fixture(scope="module")
def engine(tiny_engine: Engines) -> Engine:
    return tiny_engine(2, TILE)


@pytest.fixture(scope="module")
def batch(engine: Engine, tiny_batch: Batches) -> Batch:
    """Two tiles and a bit; most labels are what the model says."""
    batch = tiny_batch(19)
    labels_B = engine.judged(to_unit(batch.images_BCHW, engine.device)).argmax(1).cpu().numpy()
    labels_B[::6] = 0
    return replace(batch, labels_B=labels_B)


def _whole(engine: Engine, batch: Batch, trajectory: Trajectory) -> Rows:
    return attack_images(engine, batch, trajectory, CONDITIONS)


def _pick(batch: Batch, places: list[int]) -> Batch:
    return Batch(
        images_BCHW=batch.images_BCHW[places],
        labels_B=batch.labels_B[places],
        image_ids_B=batch.image_ids_B[places],
    )


@every_attack
def test_rows_are_the_same_bits_however_the_images_are_cut(
    name: str, engine: Engine, batch: Batch, assert_same: Same
) -> None:
    for trajectory in _runs(name)[:2]:
        whole = _whole(engine, batch, trajectory)
        order = np.random.default_rng(0).permutation(19).tolist()
        for places in (order[:1], order[1:12], order[12:]):
            rows = _whole(engine, _pick(batch, places), trajectory)
            for at, place in enumerate(places):
                own = {k: v[at : at + 1] for k, v in rows.items()}
                assert_same(own, {k: v[place : place + 1] for k, v in whole.items()})


@every_attack
def test_a_run_that_is_continued_from_any_step_gives_the_same_bits(
    name: str, engine: Engine, batch: Batch, assert_same: Same
) -> None:
    trajectory, states = _runs(name)[-1], list[Rows]()
    batch = batch.part(0, 11)
    whole = AttackRun(engine, batch, trajectory, CONDITIONS)
    expected = whole.run(lambda run: states.append(run.state()))
    for state in states[::7]:
        run = AttackRun(engine, batch, trajectory, CONDITIONS)
        run.restore({name: array.copy() for name, array in state.items()})
        assert_same(run.state(), state)
        assert_same(run.run(), expected)


@every_attack
def test_points_are_in_ball_and_range_and_rows_are_the_judges(
    name: str, engine: Engine, batch: Batch
) -> None:
    for trajectory in _runs(name):
        run = AttackRun(engine, batch, trajectory, CONDITIONS, keep_attacked=True)
        rows = run.run()
        assert run.attacked_NCHW is not None
        attacked, images = torch.from_numpy(run.attacked_NCHW), to_unit(batch.images_BCHW)
        assert (attacked - images).abs().max() <= trajectory.epsilon + 1e-7
        assert attacked.min() >= 0
        assert attacked.max() <= 1
        assert (attacked != images).any()
        assert (
            engine.judged(attacked.to(engine.device)).argmax(1).tolist()
            == rows["prediction"].tolist()
        )
        targeted = trajectory.goal.targeted
        assert (rows["target"] != batch.labels_B).all()
        assert ((rows["target"] >= 0) == targeted).all()
        assert (rows["fooled"] == (rows["prediction"] == rows["target"])).all()
        assert targeted or (rows["first_target_step"] == NEVER).all()


@every_attack
def test_until_success_finds_the_goal_of_the_same_images_at_the_same_steps(
    name: str, engine: Engine, batch: Batch
) -> None:
    """Also of rules that keep their best point, which always stop there: against all steps."""
    (full, *_), (short, *_) = _runs(name), _runs(name, mode=Mode.until_success)
    full = replace(full, until_success=False)
    rows, at_once = _whole(engine, batch, full), _whole(engine, batch, short)
    own = "first_target_step" if full.goal.targeted else "first_error_step"
    assert at_once[own].tolist() == rows[own].tolist()
    reached = at_once["fooled"] if full.goal.targeted else ~at_once["correct"]
    assert (reached == (at_once[own] != NEVER)).all()


@every_attack
def test_it_does_what_it_is_for(name: str, engine: Engine, batch: Batch) -> None:
    """By the attack's own loss its end is worse for the model than its start."""
    for trajectory in _runs(name, readings=[1 if name == "fgsm" else 25])[:1]:
        start = replace(trajectory, readings=(0,), steps=0, until_success=False)
        end = replace(trajectory, until_success=False)
        before, after = (_whole(engine, batch, t) for t in (start, end))
        losses = after["loss"] - before["loss"]
        assert losses.mean() < 0, "a flipped sign would raise it"
        assert (losses < 1e-4).mean() >= 2 / 3


def test_restarts_are_runs_from_other_starts_and_ranks_lead_to_other_classes(
    engine: Engine, batch: Batch
) -> None:
    runs = trajectories(AttackSettings(readings=[16], restarts=2, **LIKELIEST))
    assert [(t.restart, t.rank) for t in runs] == [(0, 1), (1, 2), (2, 3), (3, 1), (4, 2), (5, 3)]
    ends = []
    for trajectory in runs:
        run = AttackRun(engine, batch, trajectory, CONDITIONS, keep_attacked=True)
        assert set(run.run()["restart"].tolist()) == {trajectory.restart}
        ends.append(run.attacked_NCHW)
    assert all((a != b).any() for i, a in enumerate(ends) for b in ends[:i])  # type: ignore[union-attr]
