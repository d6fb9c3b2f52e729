"""A run with a budget: refused, or ended in the middle and finished by a larger one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3ta_platform.spending import spent_before
from s3ta_platform.storage import open_storage

Command = Callable[..., Any]
UNTRACKED = "tracking.store=none"


def test_a_budget_ends_a_run_cleanly_and_a_larger_one_finishes_it(
    tiny: Path, s3ta: Command, tmp_path: Path
) -> None:
    root = tmp_path / "results"
    # More than a core could do in the best case, less than this takes.
    refused = s3ta("run", tiny, f"results={root}", UNTRACKED, "--max-gpu-hours=1e-12")
    assert refused.code == 2
    assert "budget.gpu_hours is 1e-12, but tiny needs at least" in refused.output
    assert not list(root.glob("trials/*"))
    ended = s3ta("run", tiny, f"results={root}", UNTRACKED, "--max-gpu-hours=0.00002")
    assert ended.code == 130, ended.output
    assert "The budget of 2e-05 device hours is spent" in ended.output
    assert "Started again, a run goes on where it ended." in ended.output
    spent = spent_before(open_storage(str(root)), "spent/tiny/")
    assert spent > 0.00002 * 3600
    again = s3ta("run", tiny, f"results={root}", UNTRACKED, "--max-gpu-hours=0.00002")
    assert again.code == 2, "what was spent counts"
    done = s3ta("run", tiny, f"results={root}", UNTRACKED, "--max-gpu-hours=1")
    assert done.code == 0, done.output
    assert spent_before(open_storage(str(root)), "spent/tiny/") > spent
    assert len(list(root.glob("trials/*/trained.json"))) == 2
    capsules = [json.loads(f.read_text()) for f in root.glob("capsules/tiny-*.json")]
    # One for each budget with which something was begun: it is a setting like others.
    assert {c["experiment"]["budget"]["gpu_hours"] for c in capsules} == {0.00002, 1.0}


@pytest.mark.slow
def test_on_ray_a_budget_ends_a_run_as_ctrl_c_does(
    tiny: Path, s3ta: Command, tmp_path: Path
) -> None:
    """There the news that it is spent comes from a thread of its own."""
    ray = ("cluster.executor=ray", "cluster.cpus=2", "train.epochs=60")
    where = (f"results={tmp_path / 'results'}", UNTRACKED, *ray)
    ended = s3ta("run", tiny, *where, "--max-gpu-hours=0.0002")
    assert ended.code == 130, ended.output
    assert "The budget of 0.0002 device hours is spent" in ended.output
    assert "Traceback" not in ended.output
    assert spent_before(open_storage(str(tmp_path / "results")), "spent/tiny/") > 0.0002 * 3600
    assert s3ta("run", tiny, *where, "--max-gpu-hours=1").code == 0
    assert len(list((tmp_path / "results").glob("trials/*/trained.json"))) == 2
