"""An evaluation that stops early stops where the rule says, whatever the order of its shards."""

import random
from dataclasses import replace

import numpy as np
import pytest
from tiny import evaluate_job, train_job

from s3ta.settings import AttackSettings
from s3ta.statistics import stopping_point
from s3ta.tally import Rows
from s3ta_platform.jobs import EvaluateJob
from s3ta_platform.shards import Shard, plan_shards
from s3ta_platform.stopping import Stopping, outcomes, stopped_after
from s3ta_platform.train import train

IMAGES = 6000
IDS = np.random.default_rng(5).permutation(IMAGES) + 10


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> EvaluateJob:
    root = str(tmp_path_factory.mktemp("trained"))
    train(train_job(root, epochs=1))
    return evaluate_job(root)


@pytest.fixture(scope="module")
def shards(job: EvaluateJob) -> list[Shard]:
    attacks = {"pgd": AttackSettings(readings=[10, 50])}
    settings = replace(job.evaluate, attacks=attacks, shard_steps=50 * 64)
    return plan_shards(replace(job, evaluate=settings), IDS)


def columns(shard: Shard) -> Rows:
    """Made-up rows: an image is right where its id is not a multiple of 4, fooled where of 10."""
    ids = np.repeat(np.array(shard.image_ids), len(shard.trajectory.readings))
    steps = np.tile(np.array(shard.trajectory.readings), len(shard.image_ids))
    return {"image_id": ids, "step": steps, "correct": ids % 4 != 0, "fooled": ids % 10 == 0}


def expected(halfwidth: float) -> int | None:
    whole = np.stack([IDS % 4 != 0, IDS % 10 == 0], axis=1)
    return stopping_point(whole, IMAGES, halfwidth)


@pytest.mark.parametrize("halfwidth", [0.02, 0.015, 0.01, 0.001])
def test_the_point_is_the_same_in_every_order(halfwidth: float, shards: list[Shard]) -> None:
    for seed in range(3):
        stopping = Stopping(shards, IMAGES, halfwidth)
        order = random.Random(seed).sample(shards, len(shards)) if seed else shards
        for shard in order:
            stopping.add(shard, columns(shard))
        assert stopping.point == expected(halfwidth)
    assert expected(0.02) is not None
    assert 1000 < (expected(0.02) or 0) < (expected(0.01) or 0) < IMAGES


def test_only_the_contiguous_beginning_counts(shards: list[Shard]) -> None:
    stopping = Stopping(shards, IMAGES, 0.02)
    for shard in shards[1:]:
        stopping.add(shard, columns(shard))
    assert stopping.point is None
    stopping.add(shards[0], columns(shards[0]))
    assert stopping.point == expected(0.02)


def test_nothing_is_read_beyond_the_point(shards: list[Shard]) -> None:
    read: list[Shard] = []

    def reading(shard: Shard) -> Rows:
        read.append(shard)
        return columns(shard)

    point = stopped_after(shards, IMAGES, 0.02, reading)
    assert point is not None
    assert point == expected(0.02)
    assert max(s.first for s in read) <= point
    assert stopped_after(shards, IMAGES, None, reading) is None
    assert stopped_after(shards, IMAGES, 0.02, lambda shard: None) is None


def test_of_several_starts_an_image_counts_by_the_worst(job: EvaluateJob) -> None:
    """Start 0 fells every 4th image, start 1 every 5th: right is who withstands both."""
    attacks = {"pgd": AttackSettings(readings=[50], restarts=2)}
    settings = replace(job.evaluate, attacks=attacks, shard_steps=50 * 64)
    shards = plan_shards(replace(job, evaluate=settings), IDS)
    assert {shard.trajectory.restart for shard in shards} == {0, 1}

    def rows(shard: Shard) -> Rows:
        ids = np.array(shard.image_ids)
        own = (4, 5)[shard.trajectory.restart]
        hit = (10, 15)[shard.trajectory.restart]
        steps = np.full(len(ids), 50)
        return {"image_id": ids, "step": steps, "correct": ids % own != 0, "fooled": ids % hit == 0}

    right = (IDS % 4 != 0) & (IDS % 5 != 0)
    fooled = (IDS % 10 == 0) | (IDS % 15 == 0)
    wanted = stopping_point(np.stack([right, fooled], axis=1), IMAGES, 0.02)
    stopping = Stopping(shards, IMAGES, 0.02)
    for shard in random.Random(1).sample(shards, len(shards)):
        stopping.add(shard, rows(shard))
    assert stopping.point == wanted
    # 60 % of the images withstand both, 75 % the first alone: that would end it sooner.
    assert wanted is not None
    assert wanted > (expected(0.02) or 0)


def test_a_start_that_is_behind_holds_the_others_up(job: EvaluateJob) -> None:
    attacks = {"pgd": AttackSettings(readings=[50], restarts=2)}
    settings = replace(job.evaluate, attacks=attacks, shard_steps=50 * 64)
    shards = plan_shards(replace(job, evaluate=settings), IDS)
    stopping = Stopping(shards, IMAGES, 0.02)
    for shard in shards:
        if shard.trajectory.restart == 0:
            stopping.add(shard, columns(shard))
    assert stopping.point is None


def test_a_quarantined_image_counts_as_fooled(shards: list[Shard]) -> None:
    rows = columns(shards[0])
    lost = rows["image_id"] != shards[0].image_ids[3]
    found = outcomes(shards[0], {name: column[lost] for name, column in rows.items()})
    readings = len(shards[0].trajectory.readings)
    assert found[3].tolist() == [False] * readings + [True] * readings
    assert (np.delete(found, 3, 0) == np.delete(outcomes(shards[0], rows), 3, 0)).all()
