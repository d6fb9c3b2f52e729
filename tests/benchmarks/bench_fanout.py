"""How much the fan-out costs beside the work: `make bench-fanout`. Exit code 1: a bound is missed.

Bounds: 10,000 shards without work at 200 shards/s or better on 2 workers, the driver's memory flat;
2 workers of one thread at least 1.75 times as fast as one on real work; planning against 100,000
finished shards in under 10 s; orchestration at most 3 % of a job of one-minute shards; what
`s3ta simulate` makes of an evaluation, at a rate measured before, within 10 % of what it took.
"""

from __future__ import annotations  # else the names in them travel to no worker

import argparse
import io
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from PIL import Image
from rich.console import Console
from small_models import small

from s3ta.settings import AttackSettings, TrainAttackSettings, TrainSettings
from s3ta_platform.calibrate import calibrate
from s3ta_platform.cluster import local_cluster
from s3ta_platform.compose import groups_folder
from s3ta_platform.data import read_manifest, write_parquet
from s3ta_platform.evaluate import evaluate
from s3ta_platform.executors import run_inline, run_on_ray
from s3ta_platform.hardware import PROFILES
from s3ta_platform.jobs import EvaluateJob, TrainJob, open_images
from s3ta_platform.schema import DataSettings
from s3ta_platform.schema_cluster import ClusterSettings
from s3ta_platform.schema_evaluate import EvaluateSettings
from s3ta_platform.shards import Work, evaluation_ids, plan_shards
from s3ta_platform.simulate import Costs, simulate
from s3ta_platform.simulating import shard_seconds, works_of
from s3ta_platform.storage import open_storage
from s3ta_platform.train import train
from s3ta_platform.trials import read_trained

KEY = "0" * 16
SIDE = 8
STEPS = 100
TILE = 32

MODEL = small(attention=True, stem_stride=2, mean=[0.286], std=[0.353])
"""The quickstart's S3TA-4."""

console = Console(highlight=False)


def make_images(folder: Path, images: int) -> DataSettings:
    """A data set of so many grey images of 8 x 8 noise."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    path = folder / f"images-{images}.parquet"
    encoded = itertools.repeat(buffer.getvalue(), images)
    labels = (i % 10 for i in range(images))
    names = [str(i) for i in range(10)]
    write_parquet(path, encoded, labels, range(images), names, source="noise")
    return DataSettings(train=str(path), test=str(path))


def make_job(root: str, data: DataSettings, tile: int) -> EvaluateJob:
    """An evaluation, one tile per shard, of an S3TA-4 that was trained for one step."""
    settings = TrainSettings(
        attack=TrainAttackSettings(steps=0), epochs=1, batch=32, microbatch=32, warmup_epochs=0
    )
    train(
        TrainJob(
            key=KEY,
            model=MODEL,
            train=settings,
            data=replace(data, train_images=32),
            classes=10,
            root=root,
            threads=1,
            device="cpu",
        )
    )
    trained = read_trained(open_storage(root), KEY)
    assert trained is not None
    return EvaluateJob(
        trial=KEY,
        model=MODEL,
        model_digest=trained.model_digest,
        checkpoint_step=trained.step,
        data=data,
        test_digest=read_manifest(data.test).digest,
        classes=10,
        evaluate=EvaluateSettings(
            attacks={"pgd": AttackSettings(readings=[STEPS])},
            tile=tile,
            shard_steps=tile * STEPS,
            gallery_images=0,
        ),
        root=root,
        threads=1,
        device="cpu",
        device_class="cpu-1",
        cluster=ClusterSettings(),
    )


def without_work(job: EvaluateJob, owner: str) -> Callable[[Work], Any]:
    """A worker that does everything for a shard but attack it: lease, images, storing."""
    from s3ta_platform import shard_worker
    from s3ta_platform.rows import SCHEMA

    class NoAttack:
        def __init__(self, engine: Any, batch: Any, trajectory: Any, conditions: Any) -> None:
            self.batch = batch

        def run(self, on_step: Any) -> dict[str, Any]:
            n = len(self.batch)
            blank = {f.name: np.zeros(n, f.type.to_pandas_dtype()) for f in SCHEMA}
            return {**blank, "image_id": self.batch.image_ids_B}

    vars(shard_worker)["AttackRun"] = NoAttack
    return shard_worker.Worker(job, owner).do


def on_ray(workers: int, seen: list[float], build: Any = None) -> Any:
    """A fan-out that notes when each result came."""

    def fan_out(own: Any, jobs: Iterable[Work], **watch: Any) -> Iterator[tuple[Work, Any]]:
        for pair in run_on_ray(build or own, jobs, workers=workers, hang_s=600, **watch):
            seen.append(time.perf_counter())
            yield pair

    return fan_out


def empty_shards(folder: Path, shards: int) -> tuple[float, float, float]:
    """Shards/s from the first result on, the driver's growth in MB, seconds to the first result."""
    job = make_job(str(folder / "empty"), make_images(folder, shards), tile=1)
    seen: list[float] = []
    memory: list[float] = []
    process = psutil.Process()

    def emit(event: Any) -> None:
        if len(seen) % 100 == 0:
            memory.append(process.memory_info().rss / 1e6)

    begin = time.perf_counter()
    evaluate(job, on_ray(2, seen, partial(without_work, job, "bench")), emit)
    fifth = len(memory) // 5
    growth = statistics.median(memory[-fifth:]) - statistics.median(memory[fifth : 2 * fifth])
    return (len(seen) - 1) / (seen[-1] - seen[0]), growth, seen[0] - begin


