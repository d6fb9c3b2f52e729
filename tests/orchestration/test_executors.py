"""The fan-out keeps its promises when workers die: real processes, real SIGKILLs."""

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray on loopback only; read by import ray

import pytest
import ray
from ray.exceptions import ActorUnavailableError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from s3ta.errors import UserError
from s3ta_platform import fleet, pulse, tickets
from s3ta_platform.executors import (
    JobFailure,
    JobsFailedError,
    Postponed,
    run_inline,
    run_on_ray,
)
from s3ta_platform.tickets import backoff_s, may_retry, postpone_s, shown

pytestmark = pytest.mark.slow

Executor = Callable[..., Iterator[tuple[Any, Any]]]

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module", autouse=True)
def two_cpus() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "backoff_s", lambda tries: 0.05)
    monkeypatch.setattr(tickets, "postpone_s", lambda times: 0.0)
    monkeypatch.setattr(fleet, "backoff_s", lambda tries: 0.05)


def two_workers(build: Any, jobs: Any, **options: Any) -> Iterator[tuple[Any, Any]]:
    return run_on_ray(build, jobs, workers=2, **options)


both = pytest.mark.parametrize("execute", [run_inline, two_workers])


@dataclass(frozen=True)
class Squares:
    """Squares the job's number; a create-only file per try tells how often each was begun."""

    folder: Path
    die_on: tuple[int, ...] = ()
    """Jobs that kill their worker at the first `failing_tries` tries."""
    hiccup_on: tuple[int, ...] = ()
    """Jobs that raise an OSError at the first `failing_tries` tries."""
    refuse: tuple[int, ...] = ()
    postpone: tuple[int, ...] = ()
    """Jobs that are not done now at the first `failing_tries` tries."""
    failing_tries: int = 1
    seconds: float = 0.0

    def __call__(self) -> Callable[[int], int]:
        return self.square

    def square(self, job: int) -> int:
        tries = begin(self.folder, job)
        time.sleep(self.seconds)
        if job in self.die_on and tries <= self.failing_tries:
            os.kill(os.getpid(), signal.SIGKILL)
        if job in self.hiccup_on and tries <= self.failing_tries:
            raise ConnectionResetError("the store hung up")
        if job in self.postpone and tries <= self.failing_tries:
            raise Postponed("another run does it")
        if job in self.refuse:
            raise ValueError(f"no image has id {job}")
        return job * job


def begin(folder: Path, job: int) -> int:
    for tries in range(1, 100):
        with contextlib.suppress(FileExistsError):
            (folder / f"{job}.{tries}").touch(exist_ok=False)
            return tries
    raise AssertionError("begun a hundred times")


def begun(folder: Path) -> Counter[int]:
    return Counter(int(path.name.split(".")[0]) for path in folder.iterdir())


def squares_of(jobs: Any) -> list[tuple[int, int]]:
    return [(job, job * job) for job in jobs]


def results_and_error(run: Iterator[Any]) -> tuple[list[Any], JobsFailedError]:
    results = []
    try:
        for result in run:
            results.append(result)
    except JobsFailedError as error:
        return results, error
    raise AssertionError("no job failed")


def workers_ever() -> dict[str, str]:
    """Actor id -> state."""
    table = ray._private.state.actors()
    return {k: v["State"] for k, v in table.items() if v["ActorClassName"] == "Worker"}


def workers_alive_after(seconds: float) -> int:
    """Waits until none is left, at most the given time: Ray's table lags behind a kill."""
    until = time.monotonic() + seconds
    while True:
        alive = sum(state != "DEAD" for state in workers_ever().values())
        if not alive or time.monotonic() > until:
            return alive
        time.sleep(0.05)


@both
def test_inline_and_ray_give_the_same_results(execute: Executor, tmp_path: Path) -> None:
    results = list(execute(Squares(tmp_path), range(20)))
    assert sorted(results) == squares_of(range(20))
    assert begun(tmp_path) == Counter(range(20))
    if execute is run_inline:
        assert [job for job, _ in results] == list(range(20))


def test_a_worker_that_dies_in_the_middle_of_a_job_loses_no_job(tmp_path: Path) -> None:
    events: list[str] = []
    build = Squares(tmp_path, die_on=(5, 6))
    results = list(two_workers(build, range(20), on_event=events.append))
    assert sorted(results) == squares_of(range(20))
    assert begun(tmp_path) == Counter([*range(20), 5, 6])
    assert sum("try 1 of 3" in event for event in events) == 2


