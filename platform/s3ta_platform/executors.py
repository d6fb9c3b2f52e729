"""Many jobs, one function: in this process, or fanned out over Ray actors.

`build()` is called once per process and gives the function that does the jobs, so a model is
loaded once and stays in memory. Both executors yield `(job, result)`, each job exactly once, and
go by the same rules:

- an exception in a job is deterministic: the job has failed, the others go on;
- an OSError (storage hiccup) and the death of the worker that was doing the job are retried after
  a pause, until the job was begun `attempts` times;
- when everything else is done and yielded, one `JobsFailedError` names the jobs that have failed;
- an exception in `build` is raised as it is once no worker is left to go on.

A retried job may have been done before its worker died: what jobs write must be create-only.
"""

import itertools
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

J = TypeVar("J")
R = TypeVar("R")
Build: TypeAlias = Callable[[], Callable[[J], R]]
OnEvent: TypeAlias = Callable[[str], None]

TICK_S = 0.25
"""How late a pause may end."""
PATIENCE_S = 30.0
"""How long it may take until a first worker starts before something is said."""


@dataclass(frozen=True)
class JobFailure:
    """A job that was given up: its last error in one line, and the traceback if there is one."""

    job: Any
    error: str
    tries: int
    traceback: str = ""


class JobsFailedError(RuntimeError):
    """Some jobs have failed; all others were done and yielded before this was raised."""

    def __init__(self, failures: tuple[JobFailure, ...]) -> None:
        super().__init__(failures)
        self.failures = failures

    def __str__(self) -> str:
        named = [f"  {shown(f.job)} (tried {f.tries}x): {f.error}" for f in self.failures[:10]]
        rest = [f"  and {len(self.failures) - 10} more"] if len(self.failures) > 10 else []
        return "\n".join([f"{len(self.failures)} job(s) failed:", *named, *rest])


@dataclass(frozen=True)
class _Done:
    value: Any


@dataclass(frozen=True)
class _Bad:
    """What went wrong, in plain strings: not every exception survives being pickled."""

    kind: Literal["raised", "died", "unavailable"]
    error: str
    transient: bool
    traceback: str = ""
    cause: Exception | None = None


def backoff_s(tries: int) -> float:
    """Seconds to pause after the given number of tries: 0.5, 1, 2, ... at most 30."""
    return min(30.0, 0.5 * 2.0 ** min(tries - 1, 10))


def may_retry(transient: bool, tries: int, attempts: int) -> bool:
    return transient and tries < attempts


def shown(thing: object) -> str:
    """One uncoloured line of at most 400 characters, start and end: an error may hold a log."""
    line = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(thing)).split())
    return line if len(line) <= 400 else f"{line[:130]} ... {line[-265:]}"


def _raised(error: Exception, cause: Exception | None = None) -> _Bad:
    text = "".join(traceback.format_exception(error))
    line = shown(f"{type(error).__name__}: {error}")
    return _Bad("raised", line, isinstance(error, OSError), text, cause)


def _attempt(do: Callable[[J], R], job: J) -> _Done | _Bad:
    try:
        return _Done(do(job))
    except Exception as error:
        return _raised(error)


def run_inline(
    build: Build[J, R], jobs: Iterable[J], *, attempts: int = 3, on_event: OnEvent | None = None
) -> Iterator[tuple[J, R]]:
    """Do the jobs one after another in this process, in order."""
    do, tell = build(), on_event or (lambda text: None)
    failures: list[JobFailure] = []
    for job in jobs:
        tries, outcome = 1, _attempt(do, job)
        while isinstance(outcome, _Bad) and may_retry(outcome.transient, tries, attempts):
            tell(_trouble(job, outcome, tries, attempts))
            time.sleep(backoff_s(tries))
            tries, outcome = tries + 1, _attempt(do, job)
        if isinstance(outcome, _Bad):
            tell(_trouble(job, outcome, tries, attempts))
            failures.append(JobFailure(job, outcome.error, tries, outcome.traceback))
        else:
            yield job, outcome.value
    if failures:
        raise JobsFailedError(tuple(failures))


