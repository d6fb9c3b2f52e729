"""Evaluations that are disturbed: started as a user starts them, watched, killed, and compared."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil
import pyarrow as pa
from waiting import until

from s3ta_platform.compose import compose
from s3ta_platform.jobs import EvaluateJob
from s3ta_platform.plan import Plan, make_plan
from s3ta_platform.rows import merge_rows
from s3ta_platform.shards import Shard, plan_shards

T = TypeVar("T")

EXPERIMENT = """
defaults:
  - schema
  - attack@evaluate.attacks.targeted: small_pgd
  - tracking: none
  - _self_
name: drill
model: {factory: "shaky_model:net", mean: [0.0], std: [1.0]}
data: {test: "sample:fashion_mnist/test.parquet"}
evaluate:
  images: 48
  tile: 8
  shard_steps: 800
  gallery_images: 2
  attacks: {targeted: {epsilon_255: 6, readings: [16, 100]}}
cluster: {cpus: 2, snapshot_steps: 5, hang_s: 60, lease_s: 30}
"""
TWO_ATTACKS = EXPERIMENT.replace(
    "  - tracking", "  - attack@evaluate.attacks.untargeted: small_pgd\n  - tracking"
).replace(
    "attacks: {",
    "attacks: {untargeted: {epsilon_255: 6, goal: untargeted, mode: until_success, "
    "readings: [100]}, ",
)
STEPS = 100
"""Of every attack here; eight images at a time."""


class Run:
    """`s3ta run` as a user starts it, and all processes that it has started."""

    def __init__(
        self, file: Path, root: Path | str, *overrides: str, **environment: object
    ) -> None:
        home = root.parent if isinstance(root, Path) else file.parent
        self.printed = home / f"printed-{time.monotonic_ns()}.txt"
        with self.printed.open("wb") as printed:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "s3ta_platform", "run", file, f"results={root}", *overrides],
                stdout=printed,
                stderr=subprocess.STDOUT,
                cwd=home,
                env=os.environ | {name: str(value) for name, value in environment.items()},
                start_new_session=True,
            )
        self.driver = psutil.Process(self.process.pid)
        self.family: set[psutil.Process] = set()

    def look(self) -> set[psutil.Process]:
        """Remember all that it has started."""
        with suppress(psutil.NoSuchProcess):
            self.family |= {*self.driver.children(recursive=True)}
        return self.family

    def until(self, condition: Callable[[], T], seconds: float = 120) -> T:
        """Wait for something to happen while it runs."""

        def look() -> T:
            self.look()
            found = condition()
            assert found or self.process.poll() is None, self.output()
            return found

        return until(look, seconds)

    def called(self, name: str) -> list[psutil.Process]:
        """Those of its living processes whose title begins so: Ray names actors by their class."""
        found = [p for p in self.look() if title(p).startswith(name)]
        return sorted(found, key=lambda p: p.pid)

    def kill(self) -> None:
        """SIGKILL to the driver, not to what it has started."""
        self.look()
        self.process.kill()
        self.process.wait()

    def output(self) -> str:
        return self.printed.read_text()

    def finish(self, code: int = 0, seconds: float = 240) -> str:
        """Wait for its end; nothing that it has started is left. Gives what it printed."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            self.look()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)
        assert self.process.returncode == code, self.output()
        self.expect_gone()
        return self.output()

    def expect_gone(self, seconds: float = 30) -> None:
        """All that it has started ends."""
        for agent in [p for p in self.family if "gent" in title(p)]:
            with suppress(psutil.NoSuchProcess):
                agent.kill()  # Ray's own; idle, they linger for a minute after a killed driver
        _, alive = psutil.wait_procs(self.family, timeout=seconds)
        assert [title(p) for p in alive] == []

    def end(self) -> None:
        """SIGKILL to all of it at once, as when the machine goes; nothing is left behind."""
        for process in [*self.look(), self.driver]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


def title(process: psutil.Process) -> str:
    """What a process calls itself; empty if it is gone."""
    try:
        return " ".join(process.cmdline()) or str(process.name())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def working(root: Path) -> dict[int, str]:
    """Who is in the middle of which shard: living holders of leases, by process id."""
    found = {}
    for file in sorted(root.glob("leases/*/*")):
        with suppress(OSError, ValueError):  # just renewed or released
            pid = json.loads(file.read_bytes())["pid"]
            if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found[pid] = file.parent.name
    return found


def snapshots(root: Path) -> dict[str, int]:
    """How far the saved states are, in steps of all images, by shard."""
    return {f.parent.name: int(f.stem) for f in sorted(root.glob("snapshots/*/*.safetensors"))}


def stored(root: Path) -> dict[str, tuple[int, int]]:
    """The finished shards: inode and time of each file, by key."""
    files = root.glob("evaluations/[!.]*.parquet")
    return {f.stem: (f.stat().st_ino, f.stat().st_mtime_ns) for f in files}


def steps_by_process(log: Path) -> Counter[int]:
    """How many attack steps each process has computed, by the shaky model's own count.

    A process that loads the model takes some more to get to know it.
    """
    lines = log.read_text().splitlines() if log.exists() else []
    return Counter(int(line.split()[0]) for line in lines)


GETTING_TO_KNOW = 12
"""At most so many steps of a process are no attack."""


def planned(file: Path, root: Path | str, *overrides: str) -> tuple[Plan, EvaluateJob, list[Shard]]:
    """The plan of an experiment file with one model, its evaluation, and the shards of that."""
    plan = make_plan(compose(file, [f"results={root}", *overrides]))
    (trial,) = plan.trials
    assert trial.ready is not None
    job = trial.evaluation(trial.ready)
    return plan, job, plan_shards(job, trial.test_ids)


def final_rows(file: Path, root: Path | str, *overrides: str) -> pa.Table:
    """The rows of all planned shards, in order; fails unless each image and reading is there once.

    Halves that a shard was cut into don't count: the report reads the planned shards only.
    """
    plan, _, shards = planned(file, root, *overrides)
    table = merge_rows(plan.storage, ((s.attack, s.name) for s in shards))
    keys = list(
        zip(*(table[name].to_pylist() for name in ("attack", "image_id", "step")), strict=True)
    )
    expected = [
        (s.attack, i, r) for s in shards for i in s.image_ids for r in s.trajectory.readings
    ]
    assert sorted(keys) == sorted(expected)
    assert len(set(keys)) == len(keys)
    order = [(name, "ascending") for name in ("attack", "image_id", "step")]
    return table.sort_by(order)


def expect_same(found: pa.Table, reference: pa.Table) -> None:
    """Bit-equal to those rows of the reference that are of the same images and attacks."""
    pairs = set(zip(found["attack"].to_pylist(), found["image_id"].to_pylist(), strict=True))
    of_both = zip(reference["attack"].to_pylist(), reference["image_id"].to_pylist(), strict=True)
    part = reference.filter([pair in pairs for pair in of_both])
    assert len(found) == len(part) > 0
    assert found.column_names == part.column_names
    for name in found.column_names:
        ours, theirs = found[name].to_numpy(), part[name].to_numpy()
        assert ours.dtype == theirs.dtype
        same = (
            ours.tolist() == theirs.tolist()
            if ours.dtype == object
            else (ours.tobytes() == theirs.tobytes())
        )
        assert same, name


@contextmanager
def ended(run: Run) -> Iterator[Run]:
    """Whatever happens in the block, nothing of the run is left after it."""
    try:
        yield run
    finally:
        run.end()


def stop(process: psutil.Process | int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process, which may just have gone."""
    with suppress(ProcessLookupError):
        os.kill(process if isinstance(process, int) else process.pid, number)
