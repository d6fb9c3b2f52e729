"""Legs of a training, rungs, packing, and why a trial is new: pure functions of the settings."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from tiny import train_job

from s3ta.errors import UserError
from s3ta.schedules import stage_index
from s3ta.settings import AttackSettings, StageSettings, TrainSettings
from s3ta_platform.asha import verdict
from s3ta_platform.compose import compose
from s3ta_platform.legs import legs_left, legs_of, rungs_of
from s3ta_platform.novelty import differences, stored_settings, why_new, write_parts
from s3ta_platform.packing import Node, require_room, room, train_at_once
from s3ta_platform.plan import Plan, make_plan
from s3ta_platform.rungs import rung_evaluation
from s3ta_platform.schema_cluster import ClusterSettings
from s3ta_platform.schema_evaluate import EvaluateSettings, asha_metrics
from s3ta_platform.schema_sweep import AshaSettings, Best

ONE = ClusterSettings()
PAPER = TrainSettings(
    curriculum=[
        StageSettings(unroll=4),
        StageSettings(from_epoch=35, unroll=8),
        StageSettings(from_epoch=70, unroll=16),
    ]
)


def test_a_leg_ends_with_each_stage_and_has_its_unroll_and_workers() -> None:
    legs = legs_of(PAPER, ClusterSettings(train_workers=5, stage_workers=[1, 2]), None)
    assert [(leg.until, leg.stage, leg.unroll, leg.workers) for leg in legs] == [
        (35, 0, 4, 1),
        (70, 1, 8, 2),
        (120, 2, 16, 5),  # a stage without a number of its own has the usual one
    ]
    assert [leg.last for leg in legs] == [False, False, True]
    assert not any(leg.rung for leg in legs)


def test_without_curriculum_and_halving_training_is_one_leg() -> None:
    (leg,) = legs_of(TrainSettings(), ONE, None)
    assert (leg.until, leg.stage, leg.unroll, leg.last) == (120, 0, None, True)


@pytest.mark.parametrize(
    ("grace", "factor", "epochs", "rungs"),
    [(1, 4, 120, (1, 4, 16, 64)), (3, 2, 24, (3, 6, 12)), (5, 2, 5, ()), (1, 3, 2, (1,))],
)
def test_rungs_grow_by_the_factor_and_lie_before_the_end(
    grace: int, factor: int, epochs: int, rungs: tuple[int, ...]
) -> None:
    asha = AshaSettings(grace_epochs=grace, reduction_factor=factor)
    assert rungs_of(asha, epochs) == rungs


def test_rungs_are_ends_of_legs_within_their_stages() -> None:
    legs = legs_of(PAPER, ONE, AshaSettings(grace_epochs=35, reduction_factor=3))
    assert [(leg.until, leg.stage, leg.rung) for leg in legs] == [
        (35, 0, True),
        (70, 1, False),
        (105, 2, True),
        (120, 2, False),
    ]


def test_every_epoch_is_in_the_leg_of_its_stage() -> None:
    legs = legs_of(PAPER, ONE, AshaSettings(grace_epochs=2, reduction_factor=3))
    for epoch in range(PAPER.epochs):
        leg = next(leg for leg in legs if epoch < leg.until)
        assert leg.stage == stage_index(PAPER, epoch)


@pytest.mark.parametrize(
    ("step", "ends"),
    [(0, [35, 70, 120]), (349, [35, 70, 120]), (350, [35, 70, 120]), (351, [70, 120])],
)
def test_a_leg_whose_very_end_is_saved_is_still_to_be_told(step: int, ends: list[int]) -> None:
    left = legs_left(legs_of(PAPER, ONE, None), step, epoch_steps=10)
    assert [leg.until for leg in left] == ends


# Successive halving.


@pytest.mark.parametrize("best", list(Best))
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_verdicts_are_those_of_tunes_own_scheduler(best: Best, factor: int) -> None:
    settings, chance = AshaSettings(best=best, reduction_factor=factor), random.Random(factor)
    reference = AsyncHyperBandScheduler(
        time_attr="epoch", metric="value", mode=best.name, max_t=9, reduction_factor=factor
    )
    seen: list[float] = []
    stopped = 0
    for number in range(60):
        trial: Any = SimpleNamespace(trial_id=str(number))
        value = round(chance.random(), 1)  # with ties
        reference.on_trial_add(None, trial)  # type: ignore[arg-type]
        result = {"epoch": 1, "value": value}
        decision = reference.on_trial_result(None, trial, result)  # type: ignore[arg-type]
        found = verdict(settings, value, seen)
        assert found.goes_on == (decision == TrialScheduler.CONTINUE)
        stopped += not found.goes_on
        seen.append(value)
    assert 20 < stopped < 60


def test_the_best_half_goes_on_and_the_numbers_are_told() -> None:
    asha = AshaSettings(reduction_factor=2)
    assert verdict(asha, 0.1, []).goes_on
    found = verdict(asha, 0.5, [0.2, 0.6])
    assert (found.goes_on, found.others) == (True, 2)
    assert found.cutoff == pytest.approx(0.4)
    assert not verdict(asha, 0.3, [0.2, 0.6]).goes_on
    loss = AshaSettings(best=Best.min, reduction_factor=2)
    assert verdict(loss, 0.3, [0.2, 0.6]).goes_on
    assert verdict(loss, 0.5, [0.2, 0.6]).cutoff == pytest.approx(0.4)


def test_a_value_that_is_not_finite_is_the_worst() -> None:
    asha = AshaSettings(best=Best.min, reduction_factor=2)
    nan = float("nan")
    assert not verdict(asha, nan, [9.0]).goes_on
    assert verdict(asha, 8.0, [nan, 9.0, nan]).cutoff == 9


def test_a_rung_takes_the_one_reading_that_its_metric_names() -> None:
    attacks = {"a": AttackSettings(readings=[5, 10, 40]), "b": AttackSettings(epsilon_255=4)}
    evaluate = EvaluateSettings(attacks=attacks, images=500)
    asha = AshaSettings(metric="eval/pgd_targeted_eps16/top1_at_40", images=100)
    assert asha.metric in asha_metrics(evaluate)
    found = rung_evaluation(evaluate, asha)
    assert found.attacks == {"a": AttackSettings(readings=[40])}
    assert (found.images, found.gallery_images) == (100, 0)
    nominal = rung_evaluation(evaluate, AshaSettings(metric="eval/nominal", images=900))
    assert (list(nominal.attacks), nominal.images) == (["a"], 500)


# Packing.


@pytest.mark.parametrize(
    ("nodes", "settings", "fits"),
    [
        ([Node(2)], {}, 2),
        ([Node(3), Node(3)], {"threads": 2}, 2),  # not 3: no worker is on two machines
        ([Node(8, 1), Node(8, 4)], {"gpus_per_worker": 1.0, "threads": 4}, 3),
        ([Node(8, 1)], {"gpus_per_worker": 0.5}, 2),
        ([Node(1)], {"threads": 2}, 0),
    ],
)
def test_room_is_counted_by_machine(nodes: list[Node], settings: dict[str, Any], fits: int) -> None:
    assert room(nodes, ClusterSettings(**settings)) == fits


HEAD = """
defaults:
  - schema
  - data: fashion_mnist_sample
  - model: small_s3ta
  - train: small_adversarial
  - attack@evaluate.attacks.pgd: small_pgd
  - tracking: none
  - _self_
