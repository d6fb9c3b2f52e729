"""Runs from outside: stopped like Ctrl-C, seen by ps, and one failed trial tried again."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import s3ta_platform.trial
from s3ta_platform.plan import TrialPlan
from s3ta_platform.runs import State, read_runs
from s3ta_platform.storage import open_storage

Command = Callable[..., Any]
QUICK = (
    "tracking.store=none",
    "data.train_images=16",
    "train.epochs=1",
    "evaluate.images=8",
    "evaluate.gallery_images=0",
)
"""Overrides: `retry` has to know them from the run's record."""


def test_stop_ends_a_run_as_ctrl_c_does_even_one_that_a_script_has_put_into_the_background(
    tiny: Path, tmp_path: Path, s3ta: Command
) -> None:
    root = tmp_path / "r"
    run = [sys.executable, "-m", "s3ta_platform", "run", str(tiny), "tracking.store=none"]
    # A shell that is no terminal makes what it puts into the background deaf to SIGINT.
    shell = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]
    process = subprocess.Popen(
        [*shell, *run, f"results={root}", "train.epochs=2000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 90
    while not list(root.glob("trials/*/checkpoints/*/manifest.json")):
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    shown = s3ta("ps", "--results", root)
    assert f"running  {os.uname().nodename}, pid {process.pid}" in shown.output
    (run_,) = read_runs(open_storage(str(root)))
    assert (run_.state, run_.holder.pid) == (State.running, process.pid)
    busy = s3ta("retry", run_.todo[0], "--results", root)
    assert busy.code == 2
    assert f"which is at work ({os.uname().nodename}, pid {process.pid}" in busy.output
    wrong = s3ta("stop", "tinier", "--results", root)
    assert wrong.code == 2
    assert "'tinier' names no run" in wrong.output

    done = s3ta("stop", "tiny", "--results", root)
    output, _ = process.communicate(timeout=5)
    assert done.code == 0, done.output
    assert "has ended. Started again, it goes on" in done.output
    assert process.returncode == 130
    assert output.endswith("s3ta: stopped. Started again, a run goes on where it ended.\n")
    assert [r.state for r in read_runs(open_storage(str(root)))] == [State.stopped]
    again = s3ta("stop", "--results", root)
    assert (again.code, "Nothing runs in" in again.output) == (2, True)


def test_a_failed_trial_is_named_with_the_command_that_tries_it_again(
    tiny: Path, tmp_path: Path, s3ta: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "r"
    works = s3ta_platform.trial.run_trial

    def fails_at_two(plan: TrialPlan, *others: Any) -> None:
        if plan.experiment.model.unroll == 2:
            raise RuntimeError("out of memory")
        works(plan, *others)

    with monkeypatch.context() as patch:
        patch.setattr("s3ta_platform.trial.run_trial", fails_at_two)
        first = s3ta("run", tiny, f"results={root}", *QUICK)
    assert first.code == 1
    page = root / "sweeps" / "tiny" / "report.html"
    (run,) = read_runs(open_storage(str(root)))
    (key,) = run.errors
    assert run.state is State.failed
    for said in (first.output, page.read_text()):
        assert "out of memory" in said
        assert f"retry {key} --results {root}" in said

    assert s3ta("logs", key, "--results", root).output.endswith("failed: out of memory\n")
    tiny_before = page.read_text()
    again = s3ta("retry", key[:6], "--results", root)
    assert again.code == 0, again.output
    assert "failed:" not in again.output
    assert "out of memory" in tiny_before
    assert "out of memory" not in page.read_text(), "the whole sweep's report is made anew"
    assert "S3TA-1" in page.read_text()
    assert "2 of 2 trials are complete" in s3ta("plan", tiny, f"results={root}", *QUICK).output
    assert "Nothing to compute" in s3ta("retry", key, "--results", root).output
    assert s3ta("retry", "nonsense", "--results", root).code == 2


def test_a_trial_of_another_version_is_not_tried_again(
    tiny: Path, tmp_path: Path, s3ta: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, nothing = tmp_path / "r", {"s3ta_platform.trial.run_trial": _fails}
    for name, value in nothing.items():
        monkeypatch.setattr(name, value)
    s3ta("run", tiny, f"results={root}", "tracking.store=none")
    (run,) = read_runs(open_storage(str(root)))
    monkeypatch.setattr("s3ta_platform.control.RESULT_VERSION", run.result_version + 1)
    refused = s3ta("retry", run.todo[0], "--results", root)
    assert refused.code == 2
    assert "run the experiment file anew" in refused.output


def _fails(*arguments: Any) -> None:
    raise RuntimeError("boom")
