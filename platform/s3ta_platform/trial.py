"""One trial from start to end: train if it is not trained, do the shards that are missing.

Where the work runs is the backend's business; inline and on Ray a trial takes the same path.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from s3ta.tally import Tally
from s3ta_platform.evaluate import evaluate
from s3ta_platform.events import Emit
from s3ta_platform.executors import run_inline
from s3ta_platform.jobs import TrainJob
from s3ta_platform.plan import TrialPlan
from s3ta_platform.shards import DoWork, Work
from s3ta_platform.storage import open_storage
from s3ta_platform.trials import read_trained


class Backend(Protocol):
    """Does a trial's two kinds of work."""

    def train(self, job: TrainJob, emit: Emit) -> None:
        """Train to the end, from the last checkpoint."""

    def fan_out(
        self, build: Callable[[], DoWork], jobs: Iterable[Work], /
    ) -> Iterator[tuple[Work, Tally]]:
        """Do the jobs, each exactly once."""


class Inline:
    """In this process."""

    def train(self, job: TrainJob, emit: Emit) -> None:
        from s3ta_platform.train import train  # on Ray this process needs no torch

        train(job, emit=emit)

    def fan_out(
        self, build: Callable[[], DoWork], jobs: Iterable[Work], /
    ) -> Iterator[tuple[Work, Tally]]:
        return run_inline(build, jobs)


def run_trial(plan: TrialPlan, backend: Backend, emit: Emit) -> None:
    """Leave the trial complete in the storage; what is there already is not done again."""
    storage = open_storage(plan.train.root)
    if read_trained(storage, plan.key) is None:
        backend.train(plan.train, emit)
    trained = read_trained(storage, plan.key)
    assert trained is not None, f"training of {plan.key} ended without its record"
    evaluate(plan.evaluation(trained), backend.fan_out, emit)
