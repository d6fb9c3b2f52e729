"""One trial from start to end: train if it has to be, do the shards and pieces that are missing.

Where the work runs is the backend's business; inline and on Ray a trial takes the same path.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from s3ta.tally import Tally
from s3ta_platform.analyze import analyze
from s3ta_platform.evaluate import evaluate
from s3ta_platform.events import Emit
from s3ta_platform.executors import JobFailure, run_inline
from s3ta_platform.jobs import TrainJob
from s3ta_platform.legs import Leg, legs_left
from s3ta_platform.plan import TrialPlan
from s3ta_platform.rungs import attack_rung, needs_attack, rung_name
from s3ta_platform.shards import DoWork, Work
from s3ta_platform.storage import Storage, open_storage
from s3ta_platform.trials import checkpoint_steps, read_trained


class Backend(Protocol):
    """Does a trial's two kinds of work."""

    def train(self, job: TrainJob, emit: Emit) -> None:
        """Train to the end of the job's leg, from the last checkpoint."""

    def fan_out(
        self,
        build: Callable[[], DoWork],
        jobs: Iterable[Work],
        /,
        *,
        instead: Callable[[JobFailure], Sequence[Work]],
        on_pulse: Callable[[Work, float], None],
    ) -> Iterator[tuple[Work, Tally]]:
        """Do the jobs, each exactly once (see executors)."""


class Inline:
    """In this process."""

    def train(self, job: TrainJob, emit: Emit) -> None:
        from s3ta_platform.train import train  # on Ray this process needs no torch

        train(job, emit=emit)

    def fan_out(
        self,
        build: Callable[[], DoWork],
        jobs: Iterable[Work],
        /,
        *,
        instead: Callable[[JobFailure], Sequence[Work]],
        on_pulse: Callable[[Work, float], None],
    ) -> Iterator[tuple[Work, Tally]]:
        return run_inline(build, jobs, instead=instead, on_pulse=on_pulse)


def run_trial(
    plan: TrialPlan,
    backend: Backend,
    emit: Emit,
    goes_on: Callable[[Leg], bool] = lambda leg: True,
) -> None:
    """Leave the trial complete in the storage, or stopped at the end of a leg.

    What is there already is not done again.
    """
    storage = open_storage(plan.train.root)
    for leg in to_do(plan, storage):
        run_leg(plan, leg, backend, emit)
        if not leg.last and not goes_on(leg):
            return
    judge(plan, backend, emit)


def to_do(plan: TrialPlan, storage: Storage) -> tuple[Leg, ...]:
    """The legs that training has before it; none for a trained model."""
    if plan.trained(storage) is not None:
        return ()
    step = max(checkpoint_steps(storage, plan.key), default=0)
    return legs_left(plan.legs, step, plan.epoch_steps)


def run_leg(plan: TrialPlan, leg: Leg, backend: Backend, emit: Emit) -> None:
    """Train to the end of a leg; the model of a rung is attacked, if halving goes by that."""
    storage = open_storage(plan.train.root)
    attacked = leg.rung and needs_attack(plan.experiment.sweep.halving)
    record = rung_name(plan.key, leg.until) if attacked else ""
    step = max(checkpoint_steps(storage, plan.key), default=0)
    recorded = not record or read_trained(storage, record) is not None
    if leg.last or step < leg.until * plan.epoch_steps or not recorded:
        job = replace(plan.train, until_epoch=leg.until, workers=leg.workers, record=record)
        backend.train(job, emit)
    if attacked:
        attack_rung(storage, plan, leg.until, backend.fan_out)


def judge(plan: TrialPlan, backend: Backend, emit: Emit) -> None:
    """Attack the trained model."""
    trained = plan.trained(open_storage(plan.train.root))
    assert trained is not None, f"training of {plan.key} ended without its record"
    job = plan.evaluation(trained)
    evaluate(job, backend.fan_out, emit)
    analyze(job, backend.fan_out, emit)
