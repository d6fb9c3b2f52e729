"""What a training step costs beside its parts, beside a plain loop, and with a second worker.

`make bench-train` runs it: a quarter of an hour on an idle machine with at least 2 cores. In every
round each candidate does the same steps once, in an order that rotates; ratios are taken within a
round, and their median comes with the 95 % interval of the sign test. A bound is missed if the
whole interval is beyond it. Candidates in this process use one thread, and their seconds are the
processor's; those of workers are a clock's.

The models are the quickstart's, trained as there: 32 images a step, targeted PGD-5 from noise; the
last also with four such microbatches a step. The plain loop has torch's BatchNorm, switches between
eval and train, and calls backward() for the attack as for the update, with parameters that require
gradients; its targets and noise are drawn beforehand.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rounds import interval, rotated, seconds_now
from torch import Tensor, nn

from s3ta.batch import Batch
from s3ta.draws import Key, Purpose
from s3ta.fastcopy import FastCopy
from s3ta.model import build
from s3ta.schedules import learning_rate
from s3ta.settings import ModelSettings, Sums, TrainSettings
from s3ta.sums import StepSums
from s3ta.training import Moment, add_microbatch, optimizer
from s3ta.trajectory import training_trajectory
from s3ta.vision import BatchNorm
from s3ta_platform.compose import compose
from s3ta_platform.devices import keep_freed_memory

FILE = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"
WORKER = Path(__file__).with_name("train_worker.py")
SHAPE, CLASSES = (1, 28, 28), 10
STEPS = 2
"""Of each candidate in a round."""
BATCH = 256
"""Of the drift and of the workers: eight microbatches."""
WIDE = [
    "model.vision.widths=[128,256,512]",
    "train.batch=64",
    "train.microbatch=32",
    "train.attack.steps=1",
]
"""Of the overlap: 6 million weights, so 95 MB of sums a step, and little arithmetic."""


@dataclass(frozen=True)
class Microbatch:
    """Images, and the draws that decide what is done to them."""

    batch: Batch
    targets_B: Tensor
    uniform: Tensor | None
    """None where the attack starts from the images."""


@dataclass(frozen=True)
class Step:
    """What one update sees."""

    moment: Moment
    parts: list[Microbatch]


def _step(settings: TrainSettings, number: int) -> Step:
    return Step(
        Moment(0, number),
        [_microbatch(settings, number, index) for index in range(settings.microbatches)],
    )


def _microbatch(settings: TrainSettings, step: int, index: int) -> Microbatch:
    number = settings.microbatches * step + index
    ids, rng = np.arange(32) + 32 * number, np.random.default_rng(number)
    batch = Batch(
        images_BCHW=rng.integers(0, 256, (32, *SHAPE), dtype=np.uint8),
        labels_B=rng.integers(0, CLASSES, 32),
        image_ids_B=ids,
    )
    targets = Key(settings.seed, Purpose.TRAIN_TARGET).wrong_classes(ids, batch.labels_B, CLASSES)
    coin = Key(settings.seed, Purpose.TRAIN_COIN, step=step).uniform([index], (1,))[0, 0]
    noise = torch.from_numpy(Key(settings.seed, Purpose.TRAIN_NOISE).uniform(ids, SHAPE))
    from_noise = coin >= settings.attack.clean_start_share
    return Microbatch(batch, torch.from_numpy(targets), noise if from_noise else None)


class Ours:
    """The step as train.py takes it."""

    def __init__(self, model: ModelSettings, settings: TrainSettings) -> None:
        self.settings = settings
        self.model = build(model, CLASSES, seed=0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.sgd = optimizer(self.model, settings)
        self.fast = FastCopy(self.model, settings, SHAPE)
        self.sums = StepSums(self.model, settings)

    def take(self, step: Step) -> float:
        self.sums.reset()
        self.fast.refresh()
        s, moment = self.settings, step.moment
        for index, part in enumerate(step.parts):
            add_microbatch(
                self.model, self.sums, part.batch, s, moment, index, CLASSES, fast=self.fast
            )
        loss = self.sums.apply().loss
        _descend(self.sgd, s, step)
        return loss


class Bare(Ours):
    """Its parts and nothing else: gradients by the images, one by the weights, an update."""

    def take(self, step: Step) -> float:
        loss = sum(self._gradients(part, first=part is step.parts[0]) for part in step.parts)
        for p in self.sums.parameters if len(step.parts) > 1 else []:
            assert p.grad is not None
            p.grad.div_(len(step.parts))
        _descend(self.sgd, self.settings, step)
        return loss / len(step.parts)

    def _gradients(self, part: Microbatch, *, first: bool) -> float:
        images = torch.from_numpy(part.batch.images_BCHW).float() / 255
        images = images.to(memory_format=torch.channels_last)
        labels_B = torch.from_numpy(part.batch.labels_B)
        for _ in range(self.settings.attack.steps):
            x = images.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(self.fast(x), part.targets_B, reduction="sum"), x)
        self.model.train()
        loss = F.cross_entropy(self.model(images), labels_B, label_smoothing=0.1)
        gradients = torch.autograd.grad(loss, self.sums.parameters)
        for p, gradient in zip(self.sums.parameters, gradients, strict=True):
            p.grad = gradient if first or p.grad is None else p.grad.add_(gradient)
        return loss.item()


class Plain:
    """The usual loop."""

    def __init__(self, model: ModelSettings, settings: TrainSettings) -> None:
        self.settings = settings
        self.model = _with_torchs_batchnorm(build(model, CLASSES, seed=0))
        self.sgd = optimizer(self.model, settings)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)

    def take(self, step: Step) -> float:
        (part,) = step.parts  # the attack's backward() would spoil what others have left in .grad
        images = torch.from_numpy(part.batch.images_BCHW).float() / 255
        labels_B = torch.from_numpy(part.batch.labels_B)
        attacked = self._attacked(images, part)
        self.model.train()
        self.sgd.zero_grad()
        loss: Tensor = self.criterion(self.model(attacked), labels_B)
        loss.backward()  # type: ignore[no-untyped-call]
        _descend(self.sgd, self.settings, step)
        return loss.item()

    def _attacked(self, images: Tensor, part: Microbatch) -> Tensor:
        run = training_trajectory(self.settings.attack)
        low, high = (images - run.epsilon).clamp(0, 1), (images + run.epsilon).clamp(0, 1)
        x = images.clone()
        if part.uniform is not None:
            x = (images + (2 * part.uniform - 1) * run.epsilon).clamp(low, high)
        self.model.eval()
        for _ in range(run.steps):
            x = x.detach().requires_grad_()
            F.cross_entropy(self.model(x), part.targets_B, reduction="sum").backward()  # type: ignore[no-untyped-call]
            assert x.grad is not None
            x = (x - run.step_size * x.grad.sign()).clamp(low, high)
        return x.detach()


def _descend(sgd: torch.optim.SGD, settings: TrainSettings, step: Step) -> None:
    for group in sgd.param_groups:
        group["lr"] = learning_rate(settings, step.moment.step / 1000)
    sgd.step()


def _with_torchs_batchnorm(model: nn.Module) -> nn.Module:
    """Its running statistics move with every batch: here that is a step."""
    for name, module in [*model.named_modules()]:
        if isinstance(module, BatchNorm):
            usual = nn.BatchNorm2d(module.num_features)
            usual.load_state_dict(module.state_dict())
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, usual)
    return model


class Bounds:
    """Prints what was measured beside what was promised."""

    def __init__(self) -> None:
        self.missed = 0

    def say(self, what: str, ratios: list[float], *, least: float = 0.0, most: float = 1e9) -> None:
        middle, low, high = interval(ratios)
        bound = f"at least {least:g}" if least else f"at most {most:g}"
        missed = high < least or low > most
        self.missed += missed
        text = f"{what}: {middle:.3f} [{low:.3f}, {high:.3f}], {bound}"
        print(f"  {'MISSED' if missed else 'ok    '}  {text}")


def _one_worker(name: str, model: ModelSettings, s: TrainSettings, rounds: int, b: Bounds) -> None:
    candidates: dict[str, Ours | Plain] = {"ours": Ours(model, s), "bare": Bare(model, s)}
    if s.microbatches == 1:
        candidates["plain"] = Plain(model, s)
    seconds: dict[str, list[float]] = {n: [] for n in candidates}
    losses: dict[str, list[float]] = {n: [] for n in candidates}
    for at in range(rounds + 1):
        steps = [_step(s, STEPS * at + number) for number in range(STEPS)]
        for n in rotated([*candidates], at):
            start = seconds_now()
            losses[n] += [candidates[n].take(step) for step in steps]
            seconds[n].append((seconds_now() - start) / STEPS)
        print(f"{name}: round {at} of {rounds}", flush=True)
    for n in candidates:
        del seconds[n][0]  # to warm up
        print(f"  {n:6} {1e3 * sorted(seconds[n])[rounds // 2]:8.1f} ms a step")
    b.say("our step, over its parts run bare", _over(seconds, "ours", "bare"), most=1.05)
    if "plain" in candidates:
        first, later = (
            max(abs(x - y) for x, y in zip(losses["ours"][:n], losses["plain"][:n], strict=True))
            for n in (1, 6)
        )
        print(f"  losses differ by {first:.1e} in the first step, by at most {later:.1e} in six")
        assert first < 1e-4, "ours and the plain loop are not the same training"
        b.say("the plain loop's step, over ours", _over(seconds, "plain", "ours"), least=1.15)


def _over(seconds: dict[str, list[float]], above: str, below: str) -> list[float]:
    return [x / y for x, y in zip(seconds[above], seconds[below], strict=True)]


def _workers(rounds: int, steps: int, bounds: Bounds) -> None:
    settings = ["--settings", f"train.batch={BATCH}"]
    ratios = []
    for at in range(rounds):
        seconds = {world: _timed(world, steps, settings) for world in rotated([1, 2], at)}
        ratios.append(seconds[1] / seconds[2])
        print(f"workers: round {at + 1} of {rounds}: {seconds}", flush=True)
    bounds.say("one worker's seconds a step, over those of two", ratios, least=1.6)


def _overlap(rounds: int, steps: int, bounds: Bounds) -> None:
    """Two workers whose sums wait for the whole backward pass, over two whose sums don't."""
    settings = ["--settings", *WIDE]
    for link, least in (([], 0.97), (["--gbits", "2"], 1.05)):
        ratios = []
        name = f"a simulated link of {link[1]} Gbit/s" if link else "this machine's loopback"
        for at in range(rounds):
            seconds = {
                how: _timed(2, steps, [*link, *how.split(), *settings])
                for how in rotated(["--at-once", ""], at)
            }
            ratios.append(seconds["--at-once"] / seconds[""])
            print(f"overlap over {name}: round {at + 1} of {rounds}: {seconds}", flush=True)
        bounds.say(f"sums after the backward pass, over within it, {name}", ratios, least=least)


