"""Jobs fanned out over Ray actors, which may die or hang. The rules are in `executors`."""

import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import ray

from s3ta_platform.seats import Leaving, Seat, Worker, fetch
from s3ta_platform.tickets import (
    Bad,
    Done,
    J,
    JobFailure,
    OnEvent,
    Queue,
    R,
    Ticket,
    backoff_s,
    may_retry,
)

log = logging.getLogger("ray.s3ta")  # below "ray", so that it ends up in the run's log file

TICK_S = 0.25
"""How late a pause may end."""
PULSE_S = 2.0
"""A running worker is asked for its progress so often, or four times within `hang_s`."""
PATIENCE_S = 30.0
"""How long it may take until a first worker starts before something is said."""


def run_on_ray(
    build: Callable[[], Callable[[J], R]],
    jobs: Iterable[J],
    *,
    workers: int,
    cpus_per_worker: float = 1,
    threads: int = 1,
    attempts: int = 3,
    gpus_per_worker: float = 0,
    hang_s: float | None = None,
    on_event: OnEvent | None = None,
    instead: Callable[[JobFailure], Sequence[J]] | None = None,
    on_pulse: Callable[[J, float], None] | None = None,
) -> Generator[tuple[J, R], None, None]:
    """Do the jobs on up to `workers` Ray actors; yields results as they are completed.

    Jobs are taken from the iterable only when a worker is free, and a worker has one job at a
    time, so memory stays flat and a death counts against the right job. Workers for which the
    cluster has no room yet are not waited for. A worker whose job, or `build`, has called no
    `pulse.beat` for `hang_s` is hung: its stack is logged, it is killed, and that is its death.
    Works in the driver and inside tasks and actors; Ray must be initialised. All workers are
    killed when the generator ends or is closed: a consumer that may stop early and keeps the
    generator in a name uses `contextlib.closing`.
    """
    assert ray.is_initialized(), "run_on_ray: call ray.init first"
    assert min(workers, threads, attempts) >= 1, (workers, threads, attempts)
    remote: Any = ray.remote(concurrency_groups={"pulse": 1})  # type: ignore[call-overload]
    actors = remote(Worker).options(
        num_cpus=cpus_per_worker,
        num_gpus=gpus_per_worker,
        # Inside a Tune trial they would else have to fit into the trial's own placement group.
        scheduling_strategy="DEFAULT",
    )
    rest, tell = iter(jobs), on_event or (lambda text: None)
    first = list(itertools.islice(rest, workers))
    queue = Queue(
        jobs=itertools.chain(first, rest),
        attempts=attempts,
        tell=tell,
        instead=instead,
        exhausted=not first,
    )
    fleet = _Fleet(
        build=build,
        queue=queue,
        hire=lambda: actors.remote(threads),
        tell=tell,
        hang_s=hang_s,
        on_pulse=on_pulse,
        free=[Seat(number) for number in range(len(first))],  # no more workers than jobs
    )
    return fleet.results()


