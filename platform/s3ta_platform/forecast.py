"""How long a plan takes on given hardware, its cost, and what it leaves on disk: pure functions.

Times are multiply-adds over what the hardware attains, as a range. Not counted: reading images,
adding up gradients between machines, waiting for the cluster. Imports no torch.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from s3ta_platform.hardware import NOTHING, Hardware, Range
from s3ta_platform.memory import FLOAT32, attack_bytes, training_bytes
from s3ta_platform.rows import SCHEMA
from s3ta_platform.work import TrialWork

FLOP = 2
"""Floating-point operations of a multiply-add."""
ROW_BYTES = sum(1 if field.type.bit_width == 1 else field.type.bit_width // 8 for field in SCHEMA)
SHARD_BYTES = 6000
"""About a file's own head, and its line in the evaluation's record: an estimate."""
START_S, FIT_S, FAN_OUT_S = 20.0, 12.0, 4.0
"""Until Ray works, until a leg's first step, and until shard workers attack (2 CPU cores)."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """FLOP/s of one device."""

    training: Range
    attacks: Range


@dataclass(frozen=True, kw_only=True)
class TrialForecast:
    """Of one trial. Seconds of one device, whatever the number of devices that share them."""

    name: str
    training: Range
    attacks: Range
    workers: int
    """Devices that train it."""
    training_wall: Range
    """Seconds, with so many workers."""
    shards: int
    training_bytes: int
    attack_bytes: int
    checkpoint_bytes: int
    row_bytes: int

    @property
    def device_s(self) -> Range:
        return self.training + self.attacks


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Of a whole plan."""

    hardware: Hardware
    trials: list[TrialForecast]
    wall: Range
    """Seconds from start to end, trials side by side where there is room."""

    @property
    def device_hours(self) -> Range:
        return sum((t.device_s for t in self.trials), NOTHING).times(1 / 3600)

    @property
    def stored_bytes(self) -> int:
        return sum(t.checkpoint_bytes + t.row_bytes for t in self.trials)


def forecast(
    works: Sequence[TrialWork],
    hardware: Hardware,
    *,
    measured: Sequence[Rates] | None = None,
    workers: Sequence[int] | None = None,
    starts: bool = False,
) -> Forecast:
    """Forecast these trials.

    measured: what one device attains, per trial; by default what the hardware's profile says.
    workers: devices that train each trial; by default all, but no more than can share a step.
    starts: add what it takes Ray to start, for the whole and for each trial.
    """
    rates = measured or [_profiled(work, hardware) for work in works]
    most = [min(hardware.devices, work.experiment.train.microbatches) for work in works]
    given = zip(works, rates, workers or most, strict=True)
    trials = [_trial(work, rate, count, starts) for work, rate, count in given]
    low = _wall([(t, t.training_wall.low, t.attacks.low) for t in trials], hardware)
    high = _wall([(t, t.training_wall.high, t.attacks.high) for t in trials], hardware)
    start_s = START_S * starts
    wall = Range(low + start_s, high + start_s)
    return Forecast(hardware=hardware, trials=trials, wall=wall)


def attained(work: TrialWork, hours: float, devices: int) -> float:
    """FLOP/s per device that a training has had which took so many hours."""
    return FLOP * work.cost.training / (hours * 3600 * devices)


def rounds_share(microbatches: int, workers: int) -> float:
    """A step's time with so many workers, as a share of its time with one: whole microbatches."""
    return -(-microbatches // workers) / microbatches


def _profiled(work: TrialWork, hardware: Hardware) -> Rates:
    e = work.experiment
    return Rates(
        training=hardware.profile.attained(e.train.dtype),
        attacks=hardware.profile.attained(e.evaluate.engine.dtype),
    )


def _seconds(multiply_adds: int, rate: Range) -> Range:
    return Range(FLOP * multiply_adds / rate.high, FLOP * multiply_adds / rate.low)


def _trial(work: TrialWork, rates: Rates, workers: int, starts: bool) -> TrialForecast:
    e = work.experiment
    training = _seconds(work.cost.training, rates.training)
    share = rounds_share(e.train.microbatches, workers)
    wall = training.times(share)
    readings = sum(a.runs * len(a.readings) for a in work.cost.attacks)
    shards = sum(a.shards for a in work.cost.attacks)
    # Weights and momentum; beside the last ones, those of the last epoch's end and the best.
    kept = min(e.cluster.keep_checkpoints + 2, e.train.epochs)
    return TrialForecast(
        name=work.name,
        training=training,
        attacks=_seconds(work.cost.evaluation, rates.attacks),
        workers=workers,
        training_wall=wall + Range(1, 1).times(starts * (FIT_S + FAN_OUT_S)),
        shards=shards,
        training_bytes=training_bytes(work),
        attack_bytes=attack_bytes(work),
        checkpoint_bytes=kept * 2 * work.cost.parameters * FLOAT32,
        row_bytes=readings * work.test_images * ROW_BYTES + shards * SHARD_BYTES,
    )


def _wall(trials: Sequence[tuple[TrialForecast, float, float]], hardware: Hardware) -> float:
    jobs = [
        (min(t.workers, hardware.devices), training_s, attack_s, t.shards)
        for t, training_s, attack_s in trials
    ]
    return packed(jobs, hardware.devices)


def packed(jobs: Sequence[tuple[int, float, float, int]], devices: int) -> float:
    """Seconds until all is done, where whatever can start starts, in the order given.

    A job is (workers, seconds of training, device-seconds of attacks, shards). Its shards, all
    alike, can start when its training has ended; a free device takes them before a new training.
    """
    waiting = list(enumerate(jobs))
    shards: list[tuple[int, float]] = []  # that can start: how many, and the seconds of each
    running: list[tuple[float, int, int]] = []  # when it ends, its devices, its job or -1
    free, now = devices, 0.0
    while waiting or shards or running:
        while shards and free:
            count, seconds = shards.pop(0)
            taken = min(count, free)
            heapq.heappush(running, (now + seconds, taken, -1))
            free -= taken
            if count > taken:
                shards.insert(0, (count - taken, seconds))
        while waiting and not shards and waiting[0][1][0] <= free:
            place, (workers, training_s, _, _) = waiting.pop(0)
            heapq.heappush(running, (now + training_s, workers, place))
            free -= workers
        now, freed, place = heapq.heappop(running)
        free += freed
        if place >= 0 and jobs[place][3]:
            shards.append((jobs[place][3], jobs[place][2] / jobs[place][3]))
    return now
