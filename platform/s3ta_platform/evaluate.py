"""The fan-out evaluation of one trained model: find what is missing, have it done, count."""

import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Protocol

from s3ta.tally import Tally
from s3ta_platform.bisection import Bisection
from s3ta_platform.evaluation_record import EvaluationRecord, write_record
from s3ta_platform.events import Emit, ignore
from s3ta_platform.jobs import EvaluateJob, Ids, open_images
from s3ta_platform.patience import patient
from s3ta_platform.progress import Progress
from s3ta_platform.record import plain
from s3ta_platform.shards import (
    DoWork,
    Quarantine,
    Shard,
    Work,
    evaluation_ids,
    plan_portraits,
    plan_probes,
    plan_shards,
)
from s3ta_platform.stopping import Stopping
from s3ta_platform.storage import Storage, open_storage
from s3ta_platform.stored_shards import read_columns, read_tally
from s3ta_platform.tickets import JobFailure
from s3ta_platform.tidy import remove_needless

log = logging.getLogger("ray.s3ta")


class FanOut(Protocol):
    """Does jobs somewhere, each exactly once, in any order (see executors)."""

    def __call__(
        self,
        build: Callable[[], DoWork],
        jobs: Iterable[Work],
        /,
        *,
        instead: Callable[[JobFailure], Sequence[Work]],
        on_pulse: Callable[[Work, float], None],
    ) -> Iterator[tuple[Work, Tally]]: ...


def build_worker(job: EvaluateJob, owner: str) -> DoWork:
    """Called in the worker's process, the only one that needs torch."""
    from s3ta_platform.shard_worker import build_worker

    return build_worker(job, owner)


def evaluate(job: EvaluateJob, fan_out: FanOut, emit: Emit = ignore) -> int:
    """Do the shards and the gallery that are not stored yet; gives how many were done."""
    storage = patient(
        open_storage(job.root), job.cluster.store_patience_s, log.warning, lambda: None
    )
    ids = evaluation_ids(open_images(job.data.test, job.data, job.model).ids_N, job.evaluate)
    shards, portraits = plan_shards(job, ids), plan_portraits(job, ids)
    write_record(storage, record_of(job, ids, shards))
    names = set(storage.list("evaluations/"))
    stored = {s.key for s in shards if s.name in names}
    progress = Progress(job.trial, shards, stored, partial(read_tally, storage), emit)
    looked_at = set(storage.list("probes/"))
    todo: list[Work] = [p for p in plan_probes(job, ids) if p.name not in looked_at]
    todo += [s for s in shards if s.key not in stored]
    halfwidth, stopping = job.evaluate.stop_when.halfwidth, None
    if halfwidth is not None:
        stopping = Stopping(shards, len(ids), halfwidth)
        _read_beginning(storage, stopping, shards, stored)
        todo = [] if stopping.point is not None else todo
    if portraits is not None and not storage.exists(portraits.name):
        todo.insert(0, portraits)
    done = 0
    bisection = Bisection(job, storage, len(ids))
    build = partial(build_worker, job, uuid.uuid4().hex)
    results = fan_out(build, todo, instead=bisection.instead, on_pulse=progress.pulse)
    with ExitStack() as stack:
        if hasattr(results, "close"):
            stack.enter_context(closing(results))  # type: ignore[type-var]
        for work, tally in results:
            done += 1
            shard = work.shard if isinstance(work, Quarantine) else work
            if not isinstance(shard, Shard) or (whole := bisection.settled(shard)) is None:
                continue
            own = whole is work  # else put together from halves, or quarantined
            progress.add(whole, tally if own else read_tally(storage, whole))
            if stopping is not None:
                stopping.add(whole, read_columns(storage, whole))
                if stopping.point is not None:
                    break
    remove_needless(storage)
    progress.tell(durable=True)
    return done


def record_of(job: EvaluateJob, ids: Ids, shards: list[Shard]) -> EvaluationRecord:
    """What this evaluation is to do."""
    trajectories = {s.trajectory: plain(s.trajectory) for s in shards}
    return EvaluationRecord(
        trial=job.trial,
        model=job.name or job.model.name,
        model_digest=job.model_digest,
        images_digest=job.test_digest,
        image_ids=ids.tolist(),
        classes=job.classes,
        seed=job.evaluate.seed,
        tile=job.evaluate.tile,
        halfwidth=job.evaluate.stop_when.halfwidth,
        shards=[
            {
                "key": s.key,
                "attack": s.attack,
                "trajectory": trajectories[s.trajectory],
                "first": s.first,
                "images": len(s.image_ids),
            }
            for s in shards
        ],
    )


def _read_beginning(
    storage: Storage, stopping: Stopping, shards: list[Shard], stored: set[str]
) -> None:
    for shard in shards:
        if shard.key in stored and stopping.point is None:
            stopping.add(shard, read_columns(storage, shard))
