"""The analyses of one trained model: find which pieces are missing, and have them done."""

import logging
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial

from s3ta_platform.analysis_plan import plan_analyses
from s3ta_platform.evaluate import FanOut, build_worker
from s3ta_platform.events import Emit, Event, Phase, ignore
from s3ta_platform.jobs import EvaluateJob, open_images
from s3ta_platform.patience import patient
from s3ta_platform.pieces import Piece
from s3ta_platform.shards import Portraits, Work, evaluation_ids
from s3ta_platform.storage import open_storage
from s3ta_platform.tickets import JobFailure
from s3ta_platform.tidy import remove_needless

log = logging.getLogger("ray.s3ta")


def analyze(job: EvaluateJob, fan_out: FanOut, emit: Emit = ignore) -> int:
    """Do the pieces that are not stored yet; gives how many were done.

    An image that ends every worker ends its analysis: unlike an evaluation there is no number in
    which it could count.
    """
    if not job.analyze.do:
        return 0
    storage = patient(
        open_storage(job.root), job.cluster.store_patience_s, log.warning, lambda: None
    )
    ids = evaluation_ids(open_images(job.data.test, job.data, job.model).ids_N, job.evaluate)
    planned = plan_analyses(job, ids)
    todo: list[Work] = [work for work in planned if not storage.exists(work.name)]
    total = sum(_images(work) for work in planned)
    behind = total - sum(_images(work) for work in todo)

    def tell(done: int) -> None:
        emit(Event(trial=job.trial, phase=Phase.analyze, done=done, total=total))

    done = 0
    build = partial(build_worker, job, uuid.uuid4().hex)
    results = fan_out(build, todo, instead=_nothing, on_pulse=lambda work, steps: None)
    with ExitStack() as stack:
        if hasattr(results, "close"):
            stack.enter_context(closing(results))  # type: ignore[type-var]
        for work, _ in results:
            done, behind = done + 1, behind + _images(work)
            tell(behind)
    remove_needless(storage)
    return done


def _nothing(failure: JobFailure) -> Sequence[Work]:
    return []


def _images(work: Work) -> int:
    return len(work.image_ids) if isinstance(work, Piece | Portraits) else 0