def test_a_worker_killed_from_outside_loses_no_job(tmp_path: Path) -> None:
    victims: list[int] = []

    def kill_the_first(event: str) -> None:
        if "pid" in event and not victims:
            victims.append(int(event.split("pid ")[1]))

    build, results = Squares(tmp_path, seconds=0.1), []
    for result in two_workers(build, range(15), on_event=kill_the_first):
        results.append(result)
        if len(results) == 3:
            os.kill(victims[0], signal.SIGKILL)
    assert sorted(results) == squares_of(range(15))
    assert sum(begun(tmp_path).values()) in (15, 16)  # it may have died between two jobs


def test_a_job_that_always_kills_its_worker_is_given_up_and_the_rest_finishes(
    tmp_path: Path,
) -> None:
    build = Squares(tmp_path, die_on=(3,), failing_tries=99)
    results, error = results_and_error(two_workers(build, range(12), attempts=2))
    assert [failure.job for failure in error.failures] == [3]
    assert "3 (tried 2x): the worker died" in str(error)
    assert sorted(results) == squares_of(job for job in range(12) if job != 3)
    assert begun(tmp_path) == Counter([*range(12), 3])
    assert workers_alive_after(10) == 0


@both
def test_a_python_error_is_reported_and_not_tried_again(execute: Executor, tmp_path: Path) -> None:
    results, error = results_and_error(execute(Squares(tmp_path, refuse=(4, 7)), range(9)))
    assert {failure.job for failure in error.failures} == {4, 7}
    assert "4 (tried 1x): ValueError: no image has id 4" in str(error)
    assert "in square" in error.failures[0].traceback
    assert sorted(results) == squares_of(job for job in range(9) if job not in (4, 7))
    assert begun(tmp_path) == Counter(range(9))


@both
def test_a_storage_hiccup_is_tried_again_until_attempts(execute: Executor, tmp_path: Path) -> None:
    once, always = tmp_path / "once", tmp_path / "always"
    once.mkdir()
    always.mkdir()
    assert sorted(execute(Squares(once, hiccup_on=(1,)), range(3))) == squares_of(range(3))
    assert begun(once) == Counter([0, 1, 1, 2])
    build = Squares(always, hiccup_on=(1,), failing_tries=99)
    with pytest.raises(JobsFailedError, match="ConnectionResetError: the store hung up"):
        list(execute(build, range(3), attempts=2))
    assert begun(always) == Counter([0, 1, 1, 2])


@both
def test_postponed_jobs_wait_for_all_others_and_it_is_no_try(
    execute: Executor, tmp_path: Path
) -> None:
    events: list[str] = []
    build = Squares(tmp_path, postpone=(0, 1), failing_tries=3)
    results = list(execute(build, range(8), attempts=1, on_event=events.append))
    assert sorted(results) == squares_of(range(8))
    assert {job for job, _ in results[-2:]} == {0, 1}
    assert begun(tmp_path) == Counter([*range(8), *[0, 1] * 3])
    assert sum("postponed: another run does it" in event for event in events) == 2  # each once


@both
def test_what_is_done_instead_of_a_job_stands_for_it(execute: Executor, tmp_path: Path) -> None:
    def instead(failure: JobFailure) -> list[int]:
        assert not failure.died
        return [100, 101] if failure.job == 2 else []

    build = Squares(tmp_path, refuse=(2, 3, 101))
    results, error = results_and_error(execute(build, range(5), instead=instead))
    assert sorted(results) == squares_of([0, 1, 4, 100])
    assert {failure.job for failure in error.failures} == {3, 101}
    if execute is run_inline:
        assert [job for job, _ in results] == [0, 1, 100, 4]  # before new jobs


@both
def test_what_instead_raises_ends_the_run(execute: Executor, tmp_path: Path) -> None:
    def instead(failure: JobFailure) -> list[int]:
        raise UserError(f"too many images are broken: {failure.job}")

    with pytest.raises(UserError, match=r"^too many images are broken: 1$"):
        list(execute(Squares(tmp_path, refuse=(1,)), range(1000), instead=instead))
    assert len(begun(tmp_path)) < 1000
    assert workers_alive_after(10) == 0