def run_on_ray(
    build: Build[J, R],
    jobs: Iterable[J],
    *,
    workers: int,
    cpus_per_worker: float = 1,
    threads: int = 1,
    attempts: int = 3,
    gpus_per_worker: float = 0,
    on_event: OnEvent | None = None,
) -> Generator[tuple[J, R], None, None]:
    """Do the jobs on up to `workers` Ray actors; yields results as they are completed.

    Jobs are taken from the iterable only when a worker is free, and a worker has one job at a
    time, so memory stays flat and a death counts against the right job. Workers for which the
    cluster has no room yet are not waited for. Works in the driver and inside tasks and actors;
    Ray must be initialised. All workers are killed when the generator ends or is closed: a
    consumer that may stop early and keeps the generator in a name uses `contextlib.closing`.
    """
    assert ray.is_initialized(), "run_on_ray: call ray.init first"
    assert min(workers, threads, attempts) >= 1, (workers, threads, attempts)
    actors = ray.remote(Worker).options(
        num_cpus=cpus_per_worker,
        num_gpus=gpus_per_worker,
        # Inside a Tune trial they would else have to fit into the trial's own placement group.
        scheduling_strategy="DEFAULT",
    )
    rest = iter(jobs)
    first = list(itertools.islice(rest, workers))
    fleet = _Fleet(
        build=build,
        jobs=itertools.chain(first, rest),
        hire=lambda: actors.remote(threads),
        attempts=attempts,
        tell=on_event or (lambda text: None),
        free=[_Seat(number) for number in range(len(first))],  # no more workers than jobs
        exhausted=not first,
    )
    return fleet.results()


class Worker:
    """What runs in an actor's process."""

    def __init__(self, threads: int) -> None:
        # Read when torch is imported, which is not before `build` is unpickled for `start`.
        # (A runtime_env would do it too, but then no process is ready: a second more to start.)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self.threads = threads
        self.do: Callable[[Any], Any] | None = None

    def start(self, build: Build[Any, Any]) -> _Done:
        """Build once (a second call changes nothing); gives the process id."""
        self.do = self.do or build()
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(self.threads)
        return _Done(os.getpid())

    def run(self, job: Any) -> _Done | _Bad:
        assert self.do is not None, "start comes first"
        return _attempt(self.do, job)


@dataclass(eq=False)
class _Ticket(Generic[J]):
    """A job on its way: how often it was begun, and when it may be begun again."""

    job: J
    tries: int = 0
    not_before: float = 0.0


@dataclass(eq=False)
class _Seat(Generic[J]):
    """A place among the workers; the processes in it come and go."""

    number: int
    actor: Any = None
    started: bool = False
    ticket: _Ticket[J] | None = None
    failed_starts: int = 0
    rests: int = 0
    not_before: float = 0.0


