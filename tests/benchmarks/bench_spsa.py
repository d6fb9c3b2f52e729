"""SPSA beside bare forward passes of the same model, and its memory for small and large batches.

    python tests/benchmarks/bench_spsa.py [--quick]

One gradient of SPSA for each of a few images takes 2 x pairs forward passes. In every round it runs
beside the same number of passes over the same tiles of 64 probes, without drawing or adding up.
"""

import argparse
import resource
import subprocess
import sys

import numpy as np
import torch
from rounds import interval, seconds_now
from small_models import small

from s3ta.attacks import PGD, Losses
from s3ta.draws import Key, Purpose
from s3ta.engine import Engine, make_engine
from s3ta.model import build
from s3ta.settings import (
    AttackSettings,
    EngineSettings,
    Goal,
    Gradient,
)
from s3ta.spsa import CHUNK, look_around
from s3ta.trajectory import trajectories

SIZE, CLASSES, IMAGES = 32, 10, 2
KEY = Key(0, Purpose.SPSA)
LEAST, LARGE, SMALL = 0.9, 2048, 128
MEMORY_SLACK_MB = 16
"""Of the allocator, between two processes that do the same."""


def _ready(attention: bool) -> tuple[Engine, torch.Tensor, Losses]:
    model = build(small(attention, stem_stride=2), CLASSES, seed=0)
    engine = make_engine(model, EngineSettings(), (3, SIZE, SIZE), 2 * CHUNK)
    images = torch.rand(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    images = images.to(memory_format=engine.memory)
    attack = AttackSettings(goal=Goal.untargeted, gradient=Gradient.spsa, readings=[1])
    labels_B = torch.arange(IMAGES)
    pgd = PGD(engine.logits, trajectories(attack)[0], images, labels_B, None)
    return engine, images, pgd.losses


def _spsa(images: torch.Tensor, losses: Losses, pairs: int) -> None:
    keys = [(KEY, i) for i in range(IMAGES)]
    look_around(losses, images, np.arange(IMAGES), keys, pairs, 0.01)


@torch.no_grad()
def _bare(engine: Engine, images: torch.Tensor, pairs: int) -> None:
    probes = images[:1].expand(2 * CHUNK, -1, -1, -1).contiguous()
    for _ in range(IMAGES * pairs // CHUNK):
        engine.logits(probes)


def _speed(attention: bool, pairs: int, rounds: int) -> list[float]:
    engine, images, losses = _ready(attention)
    ratios = []
    for at in range(rounds + 1):
        spent = {}
        for name in ("spsa", "bare") if at % 2 else ("bare", "spsa"):
            start = seconds_now()
            if name == "spsa":
                _spsa(images, losses, pairs)
            else:
                _bare(engine, images, pairs)
            spent[name] = seconds_now() - start
        ratios.append(spent["bare"] / spent["spsa"])
    return ratios[1:]  # the first warms up


def _peak_mb(pairs: int) -> float:
    """The peak memory of a process that takes one gradient with so many pairs."""
    command = [sys.executable, __file__, "--peak", str(pairs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="two rounds, to see that it works")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # so that the time is the processor's own
    if options.peak:
        _, images, losses = _ready(attention=True)
        _spsa(images, losses, options.peak)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return 0
    rounds, pairs, missed = (2, 256, 0) if options.quick else (options.rounds, 1024, 0)
    for attention in (True, False):
        middle, low, high = interval(_speed(attention, pairs, rounds))
        missed += high < LEAST
        name = small(attention, stem_stride=2).name
        print(
            f"{'MISSED' if high < LEAST else 'ok    '}  {name}: SPSA's speed "
            f"over bare forward passes {middle:.3f} [{low:.3f}, {high:.3f}], at least {LEAST}"
        )
    little, much = _peak_mb(SMALL), _peak_mb(LARGE)
    missed += much > little + MEMORY_SLACK_MB
    print(
        f"{'MISSED' if much > little + MEMORY_SLACK_MB else 'ok    '}  peak memory with "
        f"batches of {2 * SMALL} and {2 * LARGE}: {little:.0f} and {much:.0f} MB, the same"
    )
    print(f"{missed} bounds missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
