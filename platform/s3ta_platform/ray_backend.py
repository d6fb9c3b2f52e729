"""A trial's two kinds of work on Ray: training on Ray Train, shards on actors."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from s3ta.errors import UserError
from s3ta.tally import Tally
from s3ta_platform.events import Emit, Event, Phase
from s3ta_platform.executors import JobFailure, run_on_ray
from s3ta_platform.fits import fit, process_group
from s3ta_platform.jobs import TrainJob
from s3ta_platform.leftovers import remove_orphans, wait_for_room
from s3ta_platform.notices import heeding, wish
from s3ta_platform.schema_cluster import ClusterSettings
from s3ta_platform.shards import DoWork, Work
from s3ta_platform.storage import open_storage
from s3ta_platform.tickets import shown
from s3ta_platform.trials import checkpoint_steps

log = logging.getLogger("ray.s3ta")  # ends up in the run's log file

TRAINING_FIRST_S = 5.0
"""So long the CPUs that a trial has given back are left to one that waits to train."""


@dataclass(frozen=True)
class OnRay:
    """Work on the cluster that this process is connected to."""

    settings: ClusterSettings
    scratch: str
    """For Ray's own files, which nothing of ours ever reads: checkpoints are in the results."""

    def train(self, job: TrainJob, emit: Emit) -> None:
        """Fits, usually one. What dies is replaced, and all go on from the last checkpoint.

        Train replaces workers; where it gives up, or its controller dies, a new fit is begun: as
        long as there was progress since the last, and otherwise `cluster.attempts` times.
        """
        s, tried = self.settings, 0
        workers = job.workers or s.train_workers
        for number in itertools.count():
            begun_at, tried = _saved(job), tried + 1
            try:
                told = fit(
                    _train_worker,
                    {"job": job, "emit": emit},
                    # Unique: Ray gives the old result of a name that it has finished.
                    name=f"{job.key}-epoch{job.until_epoch or 'last'}-{number}",
                    scratch=self.scratch,
                    workers=workers,
                    workers_min=min(s.train_workers_min or workers, workers),
                    resources=_resources(s),
                    max_failures=s.attempts - 1,
                )
            except (TrainingFailedError, RayActorError) as error:
                if _saved(job) > begun_at:
                    tried = 0
                elif tried >= s.attempts or isinstance(error, WorkerGroupError):
                    raise _cause(error) from None
                log.warning("trial %s: training is begun again: %s", job.key, shown(error))
                remove_orphans()  # the CPUs that a dead controller holds
            else:
                if told is not None:
                    raise UserError(told)
                return

    def fan_out(
        self,
        build: Callable[[], DoWork],
        jobs: Iterable[Work],
        /,
        *,
        instead: Callable[[JobFailure], Sequence[Work]],
        on_pulse: Callable[[Work, float], None],
    ) -> Iterator[tuple[Work, Tally]]:
        s = self.settings
        wait_for_room(TRAINING_FIRST_S)
        return run_on_ray(
            build,
            jobs,
            workers=s.evaluate_workers,
            cpus_per_worker=s.threads,
            gpus_per_worker=s.gpus,
            threads=s.threads,
            attempts=s.attempts,
            hang_s=s.hang_s,
            instead=instead,
            on_pulse=on_pulse,
            on_event=log.info,
        )


def _resources(s: ClusterSettings) -> dict[str, float]:
    gpus = {"GPU": s.gpus} if s.gpus else {}
    return {"CPU": float(s.threads), **gpus}


def _saved(job: TrainJob) -> int:
    """The step of the last checkpoint."""
    return max(checkpoint_steps(open_storage(job.root), job.key), default=0)


def _cause(error: Exception) -> Exception:
    """Our own words, if it is a worker that raised; Ray wraps them in the text of a traceback."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    raised = (getattr(f, "_base_exc", f) for f in failures)
    return next((e for e in raised if isinstance(e, UserError)), error)


def _train_worker(config: dict[str, Any]) -> str | None:
    """What runs in each of Ray Train's workers.

    Gives the error with which all of them have ended, if trying again can't help: raised, Train
    would start them again.
    """
    from s3ta_platform.not_finite import NotFiniteError
    from s3ta_platform.train import train

    job: TrainJob = config["job"]
    cluster = job.cluster
    try:
        with process_group(job.device, cluster.hang_s, cluster.store_patience_s) as group:
            train_it = partial(train, job, group, config["emit"], wish)
            heeding(train_it)
    except NotFiniteError as error:
        return str(error)
    return None


class Mailbox:
    """An actor: keeps the latest event of each trial and phase until somebody asks."""

    def __init__(self) -> None:
        self.latest: dict[tuple[str, Phase], Event] = {}
        self.durable: list[Event] = []

    def put(self, event: Event) -> None:
        if event.durable:
            self.durable.append(event)
        else:
            self.latest[event.trial, event.phase] = event

    def take(self) -> list[Event]:
        """What has come since the last call."""
        events = [*self.latest.values(), *self.durable]
        self.latest, self.durable = {}, []
        return sorted(events, key=lambda e: (e.phase.value != "train", e.done))


@dataclass(frozen=True)
class Post:
    """An `Emit` for other processes: it hands events to the mailbox and waits for nothing."""

    mailbox: Any

    def __call__(self, event: Event) -> None:
        self.mailbox.put.remote(event)


def open_mailbox() -> Any:
    """The handle of a new mailbox. One that dies is there again at once, empty."""
    return ray.remote(Mailbox).options(num_cpus=0, max_restarts=-1).remote()