name: mine
data: {train_images: 100}
train: {epochs: 3, batch: 32, microbatch: 8, curriculum: [{unroll: 2}, {from_epoch: 1, unroll: 4}]}
"""
Planned = Callable[..., Plan]


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    def plan(more: str = "", *overrides: str) -> Plan:
        file = tmp_path / "mine.yaml"
        file.write_text(HEAD + more)
        return make_plan(compose(file, [f"results={tmp_path}/r", *overrides]))

    return plan


def test_a_stage_that_never_fits_is_refused_with_the_numbers(planned: Planned) -> None:
    plan = planned("", "cluster.stage_workers=[1,3]")
    cluster = plan.experiment.cluster
    assert train_at_once(plan.trials, cluster, [Node(2)]) == 2
    require_room(plan.trials, cluster, [Node(3)])
    words = r"stage_workers is 3 in stage 2 of S3TA-4, each with 1 thread.* 2 CPU.* room for 2"
    with pytest.raises(UserError, match=words):
        require_room(plan.trials, cluster, [Node(2)])


def test_workers_of_a_stage_change_no_key(planned: Planned) -> None:
    (trial,) = planned("", "cluster.stage_workers=[1,3]").trials
    assert trial.key == planned().trials[0].key
    assert [leg.workers for leg in trial.legs] == [1, 3]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("cluster.stage_workers=[0]", "whole numbers of at least 1"),
        ("cluster.stage_workers=[1,1,1]", "one number for each of the 2 stages"),
        ("cluster.stage_workers=[5]", "at most 4, the microbatches of a step"),
        ("sweep.asha.metric=train/los", "one of train/loss, train/adversarial_top1"),
        ("sweep.asha.reduction_factor=1", "at least 2"),
        (
            "sweep.asha.grace=1",
            "sweep.asha.grace is no setting. sweep.asha has: metric, best, grace_epochs",
        ),
    ],
)
def test_bad_settings_of_sweeps_are_refused(planned: Planned, override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        planned("", override)


# What is new.


def test_a_new_value_on_an_axis_makes_one_trial_new_and_names_the_value(planned: Planned) -> None:
    first = planned("sweep: {grid: {train.seed: [0, 1]}}\n")
    for trial in first.trials:
        write_parts(first.storage, trial)
    stored = stored_settings(first.storage)
    more = planned("sweep: {grid: {train.seed: [0, 1, 7]}}\n").trials
    assert [why_new(trial, stored) for trial in more[:2]] == ["", ""]
    assert why_new(more[2], stored).startswith("new: train.seed is 7, not ")


def test_the_nearest_stored_trial_is_the_one_with_the_fewest_differences() -> None:
    own = {"a": 1, "b": 2, "c": [3]}
    assert differences(own, {"a": 1, "b": 5, "d": 4}) == [
        "b is 2, not 5",
        "c is [3], not nothing",
        "d is nothing, not 4",
    ]
    assert differences(own, dict(own)) == []


def test_a_leg_is_a_job_with_the_same_key(planned: Planned) -> None:
    job = train_job("nowhere")
    assert replace(job, until_epoch=2, workers=3).key == job.key