@dataclass(kw_only=True)
class _Fleet(Generic[J, R]):
    """The state of one fan-out. A seat is free or running; a job is in one place only."""

    build: Build[J, R]
    jobs: Iterator[J]
    hire: Callable[[], Any]
    attempts: int
    tell: OnEvent
    free: list[_Seat[J]]
    exhausted: bool
    running: dict["ray.ObjectRef[_Done | _Bad]", _Seat[J]] = field(default_factory=dict)
    retries: list[_Ticket[J]] = field(default_factory=list)
    failures: list[JobFailure] = field(default_factory=list)
    last_news: float = field(default_factory=time.monotonic)

    def results(self) -> Generator[tuple[J, R], None, None]:
        try:
            while not self.finished():
                self.dispatch()
                results = [pair for ref in self.wait() for pair in self.settle(ref)]
                self.dispatch()  # the workers go on while the consumer looks at the results
                yield from results
        finally:
            for seat in self.seats():
                self.vacate(seat)
        if self.failures:
            raise JobsFailedError(tuple(self.failures))

    def seats(self) -> list[_Seat[J]]:
        return [*self.free, *self.running.values()]

    def finished(self) -> bool:
        return self.exhausted and not self.retries and not any(s.ticket for s in self.seats())

    def dispatch(self) -> None:
        """Give every free seat that is not resting something to do."""
        now = time.monotonic()
        for seat in [seat for seat in self.free if seat.not_before <= now]:
            if (ref := self.next_call(seat, now)) is not None:
                self.free.remove(seat)
                self.running[ref] = seat

    def next_call(self, seat: _Seat[J], now: float) -> "ray.ObjectRef[_Done | _Bad] | None":
        seat.actor = seat.actor or self.hire()
        if not seat.started:
            return seat.actor.start.remote(self.build)  # type: ignore[no-any-return]
        seat.ticket = seat.ticket or self.next_ticket(now)
        return seat.actor.run.remote(seat.ticket.job) if seat.ticket else None

    def next_ticket(self, now: float) -> _Ticket[J] | None:
        for ticket in self.retries:
            if ticket.not_before <= now:
                self.retries.remove(ticket)
                return ticket
        for job in self.jobs:
            return _Ticket(job)
        self.exhausted = True
        return None

    def wait(self) -> list["ray.ObjectRef[_Done | _Bad]"]:
        """All calls that have ended, after at most a tick."""
        if not self.running:
            time.sleep(TICK_S)
            return []
        ended, others = ray.wait(list(self.running), num_returns=1, timeout=TICK_S)
        if ended and others:  # a slow consumer keeps no second worker waiting for a job
            ended += ray.wait(others, num_returns=len(others), timeout=0)[0]
        self.say_if_nobody_starts(news=bool(ended))
        return ended

    def say_if_nobody_starts(self, news: bool) -> None:
        now = time.monotonic()
        if news or any(seat.started for seat in self.seats()):
            self.last_news = now
        elif now - self.last_news > PATIENCE_S:
            self.last_news = now
            room = ray.available_resources()  # type: ignore[no-untyped-call]
            self.tell(f"no worker has started yet; free in Ray: {room}")

    def settle(self, ref: "ray.ObjectRef[_Done | _Bad]") -> list[tuple[J, R]]:
        """Book the end of one call; gives the job and its result, if there is one."""
        seat, outcome = self.running.pop(ref), _fetch(ref)
        self.free.append(seat)
        if isinstance(outcome, _Bad) and outcome.kind == "unavailable":
            # The job keeps its seat: if the process is dead, a later call says so; that counts.
            seat.rests += 1
            seat.not_before = time.monotonic() + backoff_s(seat.rests)
            self.tell(f"worker {seat.number}: out of reach: {outcome.error}")
            return []
        ticket, seat.ticket, seat.rests = seat.ticket, None, 0
        if isinstance(outcome, _Bad) and outcome.kind == "died":
            self.vacate(seat)
        if ticket is None:
            self.book_start(seat, outcome)
        elif isinstance(outcome, _Bad):
            self.book_failure(ticket, outcome)
        else:
            return [(ticket.job, outcome.value)]
        return []

    def book_start(self, seat: _Seat[J], outcome: _Done | _Bad) -> None:
        if isinstance(outcome, _Done):
            seat.started, seat.failed_starts = True, 0
            self.tell(f"worker {seat.number}: started, pid {outcome.value}")
            return
        self.vacate(seat)
        seat.failed_starts += 1
        seat.not_before = time.monotonic() + backoff_s(seat.failed_starts)
        self.tell(f"worker {seat.number}: can't start: {outcome.error}")
        if not may_retry(outcome.transient, seat.failed_starts, self.attempts):
            self.free.remove(seat)  # the others go on without it
            if not self.seats():
                raise outcome.cause or RuntimeError(f"no worker can start: {outcome.error}")

    def book_failure(self, ticket: _Ticket[J], bad: _Bad) -> None:
        ticket.tries += 1
        self.tell(_trouble(ticket.job, bad, ticket.tries, self.attempts))
        if may_retry(bad.transient, ticket.tries, self.attempts):
            ticket.not_before = time.monotonic() + backoff_s(ticket.tries)
            self.retries.append(ticket)
        else:
            self.failures.append(JobFailure(ticket.job, bad.error, ticket.tries, bad.traceback))

    def vacate(self, seat: _Seat[J]) -> None:
        if seat.actor is not None and ray.is_initialized():
            ray.kill(seat.actor, no_restart=True)
        seat.actor, seat.started = None, False


def _fetch(ref: "ray.ObjectRef[_Done | _Bad]") -> _Done | _Bad:
    try:
        return ray.get(ref)
    except ActorUnavailableError as error:
        return _Bad("unavailable", shown(error), transient=True)
    except RayTaskError as error:  # `build` raised, or a result can't be pickled
        cause = error.cause if isinstance(error.cause, Exception) else error
        return _raised(cause, cause)
    except RayError as error:
        return _Bad("died", shown(f"the worker died: {error}"), transient=True)


def _trouble(job: object, bad: _Bad, tries: int, attempts: int) -> str:
    end = f"again in {backoff_s(tries):g} s" if may_retry(bad.transient, tries, attempts) else ""
    return f"job {shown(job)}: try {tries} of {attempts}: {bad.error}: {end or 'given up'}"
