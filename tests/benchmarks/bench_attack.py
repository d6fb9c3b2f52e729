"""How fast attacks are beside torchattacks and foolbox, and whether they are the same attacks.

`make bench-attack` runs it: some minutes on an idle machine. In every round each candidate attacks
the same 64 images once, in an order that rotates; ratios are taken within a round, and their median
comes with the 95 % interval of the sign test. A bound is missed if the whole interval is beyond it.
With one thread the seconds are those of the processor, so that other programs count little.

All attacks are untargeted, with cross-entropy, from the image itself: epsilon 0.5/255 in 16 steps,
which turns most answers; those "with judge" are whole evaluations, of 100 steps where it is said.
Weights are random; BatchNorm's statistics are those of noise images, its scales and shifts vary.
"""

import argparse
import math
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import foolbox  # type: ignore[import-not-found]
import numpy as np
import torch
import torch.nn.functional as F
import torchattacks  # type: ignore[import-not-found]
from rounds import interval, rotated, seconds_now
from small_models import small
from torch import Tensor, nn

from s3ta.attacks import PGD
from s3ta.batch import Batch, Conditions
from s3ta.engine import Engine, make_engine
from s3ta.evaluation import AttackRun
from s3ta.model import PlainResNet, build, parameters
from s3ta.objective import margin
from s3ta.settings import (
    AttackSettings,
    Dtype,
    EngineSettings,
    Goal,
    ModelSettings,
    Start,
)
from s3ta.statistics import wilson
from s3ta.trajectory import Trajectory, trajectories
from s3ta.vision import batchnorms

CLASSES, TILE, STEPS, EPSILON_255 = 10, 64, 16, 0.5
LONG = 100
TOOLS = ("torchattacks", "foolbox")
NEAR = 1e-3
"""A margin below it: which class wins is a matter of rounding."""


@dataclass(frozen=True)
class Candidate:
    """One attack: images and labels -> attacked images."""

    attack: Callable[[Tensor, Tensor], Tensor]
    steps: int = STEPS


def _tiles(x: Tensor) -> Sequence[Tensor]:
    return torch.split(x, TILE)


# What is attacked.


@torch.no_grad()
def _model(settings: ModelSettings, size: int) -> nn.Module:
    model, generator = build(settings, CLASSES, seed=0), torch.Generator().manual_seed(1)
    noise = torch.rand(128, 3, size, size, generator=generator)
    for norm in batchnorms(model):
        norm.weight.uniform_(0.5, 1.5, generator=generator)
        norm.bias.uniform_(-0.5, 0.5, generator=generator)
    model.train()(noise)
    for norm in batchnorms(model):
        assert norm.seen is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(norm.seen[0])
        norm.running_var.copy_(norm.seen[1])
    # All classes are answered: logits of mean 0 and spread 1 over the images.
    last = model.vision.fc if isinstance(model, PlainResNet) else model.readout[-1]
    assert isinstance(last, nn.Linear)
    logits_BC = model.eval()(noise)
    last.weight.div_(logits_BC.std(dim=0)[:, None])
    last.bias.copy_(-logits_BC.mean(dim=0) / logits_BC.std(dim=0))
    return model


def _trajectory(*readings: int) -> Trajectory:
    attack = AttackSettings(
        goal=Goal.untargeted,
        epsilon_255=EPSILON_255,
        readings=list(readings),
        start=Start.clean,
    )
    return trajectories(attack)[-1]


def _batch(images: Tensor, labels_B: Tensor) -> Batch:
    ids = np.arange(len(images))
    return Batch(images_BCHW=images.numpy(), labels_B=labels_B.numpy(), image_ids_B=ids)


# Candidates.


def _candidates(
    model: nn.Module, shape_CHW: tuple[int, ...], compiled: bool
) -> dict[str, Candidate]:
    def engine(settings: EngineSettings) -> Engine:
        return make_engine(model, settings, shape_CHW, TILE)

    folded, bf16 = engine(EngineSettings()), engine(EngineSettings(dtype=Dtype.bfloat16))
    plain = engine(EngineSettings(fold=False, channels_last=False))
    found = {
        "torchattacks": Candidate(_torchattacks(model)),
        "foolbox": Candidate(_foolbox(model)),
        "bare gradient, fp32": Candidate(_bare(folded)),
        "PGD, fp32": Candidate(_pgd(folded)),
        "PGD, bf16": Candidate(_pgd(bf16)),
        "with judge, fp32, unfolded": Candidate(_judged(plain, STEPS)),
        f"with judge, bf16, {LONG} steps": Candidate(_judged(bf16, LONG), LONG),
    }
    if compiled:
        fp32 = engine(EngineSettings(compile=True))
        half = engine(EngineSettings(dtype=Dtype.bfloat16, compile=True))
        found["PGD, fp32, compiled"] = Candidate(_pgd(fp32))
        found[f"with judge, bf16, compiled, {LONG} steps"] = Candidate(_judged(half, LONG), LONG)
    return found


