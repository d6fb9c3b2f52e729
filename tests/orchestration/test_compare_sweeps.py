"""Two sweeps: what moved is what was made to move, and what can't be compared says why."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hand_made import TRIAL_A, TRIAL_B, Evaluation

from s3ta.errors import UserError
from s3ta.settings import AttackSettings
from s3ta_platform.compare_sweeps import (
    SweepComparison,
    compare_if_sweeps,
    compare_sweeps,
    find_sweep,
    in_words,
)
from s3ta_platform.storage import Storage, open_storage

AT_20 = AttackSettings(epsilon_255=16, readings=[20])


def put(root: Path, trial: str, model: str, fallen: Sequence[int], **changes: Any) -> Storage:
    storage = open_storage(str(root), durable=False)
    falls = dict.fromkeys(fallen, 5)
    made = Evaluation(trial=trial, model=model, falls=falls, attacks=[AT_20], **changes)
    made.store(storage)
    return storage


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Of 60 images S3TA-2 loses 20 more in the second version, and S3TA-4 stays as it was."""
    old, new = tmp_path / "old", tmp_path / "new"
    put(old, TRIAL_A, "S3TA-2", range(10), digest="1" * 64)
    put(new, "c" * 16, "S3TA-2", range(30), digest="2" * 64)
    put(old, TRIAL_B, "S3TA-4", range(12), digest="3" * 64)
    put(new, TRIAL_B, "S3TA-4", range(12), digest="3" * 64)
    return old, new


def found(a: Path, b: Path) -> SweepComparison:
    mine, yours = find_sweep(str(a), "results"), find_sweep(str(b), "results")
    assert mine is not None
    assert yours is not None
    return compare_sweeps(mine, yours)


def test_only_what_moved_beyond_its_interval_is_named(two: tuple[Path, Path]) -> None:
    sweeps = found(*two)
    assert [(name, e.measure, e.steps) for name, e in sweeps.moved] == [("S3TA-2", "top1", 20)]
    assert sweeps.same == ["S3TA-4"]
    assert sweeps.compared == 3  # clean, top-1 and success of S3TA-2
    # 10 and 30 of 60 fallen; d = 20 / 60, SE = sqrt(20 - 20^2 / 60) / 60.
    half = 100 * 1.959964 * (20 - 400 / 60) ** 0.5 / 60
    line = in_words(sweeps)[0]
    assert line.startswith("S3TA-2: top-1, ")
    assert line.endswith(f"83.3 -> 50.0 (-33.3, {-100 / 3 - half:+.1f} to {-100 / 3 + half:+.1f})")
    back = found(*reversed(two)).moved
    assert back[0][1].difference[0] == -sweeps.moved[0][1].difference[0]


def test_a_small_difference_is_none(tmp_path: Path) -> None:
    for name, fallen, digest in (("old", range(10), "1"), ("new", range(2, 13), "2")):
        put(tmp_path / name, TRIAL_A, "S3TA-2", fallen, digest=digest * 64)
        put(tmp_path / name, TRIAL_B, "S3TA-4", range(5), digest="3" * 64)
    assert found(tmp_path / "old", tmp_path / "new").moved == []


def test_what_can_not_be_compared_says_why(two: tuple[Path, Path], tmp_path: Path) -> None:
    old, _ = two
    other = tmp_path / "other"
    put(other, TRIAL_A, "S3TA-2", range(5), digest="5" * 64, seed=2)
    put(other, "d" * 16, "ResNet-8", range(5), digest="6" * 64)
    sweeps = found(old, other)
    assert "evaluate.seed is 1 and 2" in sweeps.not_compared["S3TA-2"]
    assert sweeps.not_compared["S3TA-4"] == "it is not in B"
    assert sweeps.not_compared["ResNet-8"] == "it is not in A"
    assert (sweeps.compared, sweeps.moved) == (0, [])


def test_sweeps_of_one_root_are_told_apart_by_their_capsules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "results"
    put(root, TRIAL_A, "S3TA-2", range(10), digest="1" * 64)
    storage = put(root, TRIAL_B, "S3TA-2", range(30), digest="2" * 64)
    for name, key in (("first", TRIAL_A), ("second", TRIAL_B), ("first-b", "c" * 16)):
        capsule = {"name": name, "trials": [{"key": key}]}
        storage.put_new(f"capsules/{name}-0123456789ab.json", json.dumps(capsule).encode())
    assert compare_if_sweeps("first", "second", str(root), None) == 0
    assert "1 of 3 numbers moved" in capsys.readouterr().out
    assert compare_if_sweeps("first", TRIAL_B, str(root), None) is None
    with pytest.raises(UserError, match="it holds the numbers of two models"):
        compare_if_sweeps("first", "second", str(root), tmp_path / "x.csv")
