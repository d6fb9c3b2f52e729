"""Training workers that are told to end, or that stop in the middle of a step."""

from collections.abc import Iterator
from pathlib import Path
from signal import SIGSTOP, SIGTERM

import psutil
import pytest
from diary import Diary
from drill import stop, title
from lessons import EPOCH_STEPS, STEPS, expect_same, saved, training, training_job
from waiting import until

from s3ta_platform.cluster import local_cluster
from s3ta_platform.leftovers import alive

pytestmark = pytest.mark.faults

HANG_S = 8
NO_EXTRA = "cluster.checkpoint_steps=null"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The log file of a cluster of two CPUs, started in this process."""
    file = tmp_path_factory.mktemp("log") / "ray.log"
    with local_cluster(cpus=2, log_file=file, hang_s=60):
        yield file


def workers() -> list[psutil.Process]:
    family = psutil.Process().children(recursive=True)
    return [p for p in family if title(p).startswith("ray::RayTrainWorker")]


def test_at_sigterm_to_one_worker_all_save_and_nothing_is_done_twice(
    lessons: Path, undisturbed: Path, tmp_path: Path, log: Path
) -> None:
    job, diary = training_job(lessons, tmp_path, NO_EXTRA), Diary(tmp_path, pace_s=0.2)
    with training(job, diary, tmp_path / "scratch"):
        until(lambda: len(diary.entries()) > EPOCH_STEPS + 2)
        first = diary.entries()[-1].pid
        (victim,) = [p for p in workers() if p.pid != first]
        before = len(diary.entries())
        stop(victim, SIGTERM)
        until(lambda: saved(tmp_path, job.key) % EPOCH_STEPS)
        assert saved(tmp_path, job.key) - before <= 10, "a step or two, and what SIGTERM takes"
    said = log.read_text()
    assert f"pid={victim.pid}) this worker leaves after the next step: it got SIGTERM" in said
    done = diary.entries()
    assert [entry.step for entry in done] == list(range(1, STEPS + 1))
    assert len({entry.pid for entry in done}) == 2, "they were started again"
    expect_same(tmp_path, undisturbed, job.key)
    until(lambda: alive() == ([], []) or len(alive()[0]) == 1, 10)


def test_a_stopped_worker_is_named_with_its_stack_and_all_are_started_again(
    lessons: Path, undisturbed: Path, tmp_path: Path, log: Path
) -> None:
    job = training_job(lessons, tmp_path, f"cluster.hang_s={HANG_S}")
    diary = Diary(tmp_path, pace_s=0.2)
    with training(job, diary, tmp_path / "scratch"):
        until(lambda: len(diary.entries()) > EPOCH_STEPS + 2)
        first = diary.entries()[-1].pid
        (victim,) = [p for p in workers() if p.pid != first]
        stop(victim, SIGSTOP)
        until(lambda: not title(victim))
    said = log.read_text()
    assert f"for rank 1 (process {victim.pid} on " in said
    assert "which shows no life" in said
    assert f"rank 1: process {victim.pid} was in state T (stopped)" in said
    # Continued to be asked, it may end by its own timer, with its own words.
    own = [line for line in said.splitlines() if f"pid={victim.pid})" in line]
    told = "\n".join([said.split("was in state T (stopped)")[1], *own])
    assert "s3ta_platform/train.py" in told, "where it was"
    expect_same(tmp_path, undisturbed, job.key)
