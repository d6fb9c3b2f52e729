"""A place among the workers of a fan-out, and the process in it. The processes come and go."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from s3ta_platform import pulse, stacks
from s3ta_platform.stacks import Process
from s3ta_platform.tickets import Bad, Done, J, Ticket, attempt, raised, shown

LAST_WORDS_S = 10.0
"""So long a hung process's stack is waited for, before it is killed without."""


@dataclass(frozen=True)
class Heard:
    """A worker's answer: which call it is busy with, its beats in it, and how much is done."""

    call: int
    beats: int
    done: float


class Worker:
    """What runs in an actor's process: its calls in one thread, `pulse` beside them in another."""

    def __init__(self, threads: int) -> None:
        # Read when torch is imported, which is not before `build` is unpickled for `start`.
        # (A runtime_env would do it too, but then no process is ready: a second more to start.)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self.threads = threads
        self.call = 0
        self.do: Callable[[Any], Any] | None = None

    def hello(self) -> Done:
        """The first call, which does nothing: who answers it is alive from then on."""
        return Done(stacks.listen(ray.get_runtime_context().get_node_id()))

    def start(self, build: Callable[[], Callable[[Any], Any]], call: int) -> Done:
        """Build once; a second call changes nothing."""
        self._begin(call)
        self.do = self.do or build()
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(self.threads)
        return Done(None)

    def run(self, job: Any, call: int) -> Done | Bad:
        assert self.do is not None, "start comes first"
        self._begin(call)
        return attempt(self.do, job)

    @ray.method(concurrency_group="pulse")
    def pulse(self) -> Heard:
        return Heard(self.call, *pulse.read())

    def _begin(self, call: int) -> None:
        pulse.reset()  # first: an answer in between is the last call's, with nothing done
        self.call = call


@dataclass(eq=False)
class Seat(Generic[J]):
    """A seat is free or has a running call, and keeps its job until that is done or given back."""

    number: int
    actor: Any = None
    process: Process | None = None
    """Known once a worker has answered."""
    started: bool = False
    ticket: Ticket[J] | None = None
    failed_starts: int = 0
    rests: int = 0
    not_before: float = 0.0
    call: int = 0
    """Counts the calls; a late answer belongs to an earlier one."""
    latest: Heard | None = None
    silent_s: float = 0.0
    """So long its call has made no progress while somebody looked."""
    asked: "ray.ObjectRef[Heard] | None" = None
    asked_at: float = 0.0

    def next_call(self) -> int:
        self.call += 1
        return self.call

    def listen(self, every_s: float) -> Heard | None:
        """What the worker has answered since the last look; never waits for it."""
        heard = None
        if self.asked is not None and ray.wait([self.asked], timeout=0)[0]:
            answer, self.asked = fetch(self.asked), None
            heard = answer if isinstance(answer, Heard) else None  # the call itself says why
        if self.asked is None and time.monotonic() - self.asked_at >= every_s:
            self.asked, self.asked_at = self.actor.pulse.remote(), time.monotonic()
        return heard

    def progress(self, heard: Heard) -> float | None:
        """Book an answer; gives what is done of the running call, if that has changed."""
        before, self.latest = self.latest, heard
        if before is None or (before.call, before.beats) != (heard.call, heard.beats):
            self.silent_s = 0.0
        known = before.done if before is not None and before.call == heard.call else 0.0
        return heard.done if heard.call == self.call and heard.done != known else None

    def vacate(self) -> None:
        if self.actor is not None:
            kill(self.actor)
        self.leave()

    def leave(self) -> None:
        self.actor = self.process = self.latest = self.asked = None
        self.started, self.silent_s, self.asked_at = False, 0.0, 0.0


class Leaving:
    """A hung worker that has lost its seat: it is asked for its stack, then killed for good."""

    def __init__(self, seat: Seat[Any], why: str) -> None:
        assert seat.process is not None, "only a worker that was alive can hang"
        self.who = f"worker {seat.number}: {why}"
        self.actor = seat.actor
        self.until = time.monotonic() + LAST_WORDS_S
        self.words = stacks.ask_and_kill(seat.process, seat.actor)

    def last_words(self, wait: bool) -> str | None:
        """Its stack, or why there is none, once that is known; then it is dead."""
        patience_s = max(0.0, self.until - time.monotonic()) if wait else 0
        known = bool(ray.wait([self.words], timeout=patience_s)[0])
        if not known and time.monotonic() < self.until:
            return None
        said = fetch(self.words) if known else f"no stack within {LAST_WORDS_S:g} s"
        kill(self.actor)
        return f"{self.who}: {f'no stack: {said.error}' if isinstance(said, Bad) else said}"


def kill(actor: Any) -> None:
    if ray.is_initialized():
        ray.kill(actor, no_restart=True)


def fetch(ref: "ray.ObjectRef[Any]") -> Any:
    """What a call has returned; a `Bad` where it has not."""
    try:
        return ray.get(ref)
    except ActorUnavailableError as error:
        return Bad("unavailable", shown(error), transient=True)
    except RayTaskError as error:  # `build` raised, or a result can't be pickled
        cause = error.cause if isinstance(error.cause, Exception) else error
        return raised(cause, cause)
    except RayError as error:
        return Bad("died", shown(f"the worker died: {error}"), transient=True)