def _torchattacks(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    run = _trajectory(STEPS)
    return torchattacks.PGD(  # type: ignore[no-any-return]
        model, eps=run.epsilon, alpha=run.step_size, steps=STEPS, random_start=False
    )


def _foolbox(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    run, wrapped = _trajectory(STEPS), foolbox.PyTorchModel(model, bounds=(0, 1))
    pgd = foolbox.attacks.LinfPGD(abs_stepsize=run.step_size, steps=STEPS, random_start=False)

    def attack(images: Tensor, labels_B: Tensor) -> Tensor:
        goal = foolbox.criteria.Misclassification(labels_B)
        return pgd.run(wrapped, images, goal, epsilon=run.epsilon)  # type: ignore[no-any-return]

    return attack


def _bare(engine: Engine) -> Callable[[Tensor, Tensor], Tensor]:
    """As many forward passes and input gradients; the images stay."""

    def attack(images: Tensor, labels_B: Tensor) -> Tensor:
        images = images.to(memory_format=engine.memory)
        for _ in range(STEPS):
            x = images.detach().requires_grad_()
            loss = F.cross_entropy(engine.logits(x), labels_B, reduction="sum")
            torch.autograd.grad(loss, x)
        return images

    return attack


def _pgd(engine: Engine) -> Callable[[Tensor, Tensor], Tensor]:
    def attack(images: Tensor, labels_B: Tensor) -> Tensor:
        images = images.to(memory_format=engine.memory)
        pgd = PGD(engine.logits, _trajectory(STEPS), images, labels_B, None)
        return pgd.run(pgd.begin(None)).contiguous()

    return attack


def _judged(engine: Engine, steps: int) -> Callable[[Tensor, Tensor], Tensor]:
    def attack(images: Tensor, labels_B: Tensor) -> Tensor:
        conditions = Conditions(classes=CLASSES, seed=0, tile=TILE)
        batch, run = _batch(images, labels_B), _trajectory(steps)
        attacked = AttackRun(engine, batch, run, conditions, keep_attacked=True)
        attacked.run()
        assert attacked.attacked_NCHW is not None
        return torch.from_numpy(attacked.attacked_NCHW)

    return attack


# Rounds and ratios.


@dataclass
class Measured:
    """Seconds a step in every round, and attacked images of all rounds, of every candidate."""

    seconds: dict[str, list[float]]
    attacked: dict[str, Tensor]
    labels: Tensor

    def ratios(self, above: Sequence[str], below: str) -> list[float]:
        """Per round: the least time of some candidates over that of another."""
        least = [min(times) for times in zip(*(self.seconds[n] for n in above), strict=True)]
        return [a / b for a, b in zip(least, self.seconds[below], strict=True)]


def _measure(model: nn.Module, size: int, rounds: int, compiled: bool, name: str) -> Measured:
    candidates = _candidates(model, (3, size, size), compiled)
    images = torch.rand(rounds * TILE, 3, size, size, generator=torch.Generator().manual_seed(2))
    labels_N = _answers(model, images).argmax(dim=1)
    seconds: dict[str, list[float]] = {n: [] for n in candidates}
    attacked: dict[str, list[Tensor]] = {n: [] for n in candidates}
    for candidate in candidates.values():
        candidate.attack(images[:TILE], labels_N[:TILE])
    for at, (x, labels_B) in enumerate(zip(_tiles(images), _tiles(labels_N), strict=True)):
        for n in rotated([*candidates], at):
            start = seconds_now()
            end = candidates[n].attack(x, labels_B)
            seconds[n].append((seconds_now() - start) / candidates[n].steps)
            attacked[n].append(end.detach())
        print(f"{name}: round {at + 1} of {rounds}", flush=True)
    return Measured(seconds, {n: torch.cat(parts) for n, parts in attacked.items()}, labels_N)


class Bounds:
    """Prints what was measured beside what was promised."""

    def __init__(self) -> None:
        self.missed = 0

    def ratio(
        self, what: str, ratios: list[float], *, least: float = 0.0, most: float = math.inf
    ) -> None:
        middle, low, high = interval(ratios)
        bound = f"at least {least:g}" if least else f"at most {most:g}"
        self._say(
            high < least or low > most, f"{what}: {middle:.3f} [{low:.3f}, {high:.3f}], {bound}"
        )

    def same(self, what: str, same: int, total: int, near: int, least: float) -> None:
        missed = same < total if least == 1 else wilson(same, total)[1] < least
        shown = f"{same} of {total} images" + (f" ({near} more lie at a border)" if near else "")
        self._say(missed, f"{what}: {shown}, at least {least:.1%}")

    def _say(self, missed: bool, text: str) -> None:
        self.missed += missed
        print(f"  {'MISSED' if missed else 'ok    '}  {text}")


def _report(model: nn.Module, measured: Measured, bounds: Bounds) -> None:
    after_N = _answers(model, measured.attacked["torchattacks"]).argmax(dim=1)
    changed = (after_N != measured.labels).float().mean()
    print(f"  torchattacks changes {changed:.0%} of the answers")
    print(f"  {'':41}ms a step   images per second, over those of the faster tool")
    for name, seconds in measured.seconds.items():
        per_step = statistics.median(seconds) * 1e3
        speed = interval(measured.ratios(TOOLS, name))
        print(f"  {name:38}{per_step:10.1f}      {speed[0]:.2f} [{speed[1]:.2f}, {speed[2]:.2f}]")
    bounds.ratio(
        "PGD in fp32, times the faster tool's speed",
        measured.ratios(TOOLS, "PGD, fp32"),
        least=1.25,
    )
    bounds.ratio(
        "attack in bf16 with its judge in fp32, times the faster tool's speed",
        measured.ratios(TOOLS, f"with judge, bf16, {LONG} steps"),
        least=2.0,
    )
    bounds.ratio(
        "a PGD step, over a bare forward pass and input gradient",
        measured.ratios(["PGD, fp32"], "bare gradient, fp32"),
        most=1.03,
    )
    for tool in TOOLS:
        for name, least in (("PGD, fp32", 0.995), ("with judge, fp32, unfolded", 1.0)):
            bounds.same(
                f"answers after {tool} and {name}", *_same(model, measured, tool, name), least
            )
        same, total, near = _same(model, measured, tool, "PGD, bf16")
        print(f"          (in bf16: {same} of {total} images, {near} more lie at a border)")


@torch.no_grad()
def _answers(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part) for part in _tiles(images)])


