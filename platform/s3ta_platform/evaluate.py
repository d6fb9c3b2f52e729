"""The fan-out evaluation of one trained model: find what is missing, have it done, count."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol

from s3ta.statistics import wilson
from s3ta.tally import Rows, Tally
from s3ta_platform.events import Emit, Event, Phase, ignore
from s3ta_platform.jobs import EvaluateJob, open_images
from s3ta_platform.rows import read_rows
from s3ta_platform.shards import (
    DoWork,
    Shard,
    Work,
    evaluation_ids,
    plan_portraits,
    plan_shards,
)
from s3ta_platform.storage import Storage, open_storage


class FanOut(Protocol):
    """Does jobs somewhere, each exactly once, in any order (see executors)."""

    def __call__(
        self, build: Callable[[], DoWork], jobs: Iterable[Work], /
    ) -> Iterator[tuple[Work, Tally]]: ...


def build_worker(job: EvaluateJob) -> DoWork:
    """Called in the worker's process, the only one that needs torch."""
    from s3ta_platform.shard_worker import build_worker

    return build_worker(job)


def evaluate(job: EvaluateJob, fan_out: FanOut, emit: Emit = ignore) -> int:
    """Do the shards and the gallery that are not stored yet; gives how many were done."""
    storage = open_storage(job.root)
    ids = evaluation_ids(open_images(job.data.test, job.data, job.model).ids_N, job.evaluate)
    shards, portraits = plan_shards(job, ids), plan_portraits(job, ids)
    todo: list[Work] = missing(storage, shards)
    count = _Count(job, shards, emit)
    for shard in shards:
        if shard not in todo:
            count.add(shard, Tally.of(_columns(storage, shard)))
    if portraits is not None and not storage.exists(portraits.name):
        todo.append(portraits)
    for work, tally in fan_out(partial(build_worker, job), todo):
        if isinstance(work, Shard):
            count.add(work, tally)
    count.finish()
    return len(todo)


def missing(storage: Storage, shards: list[Shard]) -> list[Work]:
    """The shards without a stored result."""
    stored = set(storage.list("evaluations/"))
    return [shard for shard in shards if shard.name not in stored]


class _Count:
    """Adds up tallies and tells how far the evaluation is."""

    def __init__(self, job: EvaluateJob, shards: list[Shard], emit: Emit) -> None:
        self.job, self.emit = job, emit
        self.total = sum(len(s.image_ids) for s in shards)
        self.done = 0
        self.strongest = max((s.trajectory.steps for s in shards), default=0)
        self.tally = Tally()

    def add(self, shard: Shard, tally: Tally) -> None:
        self.done += len(shard.image_ids)
        if shard.trajectory.steps == self.strongest:
            self.tally += tally
        self.emit(self._event(durable=False))

    def finish(self) -> None:
        self.emit(self._event(durable=True))

    def _event(self, *, durable: bool) -> Event:
        return Event(
            trial=self.job.trial,
            phase=Phase.evaluate,
            done=self.done,
            total=self.total,
            note=self._note(),
            durable=durable,
        )

    def _note(self) -> str:
        """Robust accuracy so far, at the last reading of the longest trajectory."""
        if not self.tally.images:
            return ""
        correct = self.tally.correct[self.strongest]
        low, high = wilson(correct, self.tally.images)
        share = correct / self.tally.images
        return f"top-1@{self.strongest} {share:.1%} [{low:.1%}, {high:.1%}]"


def _columns(storage: Storage, shard: Shard) -> Rows:
    table = read_rows(storage, shard.name)
    return {name: table[name].to_numpy() for name in table.column_names}