def real_work(folder: Path, rounds: int, images: int) -> list[float]:
    """How many times as fast as one worker two are, in interleaved rounds."""
    sample = "sample:fashion_mnist/test.parquet"
    data = DataSettings(train=sample, test=sample)
    ratios = []
    for number in range(rounds):
        rates = {}
        for workers in (1, 2) if number % 2 == 0 else (2, 1):
            job = make_job(str(folder / f"real-{number}-{workers}"), data, TILE)
            job = replace(job, evaluate=replace(job.evaluate, images=images * workers))
            seen: list[float] = []
            evaluate(job, on_ray(workers, seen))
            # From when every worker has delivered its first shard: without start-up.
            counted = len(seen) - workers
            rates[workers] = TILE * counted / (seen[-1] - seen[workers - 1])
        words = f"{rates[1]:.1f} images/s, 2 workers {rates[2]:.1f}"
        console.print(f"  round {number + 1} of {rounds}: 1 worker {words}")
        ratios.append(rates[2] / rates[1])
    return sorted(ratios)


def timed(job: EvaluateJob, notes: str, owner: str) -> Callable[[Work], Any]:
    """A worker that notes from when to when it was at each shard."""
    from s3ta_platform import shard_worker

    do = shard_worker.Worker(job, owner).do

    def noted(work: Work) -> Any:
        begin = time.time()
        tally = do(work)
        with open(f"{notes}/{os.getpid()}", "a", encoding="ascii") as file:
            print(begin, time.time(), file=file)
        return tally

    return noted


def against_the_simulation(folder: Path) -> tuple[float, float]:
    """Seconds that an evaluation took on two workers, and that calibration and simulation say.

    As `s3ta plan --calibrate` and `s3ta simulate`: a rate measured on noise beforehand, the
    multiply-adds of each shard, and a clock. Shards are of several lengths.
    """
    sample = "sample:fashion_mnist/test.parquet"
    job = make_job(str(folder / "simulated"), DataSettings(train=sample, test=sample), TILE)
    attacks = {
        f"pgd_{steps}": AttackSettings(readings=[steps], step_of_epsilon=5 / steps)
        for steps in (25, 100, 250)
    }
    settings = replace(
        job.evaluate, attacks=attacks, shard_steps=3 * TILE * STEPS, images=11 * TILE
    )
    work = works_of(groups_folder() / "quickstart.yaml")[0]
    e = replace(work.experiment, model=MODEL, evaluate=settings)
    work = replace(work, experiment=e, test_images=11 * TILE)
    (rates,) = calibrate([work], workers=2, threads=1, device="cpu", seconds=40)
    notes = folder / "notes"
    notes.mkdir()
    evaluate(
        replace(job, evaluate=settings),
        on_ray(2, [], partial(timed, replace(job, evaluate=settings), str(notes), "bench")),
    )
    times = [float(t) for file in notes.iterdir() for t in file.read_text().split()]
    here = replace(PROFILES["cpu"], float32=1.0, share32=rates.attacks)
    found = simulate(shard_seconds([work], here), 2, costs=replace(Costs(), store_s=0.0))
    return max(times) - min(times), found.makespan_s


def planning(folder: Path, shards: int) -> float:
    """Seconds to plan an evaluation of which all shards are finished."""
    job = make_job(str(folder / "planning"), make_images(folder, shards), tile=1)
    ids = evaluation_ids(open_images(job.data.test, job.data, job.model).ids_N, job.evaluate)
    planned = plan_shards(job, ids)
    evaluate(replace(job, evaluate=replace(job.evaluate, images=1)), run_inline)
    content = Path(job.root, planned[0].name).read_bytes()
    for shard in planned[1:]:
        Path(job.root, shard.name).write_bytes(content)
    begin = time.perf_counter()
    done = evaluate(job, lambda build, jobs, **watch: iter(()))
    assert done == 0, done
    return time.perf_counter() - begin


def main() -> int:
    """Print every bound with its figure; 1 if one is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--planned", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=512, help="of real work, per worker")
    options = parser.parse_args()
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]
    missed = []

    def bound(good: bool, text: str) -> None:
        console.print(f"{'ok    ' if good else 'MISSED'}  {text}", soft_wrap=True)
        if not good:
            missed.append(text)

    with tempfile.TemporaryDirectory(prefix="s3ta-bench-") as name:
        folder = Path(name)
        console.print("2 workers of one thread; every result is fsynced, value before name")
        seconds = planning(folder, options.planned)
        words = f"planning against {options.planned:,} finished shards"
        bound(seconds < 10, f"{words}: {seconds:.1f} s (under 10)")
        begin = time.perf_counter()
        with local_cluster(cpus=2):
            ray_s = time.perf_counter() - begin
            rate, growth, first_s = empty_shards(folder, options.shards)
            bound(rate >= 200, f"{options.shards:,} shards without work: {rate:.0f}/s (200)")
            bound(growth < 20, f"the driver's memory: {growth:+.1f} MB from 20-40 % to 80-100 %")
            # An hour of one-minute shards on two workers is 120 shards.
            share = (ray_s + first_s + 120 / rate) / 3600
            bound(
                share <= 0.03,
                f"orchestration of an hour of one-minute shards: {100 * share:.2f} % (3): "
                f"starting Ray {ray_s:.1f} s, workers and plan {first_s:.1f} s, "
                f"{1000 / rate:.1f} ms a shard",
            )
            ratios = real_work(folder, options.rounds, options.images)
            took_s, simulated_s = against_the_simulation(folder)
            bound(
                abs(simulated_s / took_s - 1) <= 0.1,
                f"an evaluation took {took_s:.1f} s, simulated {simulated_s:.1f} (within 10 %)",
            )
    bound(
        ratios[-1] >= 1.75,
        f"2 workers against 1 on real work: {statistics.median(ratios):.2f}x, rounds "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f} (1.75; missed if every round is below)",
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
