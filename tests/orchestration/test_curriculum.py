"""A curriculum in legs: the same bits as one plain loop; who goes on, with what, is decided right.

Trials of Tune's are stand-ins here; test_sweeps.py runs real ones.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.tune.schedulers import TrialScheduler
from tiny import DATA, KEY, train_job

from s3ta.batch import Batch
from s3ta.fastcopy import FastCopy
from s3ta.model import build
from s3ta.order import epoch_order
from s3ta.schedules import learning_rate
from s3ta.settings import StageSettings, TrainAttackSettings
from s3ta.sums import StepSums
from s3ta.training import Moment, add_microbatch, optimizer
from s3ta_platform import checkpoints
from s3ta_platform.asha import Asha, rung_value
from s3ta_platform.compose import compose
from s3ta_platform.curriculum import Legs
from s3ta_platform.devices import pin_arithmetic
from s3ta_platform.jobs import TrainJob, open_images, training_ids
from s3ta_platform.plan import Plan, TrialPlan, make_plan, trial_state
from s3ta_platform.publish import Publisher
from s3ta_platform.storage import open_storage
from s3ta_platform.tracking_memory import MemoryTracker
from s3ta_platform.train import train
from s3ta_platform.trials import checkpoint_prefix, read_history, read_trained, trained_name

Bits = tuple[dict[str, torch.Tensor], list[float]]
STAGES = [(1, 1, 2, 16.0), (3, 3, 1, 16.0), (4, 2, 3, 8.0)]
"""Last epoch, unroll, attack steps and epsilon of each."""
EPOCH_STEPS = 2


def job_in(root: Path) -> TrainJob:
    """Eight steps in four epochs and three stages."""
    begins = [0, *(until for until, *_ in STAGES[:-1])]
    curriculum = [
        StageSettings(from_epoch=begin, unroll=unroll, attack_steps=steps, epsilon_255=epsilon)
        for begin, (_, unroll, steps, epsilon) in zip(begins, STAGES, strict=True)
    ]
    job = train_job(str(root), curriculum=curriculum)
    return replace(job, data=replace(DATA, train_images=48 * EPOCH_STEPS))


@pytest.fixture(scope="module")
def plain_loop() -> Bits:
    """The stages one after the other, each with settings of its own: weights, and all losses."""
    job = job_in(Path("nowhere"))
    pin_arithmetic(job.threads)
    images = open_images(job.data.train, job.data, job.model)
    ids = training_ids(images.ids_N, job.data)
    net: Any = build(job.model, job.classes, job.train.seed)
    net = net.to(memory_format=torch.channels_last)
    sgd, losses, epoch = optimizer(net, job.train), [], 0
    for until, unroll, steps, epsilon in STAGES:
        attack = TrainAttackSettings(epsilon_255=epsilon, steps=steps)
        s, net.unroll = replace(job.train, curriculum=[], attack=attack), unroll
        while epoch < until:
            order = epoch_order(ids, s, epoch)
            for within in range(EPOCH_STEPS):
                step, sums = epoch * EPOCH_STEPS + within, StepSums(net, s)
                fast = FastCopy(net, s, images.shape_CHW)
                for index in range(s.microbatches):
                    start = within * s.batch + index * s.microbatch
                    own = order[start : start + s.microbatch]
                    pixels, labels = images.read(own)
                    batch = Batch(images_BCHW=pixels, labels_B=labels, image_ids_B=own)
                    moment = Moment(epoch, step)
                    add_microbatch(net, sums, batch, s, moment, index, job.classes, fast=fast)
                losses.append(sums.apply().loss)
                for group in sgd.param_groups:
                    group["lr"] = learning_rate(s, step / EPOCH_STEPS)
                sgd.step()
            epoch += 1
    return net.state_dict(), losses


def trained_in(root: Path) -> Bits:
    storage, steps = open_storage(str(root)), STAGES[-1][0] * EPOCH_STEPS
    saved = checkpoints.load(storage, checkpoint_prefix(KEY), steps)
    return saved.tensors["model"], [point["loss"] for point in read_history(storage, KEY)]


def assert_bit_equal(one: Bits, other: Bits) -> None:
    assert one[1] == other[1]
    assert one[0].keys() == other[0].keys()
    for name, tensor in one[0].items():
        assert torch.equal(tensor, other[0][name]), name


def test_a_curriculum_in_legs_is_its_stages_trained_by_a_plain_loop(
    plain_loop: Bits, tmp_path: Path
) -> None:
    job = job_in(tmp_path)
    for until, *_ in STAGES:
        assert read_trained(open_storage(str(tmp_path)), KEY) is None
        train(replace(job, until_epoch=until))
    assert_bit_equal(trained_in(tmp_path), plain_loop)


def test_stages_change_what_is_computed(plain_loop: Bits, tmp_path: Path) -> None:
    """And the claim above is not empty."""
    train(replace(job_in(tmp_path), train=replace(job_in(tmp_path).train, curriculum=[])))
    losses = trained_in(tmp_path)[1]
    assert losses[0] != plain_loop[1][0]
    assert len(set(losses) & set(plain_loop[1])) == 0


def test_the_stage_is_in_the_checkpoint_and_in_the_curve(tmp_path: Path) -> None:
    job, storage = job_in(tmp_path), open_storage(str(tmp_path))
    train(replace(job, until_epoch=3, record="half-way"))
    meta = checkpoints.load(storage, checkpoint_prefix(KEY), 6).meta
    stage = {"index": 1, "unroll": 3, "attack_steps": 1, "epsilon_255": 16.0}
    assert meta["stage"] == stage, "the stage that led there, not the next one"
    assert [point["stage"] for point in read_history(storage, KEY)] == [0, 0, 1, 1, 1, 1]
    half_way = read_trained(storage, "half-way")
    assert half_way is not None
    assert half_way.step == 6
    train(replace(job, until_epoch=1, record="passed"))
    assert read_trained(storage, "passed") is None, "the weights of epoch 1 are not there any more"


# The scheduler.

EXPERIMENT = """
defaults:
  - schema
  - data: fashion_mnist_sample
  - model: small_s3ta
  - train: small_adversarial
  - attack@evaluate.attacks.pgd: small_pgd
  - tracking: none
  - _self_
