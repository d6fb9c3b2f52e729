"""A worker that is killed or stopped in the middle of an attack, and what becomes of its work."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from signal import SIGSTOP

import psutil
import pyarrow as pa
import pytest
from drill import (
    GETTING_TO_KNOW,
    STEPS,
    expect_same,
    final_rows,
    planned,
    snapshots,
    steps_by_process,
    stop,
    working,
)
from waiting import until

from s3ta_platform.cluster import local_cluster
from s3ta_platform.evaluate import evaluate
from s3ta_platform.jobs import EvaluateJob
from s3ta_platform.leftovers import alive
from s3ta_platform.ray_backend import OnRay

pytestmark = pytest.mark.faults

HANG_S = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lost")


@pytest.fixture(scope="module")
def log(folder: Path) -> Iterator[Path]:
    """The log file of a cluster whose models are slow, until `calm` is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHAKY_PACE_S", "0.03")
        patch.setenv("SHAKY_CALM", str(folder / "calm"))
        patch.setenv("SHAKY_LOG", str(folder / "steps"))
        with local_cluster(cpus=2, log_file=folder / "ray.log"):
            yield folder / "ray.log"


@contextmanager
def evaluating(job: EvaluateJob) -> Iterator[None]:
    """In a thread of this process, on the cluster; at the end of the block it has ended."""
    backend = OnRay(job.cluster, scratch="")
    with ThreadPoolExecutor(1) as pool:
        done: Future[int] = pool.submit(evaluate, job, backend.fan_out)
        yield
        done.result(timeout=120)
    until(lambda: alive() == ([], []), 10)  # Ray books a death a moment later


def test_a_killed_worker_s_attack_goes_on_where_it_was(
    file: Path, reference: pa.Table, folder: Path, log: Path
) -> None:
    settings = ["evaluate.images=8", "evaluate.gallery_images=0", "cluster.evaluate_workers=1"]
    root = folder / "killed"
    _, job, (shard,) = planned(file, root, *settings)
    with evaluating(job):
        until(lambda: snapshots(root).get(shard.key, 0) >= 40 * 8)
        ((victim, key),) = working(root).items()
        stop(victim)
        until(lambda: not psutil.pid_exists(victim))
        saved = snapshots(root)[shard.key] // 8
    assert key == shard.key
    steps = steps_by_process(folder / "steps")
    assert steps[victim] >= saved
    (second,) = steps.keys() - {victim, os.getpid()}
    assert steps[second] <= STEPS - saved + GETTING_TO_KNOW, "the second worker did only the rest"
    assert f"goes on at step {saved * 8}" in log.read_text()
    expect_same(final_rows(file, root, *settings), reference)


def test_a_stopped_worker_is_found_tells_where_it_was_and_is_replaced(
    file: Path, reference: pa.Table, folder: Path, log: Path
) -> None:
    settings = ["evaluate.images=32", f"cluster.hang_s={HANG_S}"]
    root = folder / "stopped"
    _, job, _ = planned(file, root, *settings)
    with evaluating(job):
        until(lambda: snapshots(root))
        victim = min(working(root))
        stop(victim, SIGSTOP)
        until(lambda: not psutil.pid_exists(victim))
        (folder / "calm").touch()
    said = log.read_text()
    assert f"hung: no progress for {HANG_S} s" in said
    assert f"process {victim} was in state T (stopped)" in said
    assert "shaky_model.py" in said, "the stack shows where it was"
    expect_same(final_rows(file, root, *settings), reference)
