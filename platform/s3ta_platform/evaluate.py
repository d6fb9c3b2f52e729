"""The fan-out evaluation of one trained model: find what is missing, do it, count."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from s3ta.evaluation import Batch, Conditions, Rows, Tally, attack_images
from s3ta.model import build
from s3ta.statistics import wilson
from s3ta_platform import checkpoints
from s3ta_platform.events import Emit, Event, Phase, ignore
from s3ta_platform.gallery import make_gallery
from s3ta_platform.jobs import EvaluateJob, open_images
from s3ta_platform.record import RESULT_VERSION, plain
from s3ta_platform.rows import read_rows, to_parquet
from s3ta_platform.shards import (
    Portraits,
    Shard,
    evaluation_ids,
    plan_portraits,
    plan_shards,
)
from s3ta_platform.storage import Storage, open_storage
from s3ta_platform.trials import checkpoint_prefix

Work = Shard | Portraits
DoWork = Callable[[Work], Tally]


class FanOut(Protocol):
    """Does jobs somewhere, each exactly once, in any order (see executors)."""

    def __call__(
        self, build: Callable[[], DoWork], jobs: Iterable[Work], /
    ) -> Iterator[tuple[Work, Tally]]: ...


@dataclass(frozen=True)
class Worker:
    """Builds, in the process that calls it, the function that does a piece of the evaluation."""

    job: EvaluateJob

    def __call__(self) -> DoWork:
        job = self.job
        torch.set_num_threads(job.threads)
        storage = open_storage(job.root)
        images = open_images(job.data.test, job.data, job.model)
        saved = checkpoints.load(storage, checkpoint_prefix(job.trial), job.checkpoint_step)
        model = build(job.model, job.classes, seed=0)
        checkpoints.load_into(model, saved.tensors["model"])
        model.to(job.device)
        conditions = Conditions(
            classes=job.classes,
            seed=job.evaluate.seed,
            tile=job.evaluate.tile,
            device=job.device,
        )

        def do(work: Work) -> Tally:
            pixels, labels = images.read(work.image_ids)
            ids = torch.tensor(work.image_ids).numpy()
            batch = Batch(images_BCHW=pixels, labels_B=labels, image_ids_B=ids)
            if isinstance(work, Portraits):
                storage.put_new(work.name, make_gallery(model, batch, work, conditions))
                return Tally()
            found = attack_images(model, batch, work.trajectory, conditions)
            storage.put_new(work.name, to_parquet(found, _about(job, work)))
            return Tally.of(found)

        return do


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
    for work, tally in fan_out(Worker(job), todo):
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


def _about(job: EvaluateJob, shard: Shard) -> dict[str, object]:
    return {
        "key": shard.key,
        "model_digest": job.model_digest,
        "attack": shard.attack,
        "trajectory": plain(shard.trajectory),
        "images_digest": job.test_digest,
        "seed": job.evaluate.seed,
        "tile": job.evaluate.tile,
        "device": job.device_class,
        "torch": torch.__version__,
        "result_version": RESULT_VERSION,
    }
