"""Who is working on what, so that two drivers of one evaluation don't do the same shard at once.

A lease saves time and nothing else: results are create-only, so work done twice does no harm.
That is why nothing here waits, and why no lock has to be released.

    leases/KEY/000003-000000      the third claim to KEY: its name is create-only, so one taker wins
    leases/KEY/000003-000017      its 17th renewal; only the last two are kept

A claim counts by its latest renewal. It blocks other owners until it is released, until its process
is dead (seen from the same host: at once), or until nothing was heard of it for `stale_s`: by the
clock on the wall, or by what this reader has itself watched. So where the clocks of two hosts
differ by d, a lease is lost d too early or too late (and never more than stale_s after a reader's
first look); keep stale_s well above d. Garbage is watched for stale_s, too.
"""

import json
import math
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from s3ta.errors import UserError
from s3ta_platform.hosts import process_start, this_host
from s3ta_platform.storage import NotStored, Storage

FOLDER = "leases"
_NAME = re.compile(r"(\d{6,})-(\d{6,})", re.ASCII)
_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who renewed a lease, and when."""

    owner: str
    host: str
    pid: int
    started: str
    time: float
    """Seconds since 1970, by the holder's clock."""

    @classmethod
    def parse(cls, raw: bytes) -> "Holder | None":
        """None for garbage."""
        try:
            found = json.loads(raw)
            owner, host, started = (str(found[name]) for name in ("owner", "host", "started"))
            pid, when = int(found["pid"]), float(found["time"])
        except (ValueError, KeyError, TypeError, OverflowError):
            return None
        if not (0 < pid < 2**31 and math.isfinite(when)):
            return None
        return cls(owner=owner, host=host, pid=pid, started=started, time=when)

    def is_dead(self) -> bool:
        """True only where that is certain: its process ran on this host, and is gone."""
        if self.host != this_host():
            return False
        start = process_start(self.pid)
        return start is None or bool(start and self.started and start != self.started)


def this_process(owner: str, now: Callable[[], float] = time.time) -> Holder:
    """Whoever calls, as the holder of something."""
    pid = os.getpid()
    started = process_start(pid) or ""
    return Holder(owner=owner, host=this_host(), pid=pid, started=started, time=now())


@dataclass
class Leases:
    """The leases in a storage, as one owner (a driver's run id) and all its workers see them.

    storage: best one that is not patient, for no lease is worth a pause, nor an fsync. While it is
    away, `take` gives the lease unseen: a beat registers it as soon as that can be done.
    """

    storage: Storage
    owner: str
    stale_s: float
    now: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    _watched: dict[str, tuple[bytes, float]] = field(default_factory=dict, init=False)
    """By claim: its latest renewal, and when it was first seen on our clock."""

    def take(self, key: str) -> "Lease | None":
        """None: another owner is working on it. The owner's own claims never block.

        Look for a stored result after taking, not before: the last holder may just have ended.
        """
        try:
            claim = self.claim(key)
        except OSError:
            claim = 0
        return None if claim is None else Lease(self, key, claim)

    def claim(self, key: str) -> int | None:
        """The number of a new claim, or None where another owner's is in force."""
        for _ in range(_TRIES):
            try:
                latest = self.latest(key)
                if any(self._blocks(key, name) for name in latest.values()):
                    return None
                claim = max(latest, default=0) + 1
                if self.put(key, claim, 0) and self._is_ours(key, claim):
                    return claim
            except NotStored:  # just renewed or released: look again
                continue
        return None  # another was quicker each time

    def latest(self, key: str) -> dict[int, str]:
        """By the number of each claim to a key, the name of its latest renewal."""
        return {numbers(name)[0]: name for name in sorted(self.names(key), key=numbers)}

    def names(self, key: str) -> list[str]:
        start = f"{FOLDER}/{key}/"
        found = self.storage.list(start)
        return [name for name in found if _NAME.fullmatch(name.removeprefix(start))]

    def put(self, key: str, claim: int, beat: int) -> bool:
        holder = this_process(self.owner, self.now)
        return self.storage.put_new(name_of(key, claim, beat), json.dumps(asdict(holder)).encode())

    def _is_ours(self, key: str, claim: int) -> bool:
        """Look again: numbers begin anew after a release, so that another may have a live claim
        with another number. Of two who look after both have written, one at least sees that."""
        others = [name for number, name in self.latest(key).items() if number != claim]
        with suppress(NotStored):
            if not any(self._blocks(key, name) for name in others):
                return True
        self.storage.delete(name_of(key, claim, 0))
        return False

    def _blocks(self, key: str, name: str) -> bool:
        """Whether another owner is at work under this claim. Raises NotStored."""
        raw = self.storage.get(name)
        silent_s = self.clock() - self._unchanged_since(f"{key}/{numbers(name)[0]}", raw)
        holder = Holder.parse(raw)
        if holder is not None:
            if holder.owner == self.owner or holder.is_dead():
                return False
            silent_s = max(silent_s, self.now() - holder.time)
        return silent_s < self.stale_s

    def _unchanged_since(self, claim: str, raw: bytes) -> float:
        seen, since = self._watched.get(claim, (b"", 0.0))
        if seen != raw or claim not in self._watched:
            since = self.clock()
            self._watched[claim] = raw, since
        return since


class Lease:
    """A claim in force. Its beats come from the work itself, so that hung work loses it."""

    def __init__(self, leases: Leases, key: str, claim: int) -> None:
        self.key, self._leases = key, leases
        self._claim, self._beats = claim, 0
        self._heard = self._tried = leases.clock()
        self._over = False

    def beat(self) -> None:
        """Renew, at most every stale_s / 4; costs nothing between. Never raises."""
        clock = self._leases.clock()
        if self._over or clock - self._tried < self._leases.stale_s / 4:
            return
        self._tried = clock
        with suppress(OSError, UserError):
            self._renew()
            self._heard = clock

    def release(self) -> None:
        """Leave the key to others. Never raises: what can't be deleted becomes stale."""
        with suppress(OSError, UserError):
            if not self._over and not self._is_lost():
                self._delete_all()
        self._over = True

    def _renew(self) -> None:
        if self._is_lost():
            self._over = True
            return
        if not self._claim:  # the store was away when it was taken
            self._claim = self._leases.claim(self.key) or 0
            return
        self._beats += 1
        self._leases.put(self.key, self._claim, self._beats)
        # The one before stays, for a reader that is listing just now may miss the new one; so does
        # 000000, for it keeps others from creating this claim again.
        if self._beats > 2:
            self._leases.storage.delete(name_of(self.key, self._claim, self._beats - 2))

    def _is_lost(self) -> bool:
        """After a long silence (the process was stopped) another may have taken over."""
        if not self._claim or self._leases.clock() - self._heard < self._leases.stale_s:
            return False
        return max(self._leases.latest(self.key), default=0) != self._claim

    def _delete_all(self) -> None:
        """This claim's names and those of claims before it. 000000 last: see _renew."""
        names = sorted(self._leases.names(self.key), key=numbers, reverse=True)
        for name in names:
            if numbers(name)[0] <= self._claim:
                self._leases.storage.delete(name)


def name_of(key: str, claim: int, beat: int) -> str:
    return f"{FOLDER}/{key}/{claim:06d}-{beat:06d}"


def numbers(name: str) -> tuple[int, int]:
    """Claim and beat."""
    claim, beat = name.rpartition("/")[2].split("-")
    return int(claim), int(beat)
