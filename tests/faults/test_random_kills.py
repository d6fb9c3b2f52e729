"""Workers, trials and drivers are killed at random moments, again and again: the rows are as ever.

KILLS says how often (6), KILLS_SEED which and when (as far as the machine repeats itself).
"""

import os
import random
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from drill import (
    Run,
    expect_same,
    final_rows,
    snapshots,
    stop,
    stored,
    title,
    working,
)
from waiting import until

pytestmark = pytest.mark.faults

KILLS = int(os.environ.get("KILLS", "6"))
SEED = int(os.environ.get("KILLS_SEED", "1"))
PACE_S = 0.05
NO_GALLERY = "evaluate.gallery_images=0"
WITHIN_S = 3.0
AT_MOST_TRIALS = 2
"""A driver begins a trial three times (cluster.attempts)."""


TITLES = {"worker": "ray::Worker", "trial": "ray::ImplicitFunc"}
"""How Ray calls the processes that attack, and the one of the trial that gives them work."""


class Killer:
    """Decides when to kill whom, and counts."""

    def __init__(self) -> None:
        self.chance = random.Random(SEED)
        self.left = ["driver"] * (KILLS // 3) + ["trial"] * (KILLS // 6)
        self.left += ["worker"] * (KILLS - len(self.left))
        self.chance.shuffle(self.left)
        self.kills: list[bool] = []
        """Whether each hit somebody in the middle of a shard."""
        self.trials = 0
        """How often this driver's trial was killed."""

    def disturb(self, run: Run, root: Path) -> bool:
        """Kill until the driver is dead: True, or nothing is left to do: False."""
        self.trials = 0
        while self.left:
            run.until(lambda: is_over(run) or working(root))
            wait(run, self.chance.uniform(0, WITHIN_S))
            if is_over(run):
                return False
            if self.left[-1] == "trial" and self.trials == AT_MOST_TRIALS:
                self.left[-1] = "driver"
            if self.left[-1] == "driver":
                self.kill([run.driver], run, root)
                return True
            self.kill(run.called(TITLES[self.left[-1]]), run, root)
        return False

    def kill(self, found: list[psutil.Process], run: Run, root: Path) -> None:
        if not found:
            return
        who, victim, at = self.left.pop(), self.chance.choice(found), working(root)
        hit = {pid: key for pid, key in at.items() if who != "worker" or pid == victim.pid}
        saved = {key: snapshots(root).get(key, 0) for key in hit.values()}
        self.trials += who == "trial"
        if victim == run.driver:
            run.kill()
        else:
            stop(victim)
            until(lambda: not title(victim))
        self.kills.append(bool(hit))
        print(f"kill {len(self.kills)}: {who} {victim.pid}; in the middle of {saved or 'nothing'}")


def is_over(run: Run) -> bool:
    return run.process.poll() is not None


def wait(run: Run, seconds: float) -> None:
    """So long, or until it is over."""
    began = time.monotonic()
    run.until(lambda: is_over(run) or time.monotonic() - began >= seconds)


def one_evaluation(file: Path, root: Path, killer: Killer) -> None:
    """From its first start to its last end; started again whenever its driver was killed."""
    calm = root.parent / f"calm-{root.name}"
    runs: list[Run] = []
    try:
        while True:
            kept = stored(root)
            runs.append(Run(file, root, NO_GALLERY, SHAKY_PACE_S=PACE_S, SHAKY_CALM=calm))
            killed = killer.disturb(runs[-1], root)
            assert {key: stored(root).get(key) for key in kept} == kept
            if not killed:
                break
        calm.touch()
        runs[-1].finish()
        for run in runs:
            run.expect_gone()
    finally:
        for run in runs:
            run.end()


def test_random_kills_leave_no_trace_in_the_rows(
    both: Path, reference: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killer, rounds = Killer(), 0
    with capsys.disabled():
        print(f"\nKILLS={KILLS} KILLS_SEED={SEED}")
        while killer.left:
            rounds += 1
            root = tmp_path / f"round-{rounds}"
            one_evaluation(both, root, killer)
            expect_same(final_rows(both, root, NO_GALLERY), reference)
            assert not list(root.glob("leases/*"))
            assert not list(root.glob("snapshots/*"))
        hits = sum(killer.kills)
        print(f"{hits} of {KILLS} kills hit running work, in {rounds} evaluation(s)")
    assert hits >= KILLS / 2, "kills between shards prove little"
