"""The simulated cluster against closed forms."""

import math
from pathlib import Path

import pytest

from s3ta.errors import UserError
from s3ta_platform.compose import groups_folder
from s3ta_platform.hardware import PROFILES, parse_hardware
from s3ta_platform.simulate import Costs, Simulated, recommend, simulate
from s3ta_platform.simulating import (
    best_shard_steps,
    shard_seconds,
    simulate_files,
    works_of,
)

FREE = Costs(driver_s=0, store_s=0, store_per_s=math.inf)
"""Nothing but the attack costs anything."""


@pytest.mark.parametrize(("shards", "workers"), [(10, 1), (10, 3), (12, 4), (5, 8), (1000, 64)])
def test_equal_shards_without_losses_take_whole_rounds(shards: int, workers: int) -> None:
    found = simulate([7.0] * shards, workers, costs=FREE)
    assert found.makespan_s == pytest.approx(7 * math.ceil(shards / workers))
    assert (found.losses, found.wasted_s) == (0, 0)
    assert found.efficiency == pytest.approx(shards / (workers * math.ceil(shards / workers)))


def test_one_worker_takes_the_sum_and_what_each_shard_costs_beside() -> None:
    costs = Costs(driver_s=0.5, store_s=0.25, store_per_s=math.inf)
    found = simulate([1.0, 2.0, 3.0], 1, costs=costs)
    assert found.makespan_s == pytest.approx(6 + 3 * 0.75)
    assert found.driver_share == pytest.approx(1.5 / 8.25)


def test_a_driver_that_books_one_by_one_is_the_limit_of_many_workers() -> None:
    costs = Costs(driver_s=0.1, store_s=0, store_per_s=math.inf)
    found = simulate([1.0] * 1000, 500, costs=costs)
    assert found.makespan_s == pytest.approx(1 + 1000 * 0.1)  # the first is ready after 1 s
    assert found.limit == "the driver"


def test_a_slow_store_is_the_limit_likewise() -> None:
    costs = Costs(driver_s=0, store_s=0, store_per_s=30, puts=3)
    found = simulate([1.0] * 1000, 500, costs=costs)
    assert found.makespan_s == pytest.approx(1 + 1000 * 0.1)
    assert found.limit == "the store"


def test_a_late_long_shard_is_named_as_the_limit() -> None:
    found = simulate([1.0] * 10 + [100.0], 11, costs=FREE)
    assert found.makespan_s == 100
    assert found.limit == "long shards"


def test_as_many_workers_are_lost_as_the_rate_says() -> None:
    # 400 workers at work for 50 hours, lost at 0.05 an hour: 1,000 expected, sd 32. With states
    # saved every 180 s half of that is lost each time, and the start of the next.
    found = simulate([3600.0] * 20_000, 400, costs=FREE, losses_per_hour=0.05, seed=1)
    assert found.losses == pytest.approx(1000, abs=4 * math.sqrt(1000))
    per_loss = found.wasted_s / found.losses
    assert per_loss == pytest.approx(180 / 2 + FREE.start_s, rel=0.05)
    assert found.useful_s == 20_000 * 3600
    ideal = 50 * 3600
    assert ideal < found.makespan_s < ideal * 1.05
    assert found == simulate([3600.0] * 20_000, 400, costs=FREE, losses_per_hour=0.05, seed=1)
    assert found != simulate([3600.0] * 20_000, 400, costs=FREE, losses_per_hour=0.05, seed=2)


def test_nothing_is_lost_twice_and_every_shard_ends() -> None:
    # Lost every minute on average, saved every 10 s: a shard of 10 minutes still ends.
    costs = Costs(driver_s=0, store_s=0, store_per_s=math.inf, start_s=1, snapshot_s=10)
    found = simulate([600.0], 1, costs=costs, losses_per_hour=60, seed=3)
    assert found.losses > 3
    assert found.makespan_s == pytest.approx(600 + found.wasted_s)


def run(makespan_s: float) -> Simulated:
    return Simulated(
        workers=1,
        makespan_s=makespan_s,
        useful_s=1,
        wasted_s=0,
        losses=0,
        driver_share=0,
        store_share=0,
        mlflow_share=0,
    )


def test_the_largest_shards_that_cost_no_time_are_recommended() -> None:
    assert recommend([(1, run(100)), (4, run(101)), (16, run(103))]) == 4


def test_shards_of_a_file_do_all_its_work_whatever_their_size() -> None:
    works, profile = works_of(groups_folder() / "paper" / "table1_s3ta_16.yaml"), PROFILES["a100"]
    (work,) = works
    small, large = (shard_seconds(works, profile, times) for times in (0.5, 8))
    assert len(small) > len(large)
    attained = profile.attained(work.experiment.evaluate.engine.dtype)
    flop = 2 * work.cost.evaluation
    for lengths in (small, large):
        assert sum(lengths) == pytest.approx(flop / math.sqrt(attained.low * attained.high))
    few, many = (best_shard_steps(works, parse_hardware(f"a100x{n}")) for n in (4, 256))
    assert few >= many


@pytest.mark.parametrize("workers", ["", "0", "8,x"])
def test_numbers_of_workers_that_are_none_are_refused(workers: str) -> None:
    with pytest.raises(UserError, match="must be whole numbers of at least 1"):
        simulate_files(
            [Path("x.yaml")], hardware="h100", workers=workers, losses_per_hour=0, seed=0
        )
