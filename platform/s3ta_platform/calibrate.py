"""What this machine attains on an experiment's own models: steps of training, steps of the attack.

Measured in as many processes at once as workers would run, for they share caches and memory.
Nothing is read and nothing stored: the images are noise, which costs as much as photos.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from s3ta.batch import Batch, Conditions
from s3ta.cost import multiply_adds
from s3ta.engine import make_engine
from s3ta.evaluation import AttackRun
from s3ta.fastcopy import FastCopy
from s3ta.model import build
from s3ta.schedules import stage_at
from s3ta.settings import AttackSettings
from s3ta.sums import StepSums
from s3ta.training import Moment, add_microbatch, optimizer
from s3ta.trajectory import trajectories
from s3ta_platform.costs import update_passes
from s3ta_platform.devices import pin_arithmetic
from s3ta_platform.forecast import FLOP, Rates
from s3ta_platform.hardware import Range
from s3ta_platform.record import content_key
from s3ta_platform.work import TrialWork

SECONDS = 45.0
"""Beside the processes' start, so that it is a minute."""
PARTS = 3
"""A measurement is cut into so many: the slowest and the fastest are the range's ends."""
ATTACK_STEPS = 48
"""So many that the judge's passes have about the share that they have in a hundred steps: 7 %."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one process measures; can be pickled."""

    work: TrialWork
    threads: int
    device: str
    seconds: float
    """For training; as much again for the attack."""


def calibrate(
    works: Sequence[TrialWork],
    *,
    workers: int,
    threads: int,
    device: str,
    seconds: float = SECONDS,
) -> list[Rates]:
    """What one of `workers` attains while all are at work, for each trial, in `seconds` or so."""
    kinds = {_kind(work): work for work in works}
    each = seconds / len(kinds) / 2
    found: dict[str, Rates] = {}
    context = multiprocessing.get_context("spawn")  # a fork would share torch's threads
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for kind, work in kinds.items():
            task = Task(work=work, threads=threads, device=device, seconds=each)
            found[kind] = _together(list(pool.map(measure, [task] * workers)))
    return [found[_kind(work)] for work in works]


def _kind(work: TrialWork) -> str:
    """Trials of one kind compute alike: they differ in seeds, epochs and numbers of images."""
    e = work.experiment
    train = replace(e.train, seed=0, epochs=1, curriculum=[], warmup_epochs=0.0)
    return content_key(model=e.model, train=train, engine=e.evaluate.engine, size=work.size)


def _together(measured: Sequence[Rates]) -> Rates:
    return Rates(
        training=_ends([m.training for m in measured]),
        attacks=_ends([m.attacks for m in measured]),
    )


def _ends(ranges: Sequence[Range]) -> Range:
    return Range(min(r.low for r in ranges), max(r.high for r in ranges))


def measure(task: Task) -> Rates:
    """In this process."""
    pin_arithmetic(task.threads)
    return Rates(
        training=rate(*training_step(task), seconds=task.seconds),
        attacks=rate(*attack(task), seconds=task.seconds),
    )


def rate(
    call: Callable[[], object],
    flop: float,
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Range:
    """FLOP/s of calls that do so many, over that long; each part has a call at least.

    The first call of all is not counted: it finds its kernels.
    """
    call()
    rates = []
    for _ in range(PARTS):
        start, calls = clock(), 0
        while not calls or clock() - start < seconds / PARTS:
            call()
            calls += 1
        rates.append(calls * flop / max(clock() - start, 1e-9))
    return Range(min(rates), max(rates))


def _noise(work: TrialWork, images: int) -> Batch:
    random = np.random.default_rng(0)
    shape = (images, work.experiment.model.channels, work.size, work.size)
    return Batch(
        images_BCHW=random.integers(0, 256, shape, dtype=np.uint8),
        labels_B=random.integers(0, work.classes, images),
        image_ids_B=np.arange(images),
    )


def training_step(task: Task) -> tuple[Callable[[], object], float]:
    """One update with its attack, and what it does; a large batch counts as its first few."""
    e, work = task.work.experiment, task.work
    microbatches = min(e.train.microbatches, 2)
    train = replace(e.train, batch=microbatches * e.train.microbatch)
    model = build(e.model, work.classes, seed=0).to(task.device)
    fast = FastCopy(model, train, (e.model.channels, work.size, work.size))
    sums, sgd = StepSums(model, train), optimizer(model, train)
    batch, moment = _noise(work, train.microbatch), Moment(epoch=0, step=0)

    def step() -> None:
        sums.reset()
        fast.refresh()
        for index in range(microbatches):
            add_microbatch(
                model, sums, batch, train, moment, index, work.classes, task.device, fast
            )
        float(sums.report().loss)  # waits for the device
        sums.apply()
        for group in sgd.param_groups:
            group["lr"] = 0.0  # noise must not lead the weights to where nothing is finite
        sgd.step()

    stage = stage_at(train, 0)
    unrolled = replace(e.model, unroll=stage.unroll or e.model.unroll)
    passes = update_passes(train, stage.attack.steps)
    return step, FLOP * train.batch * passes * multiply_adds(unrolled, work.size, work.classes)


def attack(task: Task) -> tuple[Callable[[], object], float]:
    """Some steps of PGD on one tile, judged at the end, and what they do."""
    e, work = task.work.experiment, task.work
    evaluate, shape_CHW = e.evaluate, (e.model.channels, work.size, work.size)
    model = build(e.model, work.classes, seed=0).eval()
    engine = make_engine(model, evaluate.engine, shape_CHW, evaluate.tile, task.device)
    (run,) = trajectories(AttackSettings(readings=[ATTACK_STEPS]))
    conditions = Conditions(classes=work.classes, seed=0, tile=evaluate.tile)
    batch = _noise(work, evaluate.tile)
    macs = multiply_adds(e.model, work.size, work.classes)
    flop = FLOP * evaluate.tile * ATTACK_STEPS * run.passes_per_step * macs
    return lambda: AttackRun(engine, batch, run, conditions).run(), flop
