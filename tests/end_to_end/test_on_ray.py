"""The command on Ray gives the rows of the command inline, also when its driver is killed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

EXPERIMENT = """
defaults:
  - schema
  - data: fashion_mnist_sample
  - model: small_s3ta
  - train: small_adversarial
  - attack@evaluate.attacks.pgd: small_pgd
  - tracking: none
  - _self_
name: tiny
sweep: {grid: {model.unroll: [1, 2]}}
data: {train_images: 64}
train: {epochs: 2, batch: 16, microbatch: 8, attack: {steps: 1}}
evaluate: {images: 24, tile: 8, shard_steps: 128, attacks: {pgd: {readings: [2, 16]}}}
cluster: {cpus: 2}
"""


def start(folder: Path, *overrides: str, experiment: str = EXPERIMENT) -> "subprocess.Popen[str]":
    """`s3ta run` on the tiny experiment, as a user starts it."""
    file = folder / "tiny.yaml"
    file.write_text(experiment)
    return subprocess.Popen(
        [sys.executable, "-m", "s3ta_platform", "run", file, f"results={folder}/r", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def rows(folder: Path) -> dict[str, list[dict[str, object]]]:
    """The rows of every stored shard, by its key."""
    files = sorted((folder / "r" / "evaluations").glob("*.parquet"))
    return {f.stem: pq.read_table(f).to_pylist() for f in files}


def listening(process: psutil.Process) -> set[str]:
    """The addresses on which a process and its children listen."""
    found = set()
    for p in [process, *process.children(recursive=True)]:
        try:
            found |= {c.laddr.ip for c in p.net_connections("inet") if c.status == "LISTEN"}
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def wait_for(folder: Path, pattern: str, process: "subprocess.Popen[str]") -> set[str]:
    """Wait until such a file is there; gives the addresses that were listened on meanwhile."""
    addresses: set[str] = set()
    deadline = time.monotonic() + 180
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no {pattern} appeared"
        addresses |= listening(psutil.Process(process.pid))
        time.sleep(0.05)
    return addresses


@pytest.mark.sweeps
def test_killed_on_ray_and_started_again_it_ends_with_the_inline_rows(tmp_path: Path) -> None:
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    plain.mkdir()
    killed.mkdir()
    finish(start(plain, "cluster.executor=inline"))

    first = start(killed)
    addresses = wait_for(killed, "r/evaluations/*.parquet", first)
    family = psutil.Process(first.pid).children(recursive=True)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    agents = [p for p in family if "gent" in p.name()]  # idle; they linger for a minute
    for agent in agents:
        agent.kill()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == [], "what worked for the killed driver is gone"
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, "a listener is not on loopback"
    assert addresses

    kept = {f: f.stat().st_mtime_ns for f in (killed / "r" / "evaluations").glob("*.parquet")}
    assert 0 < len(kept) < 8, "the driver was killed half-way"
    finish(start(killed))
    assert {f: f.stat().st_mtime_ns for f in kept} == kept, "what was done is not done again"
    assert rows(killed) == rows(plain)
    assert len(rows(plain)) == 2 * (3 + 1)


@pytest.mark.slow
def test_more_workers_than_cpus_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything that takes seconds is even imported."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # every import is printed
    process = start(tmp_path, "cluster.cpus=1", "cluster.train_workers=2")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert "cluster.train_workers is 2" in output
    assert "1 CPU" in output
    assert re.search(r"\| +omegaconf\n", output)
    assert not re.search(r"\| +(torch|ray|mlflow)\n", output)
    assert not (tmp_path / "r").exists()


@pytest.mark.sweeps
def test_a_trial_that_fails_is_named_with_its_error_and_does_not_end_the_sweep(
    tmp_path: Path,
) -> None:
    rates = EXPERIMENT.replace("model.unroll: [1, 2]", "train.learning_rate: [0.1, 1.0e30]")
    process = start(tmp_path, "train.warmup_epochs=0", experiment=rates)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 1, output
    words = " ".join(output.split())
    assert "The training loss of step" in words
    assert "Lower train.learning_rate" in words
    assert "Traceback" not in words
    assert "File " not in words
    assert "The log: " in words
    assert words.count("failed:") == 1
    assert len(rows(tmp_path)) == 4, "the other trial is complete"