name: halved
sweep:
  grid: {train.seed: [0, 1, 2, 3]}
  asha: {metric: train/loss, best: min, reduction_factor: 2}
data: {train_images: 64}
train:
  epochs: 4
  batch: 32
  microbatch: 8
  curriculum: [{unroll: 2}, {from_epoch: 2, unroll: 4}]
cluster: {stage_workers: [1, 2]}
"""
Planned = Callable[..., Plan]


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    def plan(*overrides: str) -> Plan:
        file = tmp_path / "halved.yaml"
        file.write_text(EXPERIMENT)
        return make_plan(compose(file, [f"results={tmp_path}/r", *overrides]))

    return plan


def pretend(plan: Plan, trial: TrialPlan, *losses: float) -> None:
    """Two steps an epoch with that mean loss, up to the end of the last one given, saved."""
    history = [
        {"step": 2 * epoch + half, "loss": loss + 0.1 * (2 * half - 3), "time": 1.0}
        for epoch, loss in enumerate(losses)
        for half in (1, 2)
    ]
    prefix, meta = checkpoint_prefix(trial.key), {"trial": trial.key, "history": history}
    checkpoints.save(plan.storage, prefix, 2 * len(losses), {}, meta)


class Driver:
    """A start of the sweep's driver, with Tune's trials as they are seen by the scheduler."""

    def __init__(self, plan: Plan) -> None:
        halving = plan.experiment.sweep.halving
        asha = None if halving is None else Asha(halving, plan.storage)
        if asha is not None:
            asha.recall(plan.trials)
        plans = {trial.key: trial for trial in plan.trials}
        self.scheduler = Legs(plans, plan.storage, asha)

    def add(self, trial: TrialPlan) -> Any:
        added: Any = SimpleNamespace(config={"key": trial.key})
        added.set_config = lambda config: setattr(added, "config", config)
        self.scheduler.on_trial_add(None, added)
        return added

    def end_of_leg(self, trial: Any) -> str:
        leg = trial.config["leg"]
        result = {"stage_done": leg["stage"], "epoch": leg["until"]}
        return self.scheduler.on_trial_result(None, trial, result)


def leg_of(trial: Any) -> tuple[int, int, int]:
    leg = trial.config["leg"]
    return leg["until"], leg["unroll"], leg["workers"]


def test_a_trial_is_paused_and_given_the_next_unroll_and_its_workers(planned: Planned) -> None:
    plan = planned("sweep.asha.metric=''")
    driver = Driver(plan)
    trial = driver.add(plan.trials[0])
    assert leg_of(trial) == (2, 2, 1)
    assert driver.end_of_leg(trial) == TrialScheduler.PAUSE
    assert leg_of(trial) == (4, 4, 2)
    assert driver.scheduler.on_trial_result(None, trial, {"complete": 1}) == "CONTINUE"


@pytest.mark.parametrize(("epochs_saved", "until"), [(0, 2), (1, 2), (2, 2), (3, 4), (4, 4)])
def test_a_restart_goes_on_in_the_leg_of_the_last_checkpoint(
    planned: Planned, epochs_saved: int, until: int
) -> None:
    plan = planned("sweep.asha.metric=''")
    if epochs_saved:
        pretend(plan, plan.trials[0], *[2.0] * epochs_saved)
    assert leg_of(Driver(plan).add(plan.trials[0]))[0] == until


def test_a_trained_model_has_no_leg_left(planned: Planned) -> None:
    plan = planned()
    record = {"step": 8, "model_digest": "m", "parameters": 5}
    plan.storage.put_new(trained_name(plan.trials[0].key), json.dumps(record).encode())
    assert Driver(plan).add(plan.trials[0]).config["leg"] is None


def test_the_worse_half_ends_at_a_rung_and_says_so(planned: Planned) -> None:
    plan = planned()
    driver, decisions = Driver(plan), []
    for trial, loss in zip(plan.trials, (2.0, 1.0, 3.0, 1.5), strict=True):
        pretend(plan, trial, loss)
        assert rung_value(plan.storage, trial, 1) == pytest.approx(loss)
        decisions.append(driver.end_of_leg(driver.add(trial)))
    # Cutoffs: none; 2.0; the median of 2 and 1; that of 2, 1 and 3.
    assert decisions == ["PAUSE", "PAUSE", "STOP", "PAUSE"]
    states = [trial_state(plan.storage, trial) for trial in plan.trials]
    assert [state.over for state in states] == [False, False, True, False]
    assert states[2].stopped is not None
    assert states[2].stopped.words == (
        "stopped after epoch 1: train/loss was 3, the cutoff of 2 other trial(s) 1.5"
    )


def test_a_restart_decides_by_the_rungs_of_before(planned: Planned) -> None:
    """Of trials that are finished, stopped, or further on."""
    plan = planned()
    a, b, c, d = plan.trials
    pretend(plan, a, 1.0, 0.5)
    pretend(plan, b, 2.0)
    pretend(plan, c, 1.2, 0.6, 0.6, 0.6)
    pretend(plan, d, 1.9, 0.7)
    driver = Driver(plan)
    assert driver.end_of_leg(driver.add(d)) == "STOP", "0.5 and 0.6 were there at epoch 2"
    assert driver.end_of_leg(driver.add(b)) == "STOP", "1, 1.2 and 1.9 at epoch 1"
    assert driver.end_of_leg(driver.add(a)) == "PAUSE", "its own value does not count as another's"


def test_a_stop_holds_for_its_sweep_alone(planned: Planned) -> None:
    plan = planned()
    driver = Driver(plan)
    for trial, loss in zip(plan.trials[:2], (1.0, 2.0), strict=True):
        pretend(plan, trial, loss)
        driver.end_of_leg(driver.add(trial))
    assert trial_state(plan.storage, plan.trials[1]).over
    for override in ("name=other", "sweep.asha.metric=''"):
        other = planned(override)
        assert other.trials[1].key == plan.trials[1].key
        assert not trial_state(other.storage, other.trials[1]).over


def test_a_stopped_trials_run_is_finished_and_says_that_it_was_stopped(planned: Planned) -> None:
    plan, tracker = planned(), MemoryTracker()
    publisher, driver = Publisher(tracker, plan), Driver(plan)
    for trial, loss in zip(plan.trials[:2], (1.0, 2.0), strict=True):
        publisher.start_trial(trial)
        assert tracker.runs[f"trial-{trial.key}"].tags["stopped_early"] == "no"
        pretend(plan, trial, loss)
        driver.end_of_leg(driver.add(trial))
    publisher.finish_trial(plan.trials[1], failed=False)
    run = tracker.runs[f"trial-{plan.trials[1].key}"]
    assert run.status == "FINISHED"
    assert run.tags["stopped_early"].startswith("stopped after epoch 1: train/loss was 2, ")
    assert [run.points["train/loss", step].value for step in (1, 2)] == [1.9, 2.1]
