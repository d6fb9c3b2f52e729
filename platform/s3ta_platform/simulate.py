"""A cluster on paper: shards, workers that get lost, a driver, a store and MLflow, and a clock.

Nothing sleeps and nothing is computed: costs are given, and what comes out is how long it would
take, what is wasted, and what becomes the limit. Times are in seconds. Pure and seeded.
"""

import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

SNAPSHOT_S = 180.0
"""cluster.snapshot_s by default."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What everything beside the attack itself takes."""

    driver_s: float = 0.005
    """Of the driver, per shard: hand it out, book it, count it. The bound that `make bench-fanout`
    holds on 2 CPU cores: 10,000 shards without work at 200 a second."""
    store_s: float = 0.03
    """A worker waits until its result is stored. ASSUMPTION: a put over a network."""
    store_per_s: float = 3500.0
    """Puts that a store takes: Amazon S3's documented 3,500 writes a second per prefix."""
    puts: int = 3
    """Per shard: lease, result, release."""
    start_s: float = 60.0
    """A new worker: a machine in place of a lost one, torch, the model. ASSUMPTION."""
    mlflow_per_s: float = 5600.0
    """Metrics in batches of 500, measured on sqlite on 2 CPU cores."""
    metrics: int = 0
    """That the whole evaluation logs."""
    snapshot_s: float = SNAPSHOT_S


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """How it went."""

    workers: int
    makespan_s: float
    useful_s: float
    """Of workers, at work that counted."""
    wasted_s: float
    """Of workers, at work that was lost, or starting anew."""
    losses: int
    driver_share: float
    """Of the makespan, for which the driver was busy."""
    store_share: float
    mlflow_share: float

    @property
    def efficiency(self) -> float:
        """Useful seconds of all that were paid for."""
        return self.useful_s / (self.workers * self.makespan_s) if self.makespan_s else 1.0

    @property
    def limit(self) -> str:
        """What would have to change for more workers to help."""
        shares = {
            "the driver": self.driver_share,
            "the store": self.store_share,
            "MLflow": self.mlflow_share,
        }
        worst = max(shares, key=lambda name: shares[name])
        if shares[worst] >= 0.5:
            return worst
        if self.efficiency >= 0.85:
            return "workers"
        return "losses" if self.wasted_s > self.idle_s else "long shards"

    @property
    def idle_s(self) -> float:
        """Of workers that had nothing to do, or waited for the driver or the store."""
        return self.workers * self.makespan_s - self.useful_s - self.wasted_s


def simulate(
    shards_s: Sequence[float],
    workers: int,
    *,
    costs: Costs,
    losses_per_hour: float = 0.0,
    seed: int = 0,
) -> Simulated:
    """Do shards of so many seconds, in this order, on workers of whom each is lost at that rate.

    A lost worker is replaced after `start_s`; its shard goes on, at once and elsewhere, from its
    last saved state. The driver books one shard at a time, and a worker waits for it.
    """
    run = _Run(deque(shards_s), costs, losses_per_hour / 3600, random.Random(seed))
    for _ in range(min(workers, len(shards_s))):
        run.hand_out(0.0)
    while run.events:
        run.next_event()
    count, makespan = len(shards_s), run.last_result
    return Simulated(
        workers=workers,
        makespan_s=makespan,
        useful_s=sum(shards_s),
        wasted_s=run.wasted_s,
        losses=run.losses,
        driver_share=count * costs.driver_s / makespan if makespan else 0.0,
        store_share=count * costs.puts / costs.store_per_s / makespan if makespan else 0.0,
        mlflow_share=costs.metrics / costs.mlflow_per_s / makespan if makespan else 0.0,
    )


@dataclass
class _Run:
    """The state of a simulation. Workers are alike, so it knows only how many are idle."""

    waiting: deque[float]
    costs: Costs
    rate: float
    random: random.Random
    events: list[tuple[float, int, str, float, float]] = field(default_factory=list)
    """When, a number that keeps order, what, the shard's seconds left, and when it was begun."""
    idle: int = 0
    driver_free: float = 0.0
    store_free: float = 0.0
    last_result: float = 0.0
    wasted_s: float = 0.0
    losses: int = 0
    number: int = 0

    def later(self, when: float, what: str, left_s: float = 0.0, begun: float = 0.0) -> None:
        self.number += 1
        heapq.heappush(self.events, (when, self.number, what, left_s, begun))

    def hand_out(self, now: float) -> None:
        """A free worker takes the next shard, or is idle."""
        if not self.waiting:
            self.idle += 1
            return
        left_s = self.waiting.popleft()
        life_s = self.random.expovariate(self.rate) if self.rate else float("inf")
        if life_s < left_s:
            self.later(now + life_s, "lost", left_s, now)
        else:
            self.later(now + left_s, "stored", left_s, now)

    def next_event(self) -> None:
        now, _, what, left_s, begun = heapq.heappop(self.events)
        if what == "lost":
            self.lose(now, left_s, now - begun)
        elif what == "stored":
            self.store(now)
        elif what == "booked":
            self.last_result = max(self.last_result, now)
            self.hand_out(now)
        else:
            self.hand_out(now)

    def lose(self, now: float, left_s: float, done_s: float) -> None:
        """What was saved counts; the rest, and the new worker's start, are wasted."""
        saved_s = done_s - done_s % self.costs.snapshot_s
        self.losses += 1
        self.wasted_s += done_s - saved_s + self.costs.start_s
        self.waiting.appendleft(left_s - saved_s)
        self.later(now + self.costs.start_s, "replaced")
        if self.idle:
            self.idle -= 1
            self.hand_out(now)

    def store(self, now: float) -> None:
        """The store takes puts at its own pace, the driver books shards one by one."""
        self.store_free = max(now, self.store_free) + self.costs.puts / self.costs.store_per_s
        stored = max(now + self.costs.store_s, self.store_free)
        self.driver_free = max(stored, self.driver_free) + self.costs.driver_s
        self.later(self.driver_free, "booked")


def recommend(candidates: Sequence[tuple[int, Simulated]]) -> int:
    """The shard size (evaluate.shard_steps) to take: the largest within 2 % of the fastest.

    Larger shards are fewer files and less for the driver to do.
    """
    fastest = min(found.makespan_s for _, found in candidates)
    return max(size for size, found in candidates if found.makespan_s <= 1.02 * fastest)
