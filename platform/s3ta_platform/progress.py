"""How far an evaluation is, and the accuracy so far, for whoever watches."""

from collections import deque
from collections.abc import Callable, Sequence

from s3ta.statistics import wilson
from s3ta.tally import Tally
from s3ta_platform.events import Emit, Event, Phase
from s3ta_platform.shards import Shard, Work

CATCH_UP = 4
"""Stored shards read per event: a finished evaluation of 100,000 shards must not be read first."""

ReadTally = Callable[[Shard], Tally]


class Progress:
    """Adds up what is finished.

    The estimate is that of the longest trajectory on the contiguous finished beginning of the
    permutation: which shards happen to be finished beyond it is not random.
    """

    def __init__(
        self, trial: str, shards: Sequence[Shard], stored: set[str], read: ReadTally, emit: Emit
    ) -> None:
        self.trial, self.shards, self.read, self.emit = trial, shards, read, emit
        self.images = sum(len(s.image_ids) for s in shards)
        self.running: dict[str, float] = {}
        """Shares of the running shards, in images."""
        self.finished = {s.key for s in shards if s.key in stored}
        self.done = sum(len(s.image_ids) for s in shards if s.key in stored)
        steps = max((s.trajectory.steps for s in shards), default=0)
        self.strongest = next((s for s in shards if s.trajectory.steps == steps), None)
        self.waiting = deque(s for s in shards if self._is_strongest(s))
        self.tallies: dict[str, Tally] = {}
        self.tally = Tally()

    def _is_strongest(self, shard: Shard) -> bool:
        s = self.strongest
        return s is not None and (shard.attack, shard.trajectory) == (s.attack, s.trajectory)

    def add(self, shard: Shard, tally: Tally) -> None:
        """A shard of the plan is stored."""
        self.running.pop(shard.key, None)
        if shard.key not in self.finished:
            self.finished.add(shard.key)
            self.done += len(shard.image_ids)
        if self._is_strongest(shard):
            self.tallies[shard.key] = tally
        self.tell()

    def pulse(self, work: Work, steps: float) -> None:
        """A shard is running: so many steps of its images are done."""
        if isinstance(work, Shard) and work.key not in self.finished:
            self.running[work.key] = steps / max(work.trajectory.steps, 1)
            self.tell()

    def tell(self, *, durable: bool = False) -> None:
        """Emit an event."""
        self._catch_up()
        running = min(sum(self.running.values()), self.images - self.done)
        self.emit(
            Event(
                trial=self.trial,
                phase=Phase.evaluate,
                done=self.images if durable else int(self.done + running),
                total=self.images,
                note=self._note(),
                durable=durable,
            )
        )

    def _catch_up(self) -> None:
        read = 0
        while self.waiting and self.waiting[0].key in self.finished and read < CATCH_UP:
            shard = self.waiting.popleft()
            if shard.key not in self.tallies:
                self.tallies[shard.key], read = self.read(shard), read + 1
            self.tally += self.tallies.pop(shard.key)

    def _note(self) -> str:
        shards = f"{len(self.finished)} of {len(self.shards)} shards"
        if self.strongest is None or not self.tally.images:
            return shards
        step = self.strongest.trajectory.readings[-1]
        correct, n = self.tally.correct.get(step, 0), self.tally.images
        low, high = wilson(correct, n)
        return (
            f"{shards}, top-1@{step} {correct / n:.1%} [{low:.1%}, {high:.1%} pointwise] on {n:,}"
        )
