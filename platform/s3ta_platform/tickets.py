"""Jobs on their way: which one is next, and what becomes of one that did not work out."""

import re
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias, TypeVar

J = TypeVar("J")
R = TypeVar("R")
OnEvent: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class JobFailure:
    """A job that was given up: its last error in one line, and the traceback if there is one."""

    job: Any
    error: str
    tries: int
    traceback: str = ""
    died: bool = False
    """The last try ended with its worker, which died or was killed as hung."""


class JobsFailedError(RuntimeError):
    """Some jobs have failed; all others were done and yielded before this was raised."""

    def __init__(self, failures: tuple[JobFailure, ...]) -> None:
        super().__init__(failures)
        self.failures = failures

    def __str__(self) -> str:
        named = [f"  {shown(f.job)} (tried {f.tries}x): {f.error}" for f in self.failures[:10]]
        rest = [f"  and {len(self.failures) - 10} more"] if len(self.failures) > 10 else []
        return "\n".join([f"{len(self.failures)} job(s) failed:", *named, *rest])


class Postponed(Exception):  # noqa: N818 (nothing went wrong)
    """Raised by a job: not now. It is begun again when there is nothing else to do."""


@dataclass(frozen=True)
class Done:
    value: Any


@dataclass(frozen=True)
class Bad:
    """What went wrong, in plain strings: not every exception survives being pickled."""

    kind: Literal["raised", "postponed", "died", "unavailable"]
    error: str
    transient: bool
    traceback: str = ""
    cause: Exception | None = None


def backoff_s(tries: int) -> float:
    """Seconds to pause after the given number of tries: 0.5, 1, 2, ... at most 30."""
    return min(30.0, 0.5 * 2.0 ** min(tries - 1, 10))


def postpone_s(times: int) -> float:
    """Seconds to pause when postponed for the given time: 2, 4, 8, then 15."""
    return min(15.0, 2.0 ** min(times, 10))


def may_retry(transient: bool, tries: int, attempts: int) -> bool:
    return transient and tries < attempts


def shown(thing: object) -> str:
    """One uncoloured line of at most 400 characters, start and end: an error may hold a log."""
    line = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(thing)).split())
    return line if len(line) <= 400 else f"{line[:130]} ... {line[-265:]}"


def raised(error: Exception, cause: Exception | None = None) -> Bad:
    text = "".join(traceback.format_exception(error))
    line = shown(f"{type(error).__name__}: {error}")
    return Bad("raised", line, isinstance(error, OSError), text, cause)


def attempt(do: Callable[[J], R], job: J) -> Done | Bad:
    try:
        return Done(do(job))
    except Postponed as why:
        return Bad("postponed", shown(f"postponed: {why}"), transient=True)
    except Exception as error:
        return raised(error)


@dataclass(eq=False)
class Ticket(Generic[J]):
    """A job on its way: how often it was begun, and when it may be begun again."""

    job: J
    tries: int = 0
    postponed: int = 0
    not_before: float = 0.0


@dataclass(kw_only=True)
class Queue(Generic[J]):
    """All jobs that nobody is doing now. Jobs are taken from the iterator as they are needed."""

    jobs: Iterator[J]
    attempts: int
    tell: OnEvent
    instead: Callable[[JobFailure], Sequence[J]] | None = None
    again: list[Ticket[J]] = field(default_factory=list)
    substitutes: deque[J] = field(default_factory=deque)
    postponed: list[Ticket[J]] = field(default_factory=list)
    failures: list[JobFailure] = field(default_factory=list)
    exhausted: bool = False

    @property
    def empty(self) -> bool:
        return self.exhausted and not (self.again or self.substitutes or self.postponed)

    def next(self, now: float) -> Ticket[J] | None:
        """What to do next; None where all that is left has to pause."""
        if ticket := _due(self.again, now):
            return ticket
        if self.substitutes:
            return Ticket(self.substitutes.popleft())
        for job in self.jobs:
            return Ticket(job)
        self.exhausted = True
        return _due(self.postponed, now)

    def wait_for_next(self) -> Ticket[J] | None:
        """What to do next, after a pause if need be; None where nothing is left."""
        while (ticket := self.next(time.monotonic())) is None and not self.empty:
            soonest = min(t.not_before for t in [*self.again, *self.postponed])
            time.sleep(max(0.0, soonest - time.monotonic()))
        return ticket

    def take_back(self, ticket: Ticket[J], bad: Bad) -> None:
        """Book a try that has not worked out."""
        if bad.kind == "postponed":
            self.postpone(ticket, bad)
            return
        ticket.tries += 1
        self.tell(_trouble(ticket.job, bad, ticket.tries, self.attempts))
        if may_retry(bad.transient, ticket.tries, self.attempts):
            ticket.not_before = time.monotonic() + backoff_s(ticket.tries)
            self.again.append(ticket)
        else:
            died = bad.kind == "died"
            self.give_up(JobFailure(ticket.job, bad.error, ticket.tries, bad.traceback, died))

    def postpone(self, ticket: Ticket[J], bad: Bad) -> None:
        ticket.postponed += 1
        if ticket.postponed == 1:
            self.tell(f"job {shown(ticket.job)}: {bad.error}")
        ticket.not_before = time.monotonic() + postpone_s(ticket.postponed)
        self.postponed.append(ticket)

    def give_up(self, failure: JobFailure) -> None:
        if substitutes := self.instead(failure) if self.instead else ():
            self.tell(f"job {shown(failure.job)}: {len(substitutes)} job(s) instead")
            self.substitutes.extend(substitutes)
        else:
            self.failures.append(failure)

    def raise_failures(self) -> None:
        if self.failures:
            raise JobsFailedError(tuple(self.failures))


def _due(tickets: list[Ticket[J]], now: float) -> Ticket[J] | None:
    """The first whose pause is over, taken out of the list."""
    for ticket in tickets:
        if ticket.not_before <= now:
            tickets.remove(ticket)
            return ticket
    return None


def _trouble(job: object, bad: Bad, tries: int, attempts: int) -> str:
    end = f"again in {backoff_s(tries):g} s" if may_retry(bad.transient, tries, attempts) else ""
    return f"job {shown(job)}: try {tries} of {attempts}: {bad.error}: {end or 'given up'}"
