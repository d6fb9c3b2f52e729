"""Watches over a training worker: no wedged step hangs for ever, and whoever wedged it is named.

Threads of each worker watch over it, and tell the others, through torch's store, how far it is.
Three things can happen to a worker that makes no progress for `hang_s` seconds:

- it computes and gets nowhere, or a library never returns: its own timer, which is C code and needs
  no lock of Python's, writes down the stacks of all threads and ends the process;
- it waits in a sum for another worker that lives: then it goes on waiting, and now and then says
  for whom (that one may be waiting for a store, or will be ended by its own timer);
- it waits for one that shows no life: that one is named, the stacks of both are written down, and
  it is ended on its node; the sum then fails for all, and Ray Train starts the workers again.
"""

import faulthandler
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from s3ta_platform import pulse
from s3ta_platform.stacks import Process

log = logging.getLogger("ray.s3ta")  # ends up in the run's log file

STDERR = 2
TELL_EVERY_S = 60.0
ENDED_WITHIN_S = 60.0
"""So long ending others may take."""
GRACE_S = 10.0
"""So long a sum may take to fail after a worker in it has been ended."""
EXIT_CODE = 70

End = Callable[[Process], str]
"""Ends a process, wherever it runs, and tells what it was doing."""


@dataclass
class _Peer:
    """What one worker knows of another."""

    life: bytes = b""
    """As it told it last."""
    sums: int = 0
    """How many it has entered."""
    process: Process | None = None
    heard_at: float = field(default_factory=time.monotonic)
    """When its life last changed."""


class Watch:
    """The watch over this process as worker `rank` of `world`; see above.

    store: torch's, a connection of its own, which nobody else uses. process: this one, as others
    may end it. Use it as a context manager; `waiting` goes around every collective operation.
    """

    def __init__(
        self, rank: int, world: int, hang_s: float, store: Any, process: Process, end: End
    ) -> None:
        self.rank, self.hang_s, self.store, self.end = rank, hang_s, store, end
        self.process = process
        self.every_s = min(1.0, hang_s / 8)
        self.peers = {r: _Peer() for r in range(world) if r != rank}
        self.sums, self.ticks = 0, 0
        self.waits_since: float | None = None
        self.heard_at = time.monotonic()
        """When the store last answered."""
        self.told_at = 0.0
        self.ending = threading.Lock()
        """Held while others are ended."""
        self.stop = threading.Event()
        if store is not None:
            self._talk()

    def __enter__(self) -> "Watch":
        log.info("rank %d is process %d on %s", self.rank, self.process.pid, self.process.node_id)
        # Of the second nobody knows when it returns: torch's store has no timeout that holds.
        for name, target in (("watch", self._run), ("talk", self._talk_on)):
            threading.Thread(target=target, name=name, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside the block this worker depends on the others."""
        self.sums += 1
        self.waits_since = time.monotonic()
        try:
            yield
        except BaseException:
            # Perhaps another was ended just now: what it was doing is said before this one ends.
            if self.ending.acquire(timeout=ENDED_WITHIN_S):
                self.ending.release()
            raise
        finally:
            self.waits_since = None
            pulse.beat()

    def _run(self) -> None:
        seen, armed_at = -1, 0.0
        while not self.stop.wait(self.every_s):
            beats, now = pulse.read()[0], time.monotonic()
            waits_since = self.waits_since
            moved = beats != seen or waits_since is not None
            # A timer costs a thread: not one for every beat.
            if moved and now - armed_at >= self.hang_s / 8:
                faulthandler.dump_traceback_later(self.hang_s, exit=True, file=STDERR)
                seen, armed_at = beats, now
            if waits_since is not None and now - waits_since >= self.hang_s:
                self._look_for_the_late(now - waits_since)

    def _talk_on(self) -> None:
        while self.store is not None and not self.stop.wait(self.every_s):
            try:
                self._talk()
            except RuntimeError as error:  # torch's DistError is one
                log.info("rank %d: no word from the store (%s)", self.rank, str(error)[:200])

    def _talk(self) -> None:
        """Tell the others of this worker, and hear of those that have begun."""
        self.ticks += 1
        life = {"ticks": self.ticks, "sums": self.sums, "process": asdict(self.process)}
        self.store.set(f"rank/{self.rank}", json.dumps(life))
        for rank, peer in self.peers.items():
            name = f"rank/{rank}"
            life_of_peer = self.store.get(name) if self.store.check([name]) else peer.life
            if life_of_peer != peer.life:
                told = json.loads(life_of_peer)
                peer.life, peer.sums, peer.heard_at = life_of_peer, told["sums"], time.monotonic()
                peer.process = Process(**told["process"])
        self.heard_at = time.monotonic()

    def _look_for_the_late(self, waited_s: float) -> None:
        now = time.monotonic()
        silent = {r: p for r, p in self.peers.items() if now - p.heard_at >= self.hang_s}
        if now - self.heard_at >= self.hang_s:  # rank 0 keeps the store
            silent = {0: self.peers[0]}
        late = {r: p for r, p in self.peers.items() if p.sums < self.sums}
        if silent:
            self._give_up(silent, waited_s)
        elif late and now - self.told_at >= TELL_EVERY_S:
            self.told_at = now
            log.warning(
                "rank %d: at step %d, waiting for %.0f s for %s, which shows life",
                *(self.rank, pulse.read()[1], waited_s, _names(late)),
            )

    def _give_up(self, silent: dict[int, _Peer], waited_s: float) -> None:
        log.error(
            "rank %d: at step %d, waited %.0f s for %s, which shows no life",
            *(self.rank, pulse.read()[1], waited_s, _names(silent)),
        )
        faulthandler.dump_traceback(file=STDERR)
        faulthandler.dump_traceback_later(self.hang_s + ENDED_WITHIN_S, exit=True, file=STDERR)
        with self.ending:
            for rank, peer in silent.items():
                if peer.process is not None:
                    log.error("rank %d: %s", rank, self.end(peer.process))
        since = self.waits_since
        if self.stop.wait(GRACE_S) or self.waits_since != since:
            return  # the sum has failed, as it should
        log.error("rank %d: the sum hangs on: this process ends itself", self.rank)
        os._exit(EXIT_CODE)


def _names(peers: dict[int, _Peer]) -> str:
    where = (
        f"rank {r} (process {p.process.pid} on {p.process.node_id})" if p.process else f"rank {r}"
        for r, p in peers.items()
    )
    return ", ".join(where)
