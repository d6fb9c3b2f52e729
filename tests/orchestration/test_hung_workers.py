"""Workers that neither work nor die are found, say where they were, and are replaced."""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray on loopback only; read by import ray

import pytest
import ray

from s3ta_platform import fleet, pulse, tickets
from s3ta_platform.executors import JobFailure, JobsFailedError, run_on_ray
from s3ta_platform.seats import Heard, Seat
from s3ta_platform.stacks import Process, dump, end

pytestmark = pytest.mark.slow

HANG_S = 3.0

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "backoff_s", lambda tries: 0.05)
    monkeypatch.setattr(fleet, "backoff_s", lambda tries: 0.05)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What is said to the logger of the run's log file."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler, log = Keep(), logging.getLogger("ray.s3ta")
    log.addHandler(handler)
    yield said
    log.removeHandler(handler)


def stopped_here() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)  # another thread may take it: this one may sleep by then
    for _ in range(3):  # continued for its last words, it would still end its job
        time.sleep(0.05)


def locked_here() -> None:
    threading.Event().wait()


@dataclass(frozen=True)
class HangsOnce:
    """Squares the job's number; at the first try of `job` the worker hangs, and leaves its pid."""

    folder: Path
    hang: Callable[[], None]
    job: int

    def __call__(self) -> Callable[[int], int]:
        return self.square

    def square(self, job: int) -> int:
        pulse.beat()
        if job == self.job:
            with contextlib.suppress(FileExistsError):
                with (self.folder / "pid").open("x") as file:
                    file.write(str(os.getpid()))
                self.hang()
        return job * job


