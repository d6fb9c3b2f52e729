"""A sweep on Ray Tune: trials side by side, each trained on Ray Train, its attacks fanned out.

A new Tuner is started over the trials that are missing; Tune's own restore is never used. A trial
function does one leg of a training, and after the last one the evaluation; the scheduler (see
curriculum) says which. It holds no CPU itself: its training workers and shard workers do, and the
first are given back before the second are asked for.
"""

import itertools
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import ray
from ray import tune
from ray.exceptions import RayError

from s3ta.errors import UserError
from s3ta_platform.asha import Asha
from s3ta_platform.cluster import Cluster, local_cluster
from s3ta_platform.curriculum import Legs
from s3ta_platform.events import Emit
from s3ta_platform.executors import JobsFailedError
from s3ta_platform.leftovers import remove_orphans
from s3ta_platform.legs import Leg
from s3ta_platform.packing import require_room, train_at_once
from s3ta_platform.patience import patient
from s3ta_platform.plan import TrialPlan
from s3ta_platform.ray_backend import OnRay, Post, open_mailbox
from s3ta_platform.schema_cluster import ClusterSettings
from s3ta_platform.storage import open_storage
from s3ta_platform.tickets import shown
from s3ta_platform.trial import judge, run_leg

log = logging.getLogger("ray.s3ta")  # ends up in the run's log file

POLL_S = 0.5
ORPHANS_EVERY = 10
"""Polls between looks for placement groups whose trial has died, with the CPUs in them."""

# Ctrl-C is ours: Tune would wait for its trials.
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"


def run_on_ray(
    todo: list[TrialPlan], asha: Asha | None, settings: ClusterSettings, emit: Emit, log: Path
) -> dict[str, str]:
    """Run the trials; gives the errors of those that failed, by key."""
    with (
        local_cluster(
            cpus=settings.cpus, address=settings.address, log_file=log, hang_s=settings.hang_s
        ) as cluster,
        tempfile.TemporaryDirectory(prefix="s3ta-ray-", ignore_cleanup_errors=True) as scratch,
    ):
        require_room(todo, settings, cluster.nodes)
        with _delivered(emit) as post:
            return _tune(todo, asha, settings, cluster, post, scratch)


def _tune(
    todo: list[TrialPlan],
    asha: Asha | None,
    settings: ClusterSettings,
    cluster: Cluster,
    post: Emit,
    scratch: str,
) -> dict[str, str]:
    plans = {t.key: t for t in todo}
    storage = patient(
        open_storage(todo[0].train.root), settings.store_patience_s, log.warning, lambda: None
    )
    results = tune.Tuner(
        # Some resource a trial must ask for. How many run at once is set below.
        tune.with_resources(
            partial(_trial, plans=plans, backend=OnRay(settings, scratch), emit=post),
            {"CPU": 0, "memory": 100 * 2**20},
        ),
        param_space={"key": tune.grid_search(list(plans))},
        tune_config=tune.TuneConfig(
            scheduler=Legs(plans, storage, asha),
            # One more than can train: it is ready for the CPUs that evaluations leave idle.
            max_concurrent_trials=train_at_once(todo, settings, cluster.nodes) + 1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=scratch,
            verbose=0,
            # A trial whose process dies begins again, and goes on from what is stored.
            failure_config=tune.FailureConfig(max_failures=settings.attempts - 1),
        ),
    ).fit()
    failed = {}
    for i in range(len(results)):
        if (config := results[i].config) is not None and (words := _why_failed(results[i])):
            failed[config["key"]] = words
    return failed


def _why_failed(result: tune.Result) -> str:
    """Empty for a trial that is complete."""
    return _words(result.error) if result.error else str((result.metrics or {}).get("error", ""))


def _trial(config: dict[str, Any], plans: dict[str, TrialPlan], backend: OnRay, emit: Emit) -> None:
    """A leg of a trial, in a process of its own; after the last leg the evaluation.

    At the end of a leg the scheduler pauses the trial, within `report`, or stops it. Its error is
    reported: raised, it would be retried.
    """
    plan, leg = plans[config["key"]], config["leg"] and Leg(**config["leg"])
    try:
        if leg and plan.trained(open_storage(plan.train.root)) is None:
            run_leg(plan, leg, backend, emit)
        if leg is None or leg.last:
            judge(plan, backend, emit)
    except Exception as error:
        log.exception("trial %s", config["key"])
        tune.report({"error": _words(error)})
    else:
        done = leg is None or leg.last
        tune.report({"complete": 1} if done else {"stage_done": leg.stage, "epoch": leg.until})


@contextmanager
def _delivered(emit: Emit) -> Iterator[Post]:
    """Where workers may post events; a thread of this process hands them to `emit`."""
    mailbox, stop = open_mailbox(), threading.Event()

    def deliver() -> None:
        for poll in itertools.count(1):
            if stop.wait(POLL_S):
                return
            try:
                for event in ray.get(mailbox.take.remote()):
                    emit(event)
                if poll % ORPHANS_EVERY == 0:
                    remove_orphans()
            except (RayError, grpc.RpcError) as error:  # its process died, or Ray is busy
                log.info("no news from the trials just now: %s", shown(error))

    thread = threading.Thread(target=deliver, name="events", daemon=True)
    thread.start()
    try:
        yield Post(mailbox)
    finally:
        stop.set()
        thread.join()
        try:
            for event in ray.get(mailbox.take.remote(), timeout=10):
                emit(event)
        except RayError:
            pass  # the cluster is gone; what was durable is in the storage


def _words(error: BaseException) -> str:
    """What a person needs of an error that crossed processes: our own words, or its cause's."""
    ours = UserError | JobsFailedError
    cause: BaseException = error
    while True:
        inner = getattr(cause, "cause", None)  # Ray's wrapper is an instance of what it wraps
        if inner is None and not isinstance(cause, ours):
            inner = cause.__cause__
        if inner is None:
            break
        cause = inner
    if isinstance(cause, ours):
        return str(cause)
    return shown(f"{type(cause).__name__}: {cause}")
