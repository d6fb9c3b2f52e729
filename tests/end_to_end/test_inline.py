"""The whole loop in one process: what is stored is the truth, and nothing is done twice."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from s3ta.statistics import wilson

Command = Callable[..., Any]
ATTACK = "pgd_targeted_eps25.5"
READINGS = [2, 16, 18]
SHARDS = 2 * 3  # two trials; 2 steps on all images, 18 steps in two pieces
UNTRACKED = "tracking.store=none"


class First(NamedTuple):
    """The first run of the tiny experiment."""

    root: Path
    plan_before: str
    output: str


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("first") / "results"


@pytest.fixture
def first(shared: Path, tiny: Path, s3ta: Command, _runs: dict[Path, First]) -> First:
    if shared not in _runs:
        plan = s3ta("plan", tiny, f"results={shared}").output
        assert not shared.exists(), "a plan writes nothing"
        done = s3ta("run", tiny, f"results={shared}")
        assert done.code == 0, done.output
        _runs[shared] = First(shared, plan, done.output)
    return _runs[shared]


@pytest.fixture(scope="module")
def _runs() -> dict[Path, First]:
    return {}


@pytest.fixture
def copy(first: First, tmp_path: Path) -> Path:
    """Results that a test may change; trials and evaluations only."""
    root = tmp_path / "results"
    for part in ("trials", "evaluations", "galleries"):
        shutil.copytree(first.root / part, root / part)
    return root


def files(root: Path) -> dict[str, int]:
    """What is computed: every file below trials and evaluations, with its time."""
    found = [p for part in ("trials", "evaluations", "galleries") for p in (root / part).rglob("*")]
    return {
        str(p.relative_to(root)): p.stat().st_mtime_ns
        for p in found
        if p.is_file() and p.parent.name != "tracking"
    }


def rows(root: Path) -> dict[str, list[dict[str, object]]]:
    """The rows of every stored shard, by its key."""
    return {f.stem: pq.read_table(f).to_pylist() for f in root.glob("evaluations/*.parquet")}


def by_model(root: Path, keys: list[str]) -> dict[str, list[dict[str, Any]]]:
    """All rows of a trial, found by the model's digest in the files' metadata."""
    digests: dict[str, str] = {}
    for key in keys:
        record = (root / "trials" / key / "trained.json").read_text()
        digests[json.loads(record)["model_digest"]] = key
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file in root.glob("evaluations/*.parquet"):
        about = json.loads(pq.read_schema(file).metadata[b"s3ta"])
        found[digests[about["key_parts"]["model"]]] += pq.read_table(file).to_pylist()
    return found


def table(root: Path) -> list[dict[str, str]]:
    with (root / "sweeps" / "tiny" / "table.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_first_run_leaves_report_figures_table_and_rows(first: First) -> None:
    sweep = first.root / "sweeps" / "tiny"
    page = (sweep / "report.html").read_text()
    assert "S3TA-1" in page
    assert "S3TA-2" in page
    figures = {f.name for f in (sweep / "figures").glob("*.png")}
    assert {f"accuracy_against_steps-{ATTACK}.png", "image_grid.png"} <= figures
    assert sum(name.startswith("attention_maps") for name in figures) == 2
    assert len(rows(first.root)) == SHARDS
    assert str(sweep / "report.html") in first.output
    assert f"rm -r {first.root}" in first.output


def test_every_number_of_the_table_can_be_recomputed_from_the_rows(first: First) -> None:
    lines = table(first.root)
    assert len(lines) == 2 * (1 + 2 * len(READINGS))
    found = by_model(first.root, [line["key"] for line in lines])
    for line in lines:
        mine = found[line["key"]]
        if line["measure"] == "nominal":
            hits = {r["image_id"]: r["clean_prediction"] == r["label"] for r in mine}
        else:
            right, at = ("label", "target")[line["measure"] == "success"], int(line["steps"])
            hits = {r["image_id"]: r["prediction"] == r[right] for r in mine if r["step"] == at}
        assert len(hits) == 24
        low, high = wilson(sum(hits.values()), 24)
        assert (int(line["successes"]), int(line["total"])) == (sum(hits.values()), 24)
        assert float(line["value"]) == pytest.approx(sum(hits.values()) / 24, abs=1e-6)
        assert (float(line["low"]), float(line["high"])) == pytest.approx((low, high), abs=1e-6)


def test_mlflow_has_one_parent_and_a_finished_run_per_trial(first: First) -> None:
    parent, children, client = tracked(first.root)
    assert {r.data.tags["mlflow.runName"] for r in children} == {"S3TA-1", "S3TA-2"}
    assert {r.info.status for r in [parent, *children]} == {"FINISHED"}
    numbers = {(t["model"], t["measure"], t["steps"]): float(t["value"]) for t in table(first.root)}
    for run in children:
        for series, measure in (("top1", "top1"), ("attack_success", "success")):
            points = client.get_metric_history(run.info.run_id, f"eval/{ATTACK}/{series}")
            assert {p.step: p.value for p in points} == pytest.approx(
                {n: numbers[run.data.tags["model"], measure, str(n)] for n in READINGS}, abs=1e-6
            )
            assert len(points) == len(READINGS)
        steps = client.get_metric_history(run.info.run_id, "train/loss")
        assert [p.step for p in steps] == [1, 2, 3, 4]


def tracked(root: Path) -> tuple[Any, list[Any], MlflowClient]:
    client = MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("s3ta")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) == 1
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(runs) == 3
    return parents[0], children, client


def test_mlflow_refers_to_the_checkpoints_which_are_stored_once(first: First) -> None:
    _, children, client = tracked(first.root)
    for run in children:
        names = [file.path for file in client.list_artifacts(run.info.run_id)]
        assert names == ["checkpoints.json", "config.yaml"]
        (file,) = first.root.rglob(f"{run.info.run_id}/artifacts/checkpoints.json")
        references = json.loads(file.read_text())
        key = run.data.tags["config_key"]
        folder = first.root / "trials" / key / "checkpoints"
        assert {f"{int(step):010d}" for step in references} == {f.name for f in folder.iterdir()}
        for step, reference in references.items():
            manifest = folder / f"{int(step):010d}" / "manifest.json"
            assert reference["manifest"] == manifest.as_uri()
            assert reference["sha256"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
            assert reference["metrics"]["loss"] > 0


def test_run_again_it_computes_and_logs_nothing_anew(
    first: First, tiny: Path, s3ta: Command
) -> None:
    before, points = files(first.root), every_point(first.root)
    again = s3ta("run", tiny, f"results={first.root}")
    assert again.code == 0
    assert "Nothing to compute: all 2 trials are stored" in again.output
    assert files(first.root) == before
    assert every_point(first.root) == points


def every_point(root: Path) -> list[tuple[str, str, int]]:
    _, children, client = tracked(root)
    return sorted(
        (run.info.run_id, point.key, point.step)
        for run in children
        for key in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, key)
    )


def test_a_plan_says_what_is_new_and_what_is_done(first: First, tiny: Path, s3ta: Command) -> None:
    assert "4 steps of 16 images" in first.plan_before
    assert "3 shards" in first.plan_before
    assert "0 of 2 trials are complete" in first.plan_before
    after = s3ta("plan", tiny, f"results={first.root}").output
    assert "2 of 2 trials are complete" in after
    assert after.count("done (3 shards)") == 2
    for line in table(first.root):
        assert line["key"] in first.plan_before


def test_a_new_reading_costs_only_its_shards(copy: Path, tiny: Path, s3ta: Command) -> None:
    before = files(copy)
    more = ["evaluate.attacks.pgd.readings=[2,3,16,18]", UNTRACKED, f"results={copy}"]
    assert "3 shards" not in (plan := s3ta("plan", tiny, *more).output)
    assert plan.count("4 shards, 1 of them to do") == 2
    assert s3ta("run", tiny, *more).code == 0
    after = files(copy)
    assert {name: after[name] for name in before} == before
    new = sorted(n for n in set(after) - set(before) if n.startswith("evaluations/"))
    assert len(new) == 2 * 1
    assert {r["step"] for name in new for r in pq.read_table(copy / name).to_pylist()} == {3}


def test_a_new_point_trains_only_that_trial(copy: Path, tiny: Path, s3ta: Command) -> None:
    before = files(copy)
    wider = tiny.with_name("wider.yaml")
    text = tiny.read_text()
    wider.write_text(text.replace("{model.unroll: 2}", "{model.unroll: 2}\n    - {train.seed: 5}"))
    plan = " ".join(s3ta("plan", wider, f"results={copy}").output.split())
    assert plan.count(" is new: ") == 1
    assert "train.seed is 5, not 0 (beside " in plan
    done = s3ta("run", wider, UNTRACKED, f"results={copy}")
    assert done.code == 0, done.output
    assert "2 of 3 trials are stored already" in done.output
    after = files(copy)
    assert {name: after[name] for name in before} == before
    assert len({name.split("/")[1] for name in after if name.startswith("trials/")}) == 3
    assert len(rows(copy)) == SHARDS + 3


def test_a_lost_shard_is_made_again_bit_for_bit(copy: Path, tiny: Path, s3ta: Command) -> None:
    before, all_rows = files(copy), rows(copy)
    lost = sorted(copy.glob("evaluations/*.parquet"))[3]
    lost.unlink()
    assert s3ta("run", tiny, UNTRACKED, f"results={copy}").code == 0
    after = files(copy)
    name = str(lost.relative_to(copy))
    assert {n for n in before if before[n] != after[n]} == {name}
    assert set(after) == set(before)
    assert rows(copy) == all_rows


def signalled(file: Path, root: Path, pattern: str, number: signal.Signals) -> tuple[int, str]:
    """Send a signal to a run as soon as such a file is there; exit code and what it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "s3ta_platform", "run", file, UNTRACKED, f"results={root}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 90
    while not list(root.glob(pattern)):
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def test_ctrl_c_says_how_to_go_on(tiny: Path, tmp_path: Path) -> None:
    pattern = "trials/*/checkpoints/*/manifest.json"
    code, output = signalled(tiny, tmp_path / "r", pattern, signal.SIGINT)
    assert code == 130
    assert "Traceback" not in output
    assert output.endswith("s3ta: stopped. Started again, a run goes on where it ended.\n")


def test_killed_half_way_and_started_again_it_ends_with_the_same_rows(
    first: First, tiny: Path, tmp_path: Path, s3ta: Command
) -> None:
    root = tmp_path / "killed"
    code, _ = signalled(tiny, root, "evaluations/*.parquet", signal.SIGKILL)
    assert code == -signal.SIGKILL
    kept = files(root)
    assert 0 < len(rows(root)) < SHARDS, "it was killed half-way"
    assert s3ta("run", tiny, UNTRACKED, f"results={root}").code == 0
    after = files(root)
    assert {name: after[name] for name in kept if ".tmp-" not in name} == {
        name: t for name, t in kept.items() if ".tmp-" not in name
    }
    assert rows(root) == rows(first.root)
