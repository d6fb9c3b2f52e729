"""Whoever trains is killed at random moments, again and again: weights and curve are as ever.

KILLS says how often (6), KILLS_SEED which and when (as far as the machine repeats itself).
A `saver` is a worker that is killed while a checkpoint is being written.
"""

import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from drill import Run, ended, stop, title
from lessons import (
    STEPS,
    being_written,
    expect_same,
    is_over,
    key_of,
    saved,
    wait,
)
from waiting import until

pytestmark = pytest.mark.faults

KILLS = int(os.environ.get("KILLS", "6"))
SEED = int(os.environ.get("KILLS_SEED", "1"))
WITHIN_S = 2.0
KINDS = ("worker", "controller", "driver", "saver", "worker", "trial")
TITLES = {
    "worker": "ray::RayTrainWorker",
    "saver": "ray::RayTrainWorker",
    "controller": "ray::TrainController",
    "trial": "ray::ImplicitFunc",
}
"""How Ray calls their processes."""


class Killer:
    """Decides when to kill whom, and counts."""

    def __init__(self, key: str) -> None:
        self.key, self.chance = key, random.Random(SEED)
        self.left = [KINDS[i % len(KINDS)] for i in range(KILLS)]
        self.chance.shuffle(self.left)
        self.done = 0

    def disturb(self, run: Run, root: Path) -> bool:
        """Kill until the driver is dead: True, or nothing is left to do: False."""
        trials = 0  # a driver begins a trial three times (cluster.attempts)
        while self.left:
            kind = "driver" if self.left[-1] == "trial" and trials == 2 else self.left[-1]
            before = saved(root, self.key)
            run.until(partial(self._moved, run, root, before))
            victims = [run.driver] if kind == "driver" else self._moment(kind, run, root)
            if is_over(run):
                return False
            if not victims:
                continue
            self._kill(kind, self.chance.choice(victims), run, root)
            trials += kind == "trial"
            if kind == "driver":
                return True
        return False

    def _moved(self, run: Run, root: Path, before: int) -> bool:
        return is_over(run) or saved(root, self.key) > before

    def _moment(self, kind: str, run: Run, root: Path) -> list[psutil.Process]:
        """Wait for it; gives those who may be meant."""
        if kind == "saver":
            victims = run.called(TITLES[kind])
            until(lambda: is_over(run) or being_written(root, self.key))
            return victims
        wait(run, self.chance.uniform(0, WITHIN_S))
        return run.called(TITLES[kind])

    def _kill(self, kind: str, victim: psutil.Process, run: Run, root: Path) -> None:
        if victim == run.driver:
            wait(run, self.chance.uniform(0, WITHIN_S))
            run.kill()
        else:
            stop(victim)
            until(lambda: not title(victim))
        self.left.pop()
        self.done += 1
        half = [f.name for f in being_written(root, self.key)]
        print(
            f"kill {self.done}: {kind} {victim.pid}, saved {saved(root, self.key)} of {STEPS}, "
            f"half written {half}"
        )


@pytest.fixture
def roots(tmp_path: Path) -> Iterator[Path]:
    return (tmp_path / f"round-{number}" for number in range(1, 1000))


def one_training(file: Path, root: Path, killer: Killer) -> None:
    """From its first start to its last end; started again whenever its driver was killed."""
    while True:
        with ended(Run(file, root)) as run:
            if not killer.disturb(run, root):
                run.finish()
                return
            run.expect_gone()


def test_random_kills_leave_no_trace_in_weights_and_curve(
    lessons: Path, undisturbed: Path, roots: Iterator[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    killer, rounds = Killer(key_of(lessons)), 0
    with capsys.disabled():
        print(f"\nKILLS={KILLS} KILLS_SEED={SEED}")
        while killer.left:
            root = next(roots)
            one_training(lessons, root, killer)
            expect_same(root, undisturbed, killer.key)
            rounds += 1
        print(f"{killer.done} kills in {rounds} training(s)")
    assert killer.done == KILLS
