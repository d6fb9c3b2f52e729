"""Budgets: counted as by hand, refused beforehand, and ended in the middle so that it goes on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from s3ta.errors import UserError
from s3ta_platform.compose import compose
from s3ta_platform.events import Event, Phase
from s3ta_platform.forecast import forecast
from s3ta_platform.hardware import parse_hardware
from s3ta_platform.plan import Plan, make_plan
from s3ta_platform.spending import Budget, Meter, least_hours, require_budget, spent_before
from s3ta_platform.work import planned_work

FILE = """
defaults:
  - schema
  - data: fashion_mnist_sample
  - model: small_s3ta
  - train: small_adversarial
  - attack@evaluate.attacks.pgd: small_pgd
  - cluster: inline
  - tracking: none
  - _self_
name: mine
data: {train_images: 100}
train: {epochs: 3, batch: 32, microbatch: 8}
evaluate: {images: 40, tile: 8}
"""


def planned(folder: Path, *overrides: str) -> Plan:
    file = folder / "mine.yaml"
    file.write_text(FILE)
    return make_plan(compose(file, [f"results={folder}/r", *overrides]))


def test_a_meter_adds_up_devices_times_seconds() -> None:
    meter = Meter(last=10)
    meter.heard("a", 2, 11)  # nobody was at work before
    meter.heard("b", 3, 14)  # 3 s of 2
    meter.heard("a", 0, 15)  # 1 s of 2 + 3
    meter.heard("b", 0, 25)  # 10 s of 3
    assert meter.spent_s == 3 * 2 + 5 + 30


def test_trials_together_use_no_more_devices_than_there_are() -> None:
    meter = Meter(most=2)
    for trial in ("a", "b"):
        meter.heard(trial, 2, 0)
    meter.heard("a", 2, 7)
    assert meter.spent_s == 14


def test_a_plan_that_needs_more_than_its_budget_is_refused_with_the_numbers(tmp_path: Path) -> None:
    plan = planned(tmp_path, "budget.gpu_hours=1e-9")
    work = planned_work(plan, plan.trials[0])
    assert work is not None
    least = forecast([work], parse_hardware("cpu")).device_hours.low
    assert least_hours(plan, plan.trials) == pytest.approx(least)
    with pytest.raises(UserError, match=f"is 1e-09, but mine needs at least {least:.3g} device"):
        require_budget(plan, plan.trials)
    require_budget(plan, [])  # nothing left to do costs nothing
    require_budget(planned(tmp_path, f"budget.gpu_hours={2 * least}"), plan.trials)
    require_budget(planned(tmp_path), plan.trials)


def test_what_is_done_is_not_needed_again(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    work = planned_work(plan, plan.trials[0])
    assert work is not None
    found = forecast([work], parse_hardware("cpu")).trials[0]
    trained = {"step": 9, "model_digest": "m", "parameters": 5}
    plan.storage.put_new(f"trials/{plan.trials[0].key}/trained.json", json.dumps(trained).encode())
    assert least_hours(plan, plan.trials) * 3600 == pytest.approx(found.attacks.low)


def test_what_earlier_runs_have_noted_counts_once_each(tmp_path: Path) -> None:
    storage = planned(tmp_path).storage
    for name, seconds in (("a-000001", 5), ("a-000002", 7), ("b-000001", 30)):
        storage.put_new(f"spent/mine/{name}.json", json.dumps({"seconds": seconds}).encode())
    storage.put_new("spent/mine/c-000001.json", b"?")
    assert spent_before(storage, "spent/mine/") == 37
    plan = planned(tmp_path, "budget.gpu_hours=0.0102")
    with pytest.raises(UserError, match=r"has spent 0\.0103: nothing was"):
        require_budget(plan, plan.trials)


def ticking(times: list[float]) -> Callable[[], float]:
    return lambda: times.pop(0)


def test_a_run_that_has_spent_its_budget_is_interrupted_and_notes_it(tmp_path: Path) -> None:
    plan, said = planned(tmp_path, "budget.gpu_hours=0.01"), list[str]()
    budget = Budget(plan, said.append, ticking([0.0, 1.0, 30.0, 37.5]))
    event = Event(trial=plan.trials[0].key, phase=Phase.train, done=1, total=9)
    budget.heard(event)
    budget.heard(event)
    assert budget.spent_s == 29
    with pytest.raises(KeyboardInterrupt):
        budget.heard(event)
    assert "budget of 0.01 device hours is spent (0.0101)" in said[0]
    budget.note()
    assert spent_before(plan.storage, "spent/mine/") == 36.5


def test_without_a_budget_nothing_is_counted_or_stored(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    budget = Budget(plan, print)
    budget.heard(Event(trial=plan.trials[0].key, phase=Phase.train, done=1, total=9, durable=True))
    budget.note()
    assert not (tmp_path / "r").exists()
