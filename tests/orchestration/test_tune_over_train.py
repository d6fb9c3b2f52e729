"""Tune over Train, on the toy sweep: 12 steps of 2 and 12 of 4 times the key, killed or not."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.sweeps

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).with_name("toy_sweep.py")
PATH = os.pathsep.join([str(ROOT), str(ROOT / "platform"), os.environ.get("PYTHONPATH", "")])

BYSTANDER = """
import ray
from s3ta_platform.cluster import local_cluster

class Bystander:
    def answer(self):
        return 42

with local_cluster(cpus=1):
    actor = ray.remote(Bystander).remote()
    print(ray.get(actor.answer.remote()), flush=True)
    input()
    print(ray.get(actor.answer.remote()), flush=True)
"""


def python(*args: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *args],
        env={**os.environ, "PYTHONPATH": PATH},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start(folder: Path, *options: str | int) -> subprocess.Popen[str]:
    for name in ("results", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return python(TOY, folder / "results", folder / "scratch", *map(str, options))


def end(process: subprocess.Popen[str], within_s: float = 240) -> Any:
    """What a run that ends by itself printed: one line of JSON, and nothing of Ray's."""
    out, err = process.communicate(timeout=within_s)
    assert (process.returncode, err) == (0, "")
    return json.loads(out)


def is_agent(process: psutil.Process) -> bool:
    """Ray's two agents compute nothing; without their cluster they need 60 s to notice."""
    try:
        return process.cmdline()[:1] in (["ray::DashboardAgent"], ["ray::RuntimeEnvAgent"])
    except psutil.NoSuchProcess:
        return False


def kill_when(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """SIGKILL a driver when a condition on the files holds; all that computes must die with it."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ray_processes = psutil.Process(process.pid).children(recursive=True)
    agents = [member for member in ray_processes if is_agent(member)]
    process.kill()
    process.communicate()
    for agent in agents:
        agent.kill()
    _, survivors = psutil.wait_procs(ray_processes, timeout=30)
    for survivor in survivors:
        survivor.kill()
    assert not survivors


def durable(results: Path, key: int) -> tuple[int, int]:
    """The last durable step of a trial, and its total."""
    last = max((results / str(key)).glob("*.json"), default=None)
    return (int(last.stem), json.loads(last.read_text())) if last else (0, 0)


def executed(results: Path, key: int) -> list[int]:
    return [int(line) for line in (results / str(key) / "executed.log").read_text().split()]


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The results folder of an undisturbed sweep of six under ASHA, and what it printed.

    Meanwhile another Ray instance runs on the machine, and still runs when the sweep is over.
    """
    folder = tmp_path_factory.mktemp("six")
    other = python("-c", BYSTANDER)
    printed = end(start(folder, "--asha", 6, 5, 4, 3, 2, 1))
    out, err = other.communicate("\n", timeout=60)
    assert (other.returncode, out.split(), err) == (0, ["42", "42"], "")
    return folder / "results", printed


def test_an_undisturbed_sweep_computes_every_step_once(six: tuple[Path, Any]) -> None:
    results, _ = six
    for key in range(1, 7):
        step, total = durable(results, key)
        assert (step, total) in {(12, 24 * key), (24, 72 * key)}
        assert executed(results, key) == list(range(1, step + 1))


def test_asha_stops_the_worse_half_at_the_end_of_a_fit(six: tuple[Path, Any]) -> None:
    results, _ = six
    steps = {key: durable(results, key)[0] for key in range(1, 7)}
    assert steps[6] == 24  # the best; the second may arrive first, and then goes on
    assert [steps[key] for key in range(1, 5)] == [12] * 4


def test_a_sweep_leaves_no_actor_and_no_placement_group(six: tuple[Path, Any]) -> None:
    _, printed = six
    actors, groups = printed["before"]
    assert groups == []
    assert [name.split()[0] for name in actors] == ["_AutoscalingCoordinatorActor"]
    assert printed["removed"] == actors
    assert printed["after"] == [[], []]


def test_a_killed_driver_started_again_computes_only_what_is_not_durable(
    six: tuple[Path, Any], tmp_path: Path
) -> None:
    results, fitted = tmp_path / "results", tmp_path / "results/6/fitted.log"
    # Workers outlive a killed driver by about 2 s: slow steps keep the first kill inside the fit.
    kills: list[tuple[float, Callable[[], bool]]] = [
        (1.0, lambda: durable(results, 6)[0] >= 3),
        (0.02, fitted.exists),  # between the stages
        (0.02, lambda: fitted.read_text().split() == ["0", "1"]),  # after the last
    ]
    lines, last, steps = 0, 0, []
    for step_s, condition in kills:
        kill_when(start(tmp_path, "--step-s", str(step_s), 6), condition)
        assert executed(results, 6)[lines:][0] == last + 1
        lines, last = len(executed(results, 6)), durable(results, 6)[0]
        steps.append(last)
    assert 3 <= steps[0] < 12
    assert steps[1:] == [12, 24]
    assert set(executed(results, 6)) == set(range(1, 25))
    assert end(start(tmp_path, 6)) == {"missing": []}
    assert durable(results, 6) == durable(six[0], 6) == (24, 72 * 6)