def gone_after(pid: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("hang", [stopped_here, locked_here])
def test_a_hung_worker_says_where_it_was_and_its_job_is_done_by_another(
    hang: Callable[[], None], two_cpus: None, tmp_path: Path, logged: list[str]
) -> None:
    events: list[str] = []
    build = HangsOnce(tmp_path, hang, job=1)
    results = list(run_on_ray(build, range(6), workers=2, hang_s=HANG_S, on_event=events.append))
    assert sorted(results) == [(job, job * job) for job in range(6)]  # each exactly once
    assert sum("job 1: try 1 of 3: hung: no progress for 3 s: again" in e for e in events) == 1
    (stack,) = [event for event in events if f"in {hang.__name__}" in event]
    assert "in square" in stack
    assert ("state T (stopped)" in stack) == (hang is stopped_here)
    assert stack in logged
    assert gone_after(int((tmp_path / "pid").read_text()), seconds=2)


def test_a_build_that_hangs_is_a_failed_start(two_cpus: None, tmp_path: Path) -> None:
    def build() -> Callable[[int], int]:
        (tmp_path / "pid").write_text(str(os.getpid()))
        locked_here()
        raise AssertionError("never")

    events: list[str] = []
    run = run_on_ray(build, [1], workers=1, attempts=1, hang_s=2, on_event=events.append)
    with pytest.raises(RuntimeError, match=r"^no worker can start: hung: no progress for 2 s$"):
        list(run)
    assert "in locked_here" in events[-1]  # heard before the run has ended
    assert gone_after(int((tmp_path / "pid").read_text()), seconds=2)


def test_a_slow_job_that_beats_is_left_alone_and_tells_how_far_it_is(two_cpus: None) -> None:
    def seventy_steps(job: str) -> str:
        for done in range(1, 71):
            time.sleep(0.05)  # longer than hang_s together
            pulse.beat(done)
        return job

    told: list[tuple[str, float]] = []
    run = run_on_ray(
        lambda: seventy_steps,
        ["first", "second"],
        workers=2,
        hang_s=2,
        attempts=1,
        on_pulse=lambda job, done: told.append((job, done)),
    )
    assert sorted(run) == [("first", "first"), ("second", "second")]
    for job in ("first", "second"):
        values = [done for who, done in told if who == job]
        assert len(values) > 2
        assert values == sorted(set(values))
        assert 0 < values[0] < values[-1] <= 70


def test_a_job_tells_nothing_of_the_one_before_it(two_cpus: None) -> None:
    def silent_but_first(job: int) -> int:
        if job == 0:
            pulse.beat(50)
        time.sleep(1.0)
        return job

    told: list[tuple[int, float]] = []
    run = run_on_ray(
        lambda: silent_but_first,
        range(3),
        workers=1,
        hang_s=2,
        on_pulse=lambda job, done: told.append((job, done)),
    )
    assert len(list(run)) == 3
    assert told == [(0, 50)]


def test_an_answer_counts_for_its_own_call_and_only_new_beats_are_progress() -> None:
    seat: Seat[int] = Seat(number=0, call=2, silent_s=7.0)
    assert seat.progress(Heard(call=1, beats=5, done=50.0)) is None  # late, but a sign of life
    assert seat.silent_s == 0.0
    seat.silent_s = 7.0
    assert seat.progress(Heard(call=2, beats=5, done=50.0)) == 50.0
    assert seat.silent_s == 0.0
    seat.silent_s = 7.0
    assert seat.progress(Heard(call=2, beats=5, done=50.0)) is None
    assert seat.silent_s == 7.0
    assert seat.progress(Heard(call=2, beats=6, done=50.0)) is None
    assert seat.silent_s == 0.0


class Idle:
    def ready(self) -> bool:
        return True


def test_a_worker_that_waits_for_a_cpu_is_not_hung(two_cpus: None) -> None:
    occupant: Any = ray.remote(Idle).options(num_cpus=2).remote()
    ray.get(occupant.ready.remote())
    timer = threading.Timer(2.5, ray.kill, [occupant])
    timer.start()
    events: list[str] = []
    run = run_on_ray(lambda: abs, [-3], workers=1, hang_s=1, attempts=1, on_event=events.append)
    assert list(run) == [(-3, 3)]
    assert not timer.is_alive()
    assert len(events) == 1
    assert "started" in events[0]


def test_time_in_which_nobody_looked_is_not_held_against_a_worker(two_cpus: None) -> None:
    def no_beat(job: float) -> float:
        time.sleep(job)
        return job

    results = []
    for result in run_on_ray(lambda: no_beat, [0, 2.2], workers=1, hang_s=1.5, attempts=1):
        results.append(result)
        time.sleep(1.9)  # the next job goes on meanwhile, longer than hang_s
    assert results == [(0, 0), (2.2, 2.2)]


def halves(failure: JobFailure) -> list[tuple[int, ...]]:
    images, middle = failure.job, len(failure.job) // 2
    assert failure.died
    return [images[:middle], images[middle:]] if middle else []


def test_a_deadly_image_is_found_by_halving_and_all_others_are_done(two_cpus: None) -> None:
    def count(images: tuple[int, ...]) -> int:
        if 5 in images:
            os.kill(os.getpid(), signal.SIGKILL)
        return len(images)

    results: list[tuple[tuple[int, ...], int]] = []
    jobs = [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    run = run_on_ray(lambda: count, jobs, workers=2, attempts=1, instead=halves)
    with pytest.raises(JobsFailedError) as raised:
        results.extend(run)
    assert sorted(results) == [((0, 1, 2, 3), 4), ((4,), 1), ((6, 7), 2), ((8, 9), 2)]
    assert [(failure.job, failure.tries) for failure in raised.value.failures] == [((5,), 1)]


CHILD = """
import os, signal, sys, threading
from s3ta_platform.seats import Heard, Seat
from s3ta_platform.stacks import listen

def parked(p):
    if sys.argv[1] == "dies":
        signal.signal(signal.SIGUSR1, lambda *_: (os.write(p.stacks_fd, b"last words"), os.abort()))
    thread = os.getppid() if sys.argv[1] == "lost" else p.thread  # of this process no more
    print(p.pid, p.born, p.stacks_fd, thread, flush=True)
    while sys.argv[1] == "busy":
        deep(60)
    threading.Event().wait()

def deep(n):
    return n if n < 1 else deep(n - 1) + len(str(n))

if sys.argv[1] == "deaf":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
if sys.argv[1] == "busy":  # beside the main thread, as in Ray's actors
    threading.Thread(target=lambda: parked(listen("here")), daemon=True).start()
    threading.Event().wait()
parked(listen("here"))
"""


@contextlib.contextmanager
def child(how: str) -> Iterator[tuple[subprocess.Popen[str], Process]]:
    command = [sys.executable, "-c", CHILD, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid, born, fd, thread = process.stdout.readline().split()
        try:
            yield process, Process("here", int(pid), born, int(fd), int(thread))
        finally:
            process.kill()


@pytest.mark.parametrize("stop", [False, True])
def test_a_process_is_asked_for_its_stack_and_killed(stop: bool) -> None:
    with child("listens") as (started, process):
        if stop:
            os.kill(process.pid, signal.SIGSTOP)
        assert "in parked" in dump(process)
        end(process, grace_s=0)
        assert started.wait(timeout=5) == -signal.SIGKILL
        assert "had ended" in dump(process)


def test_a_stopped_process_tells_where_its_working_thread_was_every_time() -> None:
    """Sent to no thread in particular, the question is answered while that one runs on."""
    with child("busy") as (_, process):
        for _ in range(20):
            os.kill(process.pid, signal.SIGSTOP)
            said = dump(process)
            assert re.search(r"Current thread .*\n(  File .* in deep\n)*  File .* in parked", said)


def test_a_process_whose_working_thread_has_ended_is_asked_too() -> None:
    with child("lost") as (_, process):
        assert "in parked" in dump(process)


def test_what_a_process_said_before_it_died_of_the_question_is_told() -> None:
    with child("dies") as (started, process):
        assert "last words" in dump(process)
        assert started.wait(timeout=5) == -signal.SIGABRT


def test_a_process_that_does_not_answer_is_killed_all_the_same() -> None:
    with child("deaf") as (started, process):
        assert "wrote no stack within 3 s" in dump(process)
        end(process, grace_s=0)
        assert started.wait(timeout=5) == -signal.SIGKILL


def test_another_process_with_the_same_pid_is_left_alone() -> None:
    with child("listens") as (started, process):
        for other in (replace(process, born="1"), replace(process, born="")):
            assert "in parked" not in dump(other)
            end(other, grace_s=0)
        with pytest.raises(subprocess.TimeoutExpired):
            started.wait(timeout=0.3)
