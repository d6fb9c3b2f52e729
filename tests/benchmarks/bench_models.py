"""What each kind of model costs beside the plain ResNet, small: forward pass, PGD step and update.

    python tests/benchmarks/bench_models.py

In every round each small model of experiments/model does each of the three once, in an order that
rotates; ratios to the plain ResNet are taken within a round, and their median comes with the 95 %
interval of the sign test. With one thread the seconds are those of the processor, so that other
programs count little. Beside them stands what the multiply-adds (s3ta.cost) would let expect.

Forward passes are the judge's; PGD steps the fast copy's, folded, in float32; an update takes one
microbatch, not attacked, with its backward pass, the sums in float64 and the optimizer's step.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rounds import interval, rotated, seconds_now

from s3ta.attacks import PGD
from s3ta.batch import Batch, to_unit
from s3ta.cost import multiply_adds, parameter_count
from s3ta.engine import make_engine
from s3ta.model import build
from s3ta.settings import (
    AttackSettings,
    EngineSettings,
    Goal,
    ModelSettings,
    TrainAttackSettings,
    TrainSettings,
)
from s3ta.sums import StepSums
from s3ta.training import Moment, add_microbatch, optimizer
from s3ta.trajectory import trajectories
from s3ta_platform.compose import compose, groups_folder

SIDE, CLASSES, TILE = 28, 10, 32
PLAIN = "small_resnet"
WORK = ("forward", "PGD step", "update")
TRAIN = TrainSettings(attack=TrainAttackSettings(steps=0), batch=TILE, microbatch=TILE)

Times = dict[str, list[float]]


def _models() -> dict[str, ModelSettings]:
    files = sorted((groups_folder() / "model").glob("small_*.yaml"))
    with tempfile.TemporaryDirectory() as folder:
        mine = Path(folder) / "mine.yaml"
        groups = f"[schema, {{data: fashion_mnist_sample}}, {{model: {PLAIN}}}, _self_]"
        mine.write_text(f"defaults: {groups}\nname: mine\n")
        return {f.stem: compose(mine, [f"model={f.stem}"]).experiment.model for f in files}


def _batch() -> Batch:
    r = np.random.default_rng(0)
    return Batch(
        images_BCHW=r.integers(0, 256, (TILE, 1, SIDE, SIDE), dtype=np.uint8),
        labels_B=r.integers(0, CLASSES, TILE),
        image_ids_B=np.arange(TILE),
    )


def _work(settings: ModelSettings, batch: Batch) -> dict[str, Callable[[], object]]:
    """What is measured of one model, ready to be called again and again."""
    model = build(settings, CLASSES, seed=0)
    engine = make_engine(model, EngineSettings(), (1, SIDE, SIDE), TILE)
    images = to_unit(batch.images_BCHW)
    (run,) = trajectories(AttackSettings(goal=Goal.untargeted, readings=[100]))
    attacked = images.to(memory_format=engine.memory)
    labels_B = torch.from_numpy(batch.labels_B)
    pgd = PGD(engine.logits, run, attacked, labels_B, None)
    point = pgd.begin(None)
    sums, sgd = StepSums(model, TRAIN), optimizer(model, TRAIN)

    def update() -> None:
        sums.reset()
        add_microbatch(model, sums, batch, TRAIN, Moment(epoch=0, step=0), 0, CLASSES)
        sums.apply()
        sgd.step()

    return {
        "forward": lambda: engine.judged(images),
        "PGD step": lambda: pgd.run(point, steps=1),
        "update": update,
    }


def _measure(models: dict[str, ModelSettings], rounds: int, repeats: int) -> dict[str, Times]:
    """Seconds of each work in every round, by model."""
    batch = _batch()
    ready = {name: _work(settings, batch) for name, settings in models.items()}
    times: dict[str, Times] = {work: {name: [] for name in models} for work in WORK}
    for work in WORK:
        for calls in ready.values():
            calls[work]()
        for at in range(rounds):
            for name in rotated([*models], at):
                start = seconds_now()
                for _ in range(repeats):
                    ready[name][work]()
                times[work][name].append((seconds_now() - start) / repeats)
        print(f"{work}: {rounds} rounds of {repeats} calls", flush=True)
    return times


def _report(models: dict[str, ModelSettings], times: dict[str, Times]) -> None:
    plain_work = multiply_adds(models[PLAIN], SIDE, CLASSES)
    for work in WORK:
        print(f"\n{work}, {TILE} images of 1x{SIDE}x{SIDE}")
        print(
            f"  {'':28}{'ms':>8}   {'times the plain ResNet':26}{'multiply-adds':>14}  parameters"
        )
        for name, settings in models.items():
            taken = times[work][name]
            ratios = [a / b for a, b in zip(taken, times[work][PLAIN], strict=True)]
            middle, low, high = interval(ratios)
            expected = multiply_adds(settings, SIDE, CLASSES) / plain_work
            print(
                f"  {settings.name:28}{statistics.median(taken) * 1e3:8.2f}   "
                f"{f'{middle:.2f} [{low:.2f}, {high:.2f}]':26}{expected:13.2f}x"
                f"{parameter_count(settings, CLASSES):12,d}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--repeats", type=int, default=10, help="calls in a row, per round")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="two rounds, to see that it works")
    options = parser.parse_args()
    rounds, repeats = (2, 2) if options.quick else (options.rounds, options.repeats)
    torch.set_num_threads(options.threads)
    print(
        f"torch {torch.__version__}, {options.threads} threads of {os.cpu_count()} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
    if rounds < 6:
        print("Fewer than 6 rounds have no 95 % interval: the range stands in its place.")
    models = _models()
    _report(models, _measure(models, rounds, repeats))


if __name__ == "__main__":
    main()