def test_inline_progress_is_told_as_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def halves(job: int) -> int:
        pulse.beat()
        pulse.beat(0.5)
        pulse.beat()
        pulse.beat(1.0)
        assert pulse.read() == (4, 1.0)
        return job

    told: list[tuple[int, float]] = []
    list(run_inline(lambda: halves, [7, 8], on_pulse=lambda *what: told.append(what)))
    assert told == [(7, 0.5), (8, 0.5)]  # and no more within two seconds
    told.clear()
    monkeypatch.setattr(pulse, "EVERY_S", 0.0)
    list(run_inline(lambda: halves, [7, 8], on_pulse=lambda *what: told.append(what)))
    assert told == [(7, 0.5), (7, 1.0), (8, 0.5), (8, 1.0)]


class NeedsTwoArguments(Exception):  # noqa: N818
    """Pickles, but can't be unpickled."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


def awkward(job: int) -> Any:
    if job == 1:
        raise NeedsTwoArguments("batch", "is odd")
    return (i for i in range(3)) if job == 2 else job


def test_what_cannot_be_pickled_fails_its_own_job_only() -> None:
    results, error = results_and_error(two_workers(lambda: awkward, range(6)))
    assert sorted(results) == [(job, job) for job in (0, 3, 4, 5)]
    errors = {failure.job: failure.error for failure in error.failures}
    assert errors[1] == "NeedsTwoArguments: batch: is odd"
    assert "generator" in errors[2]
    assert {failure.tries for failure in error.failures} == {1}


def test_jobs_are_taken_only_as_they_are_needed(tmp_path: Path) -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    with contextlib.closing(run_on_ray(Squares(tmp_path), endless(), workers=2)) as results:
        for done, _ in enumerate(results, start=1):
            assert taken - done <= 2 * 2 + 1
            if done == 200:
                break
    assert workers_alive_after(10) == 0


def test_workers_go_on_while_the_consumer_is_busy(tmp_path: Path) -> None:
    with contextlib.closing(run_on_ray(Squares(tmp_path), range(50), workers=1)) as results:
        next(results)
        until = time.monotonic() + 10
        while len(begun(tmp_path)) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        assert len(begun(tmp_path)) == 2  # the next, and no more


def test_a_consumer_that_fails_leaves_no_worker_alive(tmp_path: Path) -> None:
    def consume() -> None:
        for _ in two_workers(Squares(tmp_path, seconds=0.2), range(100)):
            assert workers_alive_after(0) > 0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert workers_alive_after(10) == 0


def test_no_more_workers_than_jobs_are_started(tmp_path: Path) -> None:
    before = workers_ever().keys()
    assert list(run_on_ray(Squares(tmp_path), [], workers=4)) == []
    assert workers_ever().keys() == before
    assert list(run_on_ray(Squares(tmp_path), iter([3]), workers=4)) == [(3, 9)]
    assert len(workers_ever().keys() - before) == 1


class Idle:
    def ready(self) -> bool:
        return True


def test_a_worker_without_room_is_not_waited_for(tmp_path: Path) -> None:
    occupant: Any = ray.remote(Idle).options(num_cpus=1).remote()
    ray.get(occupant.ready.remote())
    events: list[str] = []
    try:
        results = list(two_workers(Squares(tmp_path), range(10), on_event=events.append))
    finally:
        ray.kill(occupant)
    assert sorted(results) == squares_of(range(10))
    assert sum("started" in event for event in events) == 1
    assert workers_alive_after(10) == 0  # the one that never got its CPU too


class Trial:
    """Drives a fan-out of its own, as a Tune trial does."""

    def evaluate(self, folder: Path) -> list[tuple[int, int]]:
        return list(run_on_ray(Squares(folder, die_on=(2,)), range(8), workers=1))

    def fail(self, folder: Path) -> None:
        list(run_on_ray(Squares(folder, refuse=(0,)), [0], workers=1))


def test_an_actor_in_a_full_placement_group_can_drive_a_fan_out(tmp_path: Path) -> None:
    group = placement_group([{"CPU": 1}])
    inside = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    trial: Any = ray.remote(Trial).options(num_cpus=1, scheduling_strategy=inside).remote()
    try:
        results = ray.get(trial.evaluate.remote(tmp_path), timeout=60)
        with pytest.raises(JobsFailedError, match="no image has id 0"):
            ray.get(trial.fail.remote(tmp_path), timeout=60)
    finally:
        ray.kill(trial)
        remove_placement_group(group)
    assert sorted(results) == squares_of(range(8))
    assert workers_alive_after(10) == 0


def test_threads_are_pinned_before_torch_is_imported() -> None:
    def build() -> Callable[[int], tuple[bool, int, int]]:
        early = "torch" in sys.modules
        import torch

        at_import = torch.get_num_threads()
        return lambda job: (early, at_import, torch.get_num_threads())

    # Ray itself would pin the number of CPUs, which is 1.
    assert list(run_on_ray(build, [0], workers=1, threads=2)) == [(0, (False, 2, 2))]


def test_a_worker_builds_and_works_in_one_thread() -> None:
    def build() -> Callable[[int], tuple[bool, int, float]]:
        import torch

        torch.set_num_threads(2)  # sets nothing but what this thread and its successors do
        torch.set_flush_denormal(True)  # this thread alone
        mine = threading.get_ident()

        def work(job: int) -> tuple[bool, int, float]:
            tiny = (torch.full((1,), 1e-40) * 1.0).item()
            return threading.get_ident() == mine, torch.get_num_threads(), tiny

        return work

    results = run_on_ray(build, range(3), workers=1, threads=2, hang_s=60)
    assert [result for _, result in results] == [(True, 2, 0.0)] * 3


@both
def test_an_error_in_build_is_raised_as_it_is(execute: Executor) -> None:
    def build() -> Callable[[int], int]:
        raise UserError("checkpoint x is of another architecture")

    with pytest.raises(UserError, match=r"^checkpoint x is of another architecture$"):
        list(execute(build, range(5)))
    assert workers_alive_after(10) == 0


@dataclass(frozen=True)
class DiesWhileBuilding:
    folder: Path
    times: int

    def __call__(self) -> Callable[[int], int]:
        if begin(self.folder, 0) <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        return lambda job: job * job


def test_a_worker_that_dies_while_building_is_replaced_a_few_times(tmp_path: Path) -> None:
    once, always = tmp_path / "once", tmp_path / "always"
    once.mkdir()
    always.mkdir()
    build = DiesWhileBuilding(once, times=1)
    assert sorted(run_on_ray(build, range(4), workers=1)) == squares_of(range(4))
    assert begun(once)[0] == 2
    with pytest.raises(RuntimeError, match="no worker can start: the worker died"):
        list(run_on_ray(DiesWhileBuilding(always, times=99), range(4), workers=1, attempts=2))
    assert begun(always)[0] == 2


def test_an_unreachable_worker_keeps_its_job_and_nothing_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, get = 0, ray.get

    def flaky(ref: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (1, 3, 6):  # the first sign of life, the start, the second job
            raise ActorUnavailableError("the connection was reset", None)
        return get(ref)

    monkeypatch.setattr(ray, "get", flaky)
    results = list(run_on_ray(Squares(tmp_path), range(6), workers=1, attempts=1))
    assert sorted(results) == squares_of(range(6))
    assert begun(tmp_path) == Counter([*range(6), 1])


def test_pauses_grow_to_half_a_minute_and_only_passing_trouble_is_retried() -> None:
    assert [backoff_s(tries) for tries in (1, 2, 3, 6, 7, 10_000)] == [0.5, 1, 2, 16, 30, 30]
    assert [postpone_s(times) for times in (1, 2, 3, 4, 10_000)] == [2, 4, 8, 15, 15]
    assert may_retry(True, 2, 3)
    assert not may_retry(True, 3, 3)
    assert not may_retry(False, 1, 3)


def test_the_error_names_ten_jobs_in_short_and_survives_pickling() -> None:
    failures = tuple(JobFailure(list(range(10_000)), "E: e", 1) for _ in range(12))
    error = pickle.loads(pickle.dumps(JobsFailedError(failures)))
    assert error.failures == failures
    lines = str(error).splitlines()
    assert lines[0] == "12 job(s) failed:"
    assert lines[-1] == "  and 2 more"
    assert len(lines) == 12
    assert max(map(len, lines)) < 450
    assert shown("a\n b") == "a b"


def test_a_cluster_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(AssertionError, match=r"call ray\.init first"):
        run_on_ray(lambda: abs, [1], workers=1)