def _timed(world: int, steps: int, options: list[str]) -> float:
    """Seconds a step (the median), of so many workers with one thread each."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    with tempfile.TemporaryDirectory() as folder:
        fixed = [str(world), f"{folder}/store", folder, "--steps", str(steps), *options]
        workers = [
            subprocess.Popen(
                [sys.executable, WORKER, str(rank), *fixed],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for rank in range(world)
        ]
        try:
            printed, _ = workers[0].communicate(timeout=600)
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()
    seconds: list[float] = json.loads(printed)
    return statistics.median(seconds)


def _drift(model: ModelSettings, settings: TrainSettings, steps: int) -> None:
    """How far one and two workers are apart where sums are fast, not exact."""
    s = dataclasses.replace(settings, batch=BATCH, sums=Sums.fast)
    ends, losses = [], []
    for workers in (1, 2):
        ours = Ours(model, s)
        for number in range(steps):
            parts = _step(s, number).parts
            ours.fast.refresh()
            total = torch.zeros_like(ours.sums.flat)
            for rank in range(workers):
                ours.sums.reset()
                for m in range(rank, s.microbatches, workers):
                    moment = Moment(0, number)
                    add_microbatch(
                        ours.model, ours.sums, parts[m].batch, s, moment, m, CLASSES, fast=ours.fast
                    )
                total += ours.sums.flat
            ours.sums.flat.copy_(total)
            losses.append(ours.sums.apply().loss)
            for group in ours.sgd.param_groups:
                group["lr"] = learning_rate(s, number / 1000)
            ours.sgd.step()
        ends.append(torch.cat([p.detach().flatten() for p in ours.model.parameters()]))
    apart = ((ends[0] - ends[1]).norm() / ends[0].norm()).item()
    print(f"Fast sums, {steps} steps of {BATCH} images, one worker and two:")
    print(f"  weights are {apart:.1e} of their length apart, losses {losses[steps - 1]:.6f} and")
    print(f"  {losses[-1]:.6f}; exact sums: 0 and the same")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="two rounds, to see that it works")
    options = parser.parse_args()
    rounds = 2 if options.quick else options.rounds
    torch.set_num_threads(1)
    keep_freed_memory()  # for all candidates
    bounds = Bounds()
    for trial in compose(FILE, []).trials:
        e = trial.experiment
        name = f"{e.model.name}, PGD-{e.train.attack.steps}"
        _one_worker(name, e.model, e.train, rounds, bounds)
    s = dataclasses.replace(e.train, batch=4 * e.train.microbatch)
    _one_worker(f"{name}, {s.microbatches} microbatches", e.model, s, rounds, bounds)
    _drift(e.model, e.train, 2 if options.quick else 25)
    for workers in (_workers, _overlap):
        workers(2 if options.quick else 7, 4 if options.quick else 12, bounds)
    print(f"{bounds.missed} bounds missed" if bounds.missed else "all bounds are kept")
    return 1 if bounds.missed else 0


if __name__ == "__main__":
    sys.exit(main())