def _same(model: nn.Module, measured: Measured, a: str, b: str) -> tuple[int, int, int]:
    """Equal answers, images, and images whose margin is all but nothing for one of the two."""
    predictions, near_N = [], torch.zeros(len(measured.labels), dtype=torch.bool)
    for name in (a, b):
        logits_NC = _answers(model, measured.attacked[name])
        predictions.append(logits_NC.argmax(dim=1))
        near_N |= margin(logits_NC, predictions[-1]).abs() < NEAR
    same_N = (predictions[0] == predictions[1]) & ~near_N
    return int(same_N.sum()), int((~near_N).sum()), int(near_N.sum())


def _readings(rounds: int, steps: int, bounds: Bounds) -> None:
    """Readings at 10, 100, 250 and 1000 (or a part of each) against one at the end."""
    size, settings = 8, small(attention=False)
    model = _model(settings, size)
    engine = make_engine(model, EngineSettings(), (3, size, size), TILE)
    images = torch.rand(TILE, 3, size, size, generator=torch.Generator().manual_seed(3))
    batch = _batch(images, torch.arange(TILE) % CLASSES)
    conditions = Conditions(classes=CLASSES, seed=0, tile=TILE)
    print(f"{settings.name} at 3x{size}x{size}, one tile of {TILE}, {steps} steps", flush=True)
    ratios = []
    for at in range(rounds):
        seconds = {}
        for readings in _rotated_runs([[steps], [10, steps // 10, steps // 4, steps]], at):
            start = seconds_now()
            for run in trajectories(AttackSettings(readings=readings)):
                AttackRun(engine, batch, run, conditions).run()
            seconds[len(readings)] = seconds_now() - start
        ratios.append(seconds[4] / seconds[1])
        print(f"readings: round {at + 1} of {rounds}", flush=True)
    bounds.ratio(f"readings at 10 to {steps}, over the run to {steps} alone", ratios, most=1.02)


def _rotated_runs(runs: list[list[int]], by: int) -> list[list[int]]:
    return runs if by % 2 == 0 else runs[::-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="two rounds, to see that it works")
    parser.add_argument("--compile", action="store_true", help="torch.compile's candidates too")
    options = parser.parse_args()
    rounds = 2 if options.quick else options.rounds
    torch.set_num_threads(options.threads)
    bounds, size = Bounds(), 32
    print(
        f"torch {torch.__version__}, {options.threads} threads of {os.cpu_count()} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
    if rounds < 6:
        print("Fewer than 6 rounds have no 95 % interval: the range stands in its place.")
    for attention in (True, False):
        settings = small(attention)
        model = _model(settings, size)
        print(
            f"{settings.name}, {parameters(model):,} parameters at 3x{size}x{size}, batch and "
            f"tile {TILE}, {STEPS} steps",
            flush=True,
        )
        measured = _measure(model, size, rounds, options.compile, settings.name)
        _report(model, measured, bounds)
    _readings(rounds, 200 if options.quick else 1000, bounds)
    print(f"{bounds.missed} bounds missed")
    return 1 if bounds.missed else 0


if __name__ == "__main__":
    sys.exit(main())
