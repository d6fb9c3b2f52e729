"""One trial from start to end: train if it has to be, do the shards and pieces that are missing.

Where the work runs is the backend's business; inline and on Ray a trial takes the same path.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from s3ta.tally import Tally
from s3ta_platform.analyze import analyze
from s3ta_platform.evaluate import evaluate
from s3ta_platform.events import Emit
from s3ta_platform.executors import JobFailure, run_inline
from s3ta_platform.jobs import TrainJob
from s3ta_platform.plan import TrialPlan
from s3ta_platform.shards import DoWork, Work
from s3ta_platform.storage import open_storage


class Backend(Protocol):
    """Does a trial's two kinds of work."""

    def train(self, job: TrainJob, emit: Emit) -> None:
        """Train to the end, from the last checkpoint."""

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


def run_trial(plan: TrialPlan, backend: Backend, emit: Emit) -> None:
    """Leave the trial complete in the storage; what is there already is not done again."""
    storage = open_storage(plan.train.root)
    if plan.trained(storage) is None:
        backend.train(plan.train, emit)
    trained = plan.trained(storage)
    assert trained is not None, f"training of {plan.key} ended without its record"
    job = plan.evaluation(trained)
    evaluate(job, backend.fan_out, emit)
    analyze(job, backend.fan_out, emit)