@dataclass(kw_only=True)
class _Fleet(Generic[J, R]):
    """The state of one fan-out. A seat is free or running; a job is in one place only."""

    build: Callable[[], Callable[[J], R]]
    queue: Queue[J]
    hire: Callable[[], Any]
    tell: OnEvent
    hang_s: float | None
    on_pulse: Callable[[J, float], None] | None
    free: list[Seat[J]]
    running: dict["ray.ObjectRef[Done | Bad]", Seat[J]] = field(default_factory=dict)
    leaving: list[Leaving] = field(default_factory=list)
    last_news: float = field(default_factory=time.monotonic)
    looked_at: float = field(default_factory=time.monotonic)

    def results(self) -> Generator[tuple[J, R], None, None]:
        try:
            while not self.finished():
                self.dispatch()
                results = [pair for ref in self.wait() for pair in self.settle(ref)]
                self.look()
                self.dispatch()  # the workers go on while the consumer looks at the results
                yield from results
        finally:
            for seat in self.seats():
                seat.vacate()
            self.see_off(wait=True)
        self.queue.raise_failures()

    def seats(self) -> list[Seat[J]]:
        return [*self.free, *self.running.values()]

    def finished(self) -> bool:
        return self.queue.empty and not any(seat.ticket for seat in self.seats())

    def dispatch(self) -> None:
        """Give every free seat that is not resting something to do."""
        now = time.monotonic()
        for seat in [seat for seat in self.free if seat.not_before <= now]:
            if (ref := self.next_call(seat, now)) is not None:
                self.free.remove(seat)
                self.running[ref] = seat

    def next_call(self, seat: Seat[J], now: float) -> "ray.ObjectRef[Done | Bad] | None":
        seat.actor = seat.actor or self.hire()
        if seat.process is None:
            return seat.actor.hello.remote()  # type: ignore[no-any-return]
        if not seat.started:
            return seat.actor.start.remote(self.build, seat.next_call())  # type: ignore[no-any-return]
        if seat.ticket is None:
            seat.ticket, seat.silent_s = self.queue.next(now), 0.0
        return seat.actor.run.remote(seat.ticket.job, seat.next_call()) if seat.ticket else None

    def wait(self) -> list["ray.ObjectRef[Done | Bad]"]:
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

    def look(self) -> None:
        """Hear how far the running calls are, and replace the workers that are hung."""
        passed, now = time.monotonic() - self.looked_at, time.monotonic()
        if passed < TICK_S or (self.hang_s is None and self.on_pulse is None):
            return
        self.looked_at = now
        # The time for which the consumer kept this process from looking says nothing.
        passed = min(passed, 4 * TICK_S)
        for ref, seat in [(r, s) for r, s in self.running.items() if s.process is not None]:
            seat.silent_s += passed
            self.hear(seat)
            hung = self.hang_s is not None and seat.silent_s > self.hang_s
            if hung and not ray.wait([ref], timeout=0)[0]:
                self.replace(ref, seat)
        self.see_off()

    def hear(self, seat: Seat[J]) -> None:
        heard = seat.listen(PULSE_S if self.hang_s is None else min(PULSE_S, self.hang_s / 4))
        done = None if heard is None else seat.progress(heard)
        if done is not None and seat.ticket is not None and self.on_pulse is not None:
            self.on_pulse(seat.ticket.job, done)

    def replace(self, ref: "ray.ObjectRef[Done | Bad]", seat: Seat[J]) -> None:
        """The worker is hung. Its call is forgotten: should it still end, nobody hears of it."""
        self.free.append(self.running.pop(ref))
        bad = Bad("died", f"hung: no progress for {self.hang_s:g} s", transient=True)
        self.leaving.append(Leaving(seat, bad.error))
        seat.leave()
        self.conclude(seat, bad)

    def see_off(self, wait: bool = False) -> None:
        """Tell the stacks of hung workers that have come, and kill these for good."""
        for worker in list(self.leaving if ray.is_initialized() else ()):
            if (words := worker.last_words(wait)) is not None:
                self.leaving.remove(worker)
                self.tell(words)
                log.warning("%s", words)

    def settle(self, ref: "ray.ObjectRef[Done | Bad]") -> list[tuple[J, R]]:
        """Book the end of one call; gives the job and its result, if there is one."""
        seat, outcome = self.running.pop(ref), fetch(ref)
        self.free.append(seat)
        if isinstance(outcome, Bad) and outcome.kind == "unavailable":
            # The job keeps its seat: if the process is dead, a later call says so; that counts.
            seat.rests += 1
            seat.not_before = time.monotonic() + backoff_s(seat.rests)
            self.tell(f"worker {seat.number}: out of reach: {outcome.error}")
            return []
        if isinstance(outcome, Bad) and outcome.kind == "died":
            seat.vacate()
        return self.conclude(seat, outcome)

    def conclude(self, seat: Seat[J], outcome: Done | Bad) -> list[tuple[J, R]]:
        ticket: Ticket[J] | None
        ticket, seat.ticket, seat.rests = seat.ticket, None, 0
        if ticket is None:
            self.book_start(seat, outcome)
        elif isinstance(outcome, Bad):
            self.queue.take_back(ticket, outcome)
        else:
            return [(ticket.job, outcome.value)]
        return []

    def book_start(self, seat: Seat[J], outcome: Done | Bad) -> None:
        if isinstance(outcome, Bad):
            self.book_failed_start(seat, outcome)
        elif seat.process is None:
            seat.process = outcome.value
        else:
            seat.started, seat.failed_starts = True, 0
            self.tell(f"worker {seat.number}: started, pid {seat.process.pid}")

    def book_failed_start(self, seat: Seat[J], bad: Bad) -> None:
        seat.vacate()
        seat.failed_starts += 1
        seat.not_before = time.monotonic() + backoff_s(seat.failed_starts)
        self.tell(f"worker {seat.number}: can't start: {bad.error}")
        if not may_retry(bad.transient, seat.failed_starts, self.queue.attempts):
            self.free.remove(seat)  # the others go on without it
            if not self.seats():
                raise bad.cause or RuntimeError(f"no worker can start: {bad.error}")
