"""Every analysis through the command: pictures, tables and MLflow's artifacts, made once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

Command = Callable[..., Any]
EVERY = [
    "analyze.do=[landscape,attention,images,natural,race]",
    "analyze.landscape={images: 2, points: 5, shown: 2}",
    "analyze.attention={images: 8, object_above: 0.1, shown: 1}",
    "analyze.images={images: 4, shown: 2}",
    "analyze.natural={bootstrap: 20}",
]
TABLES = {"landscape", "attention", "natural"}
NUMBERS = {"landscape", "distraction", "attack_images", "calibration", "race"}
FIGURES = {
    "landscape-cross_entropy",
    "landscape-margin",
    "distraction",
    "attack_images",
    "calibration",
    "response_rate",
    "race",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("analyses") / "results"


def test_every_analysis_leaves_pictures_tables_and_artifacts_and_is_made_once(
    root: Path, tiny: Path, s3ta: Command
) -> None:
    plan = s3ta("plan", tiny, f"results={root}", *EVERY).output
    assert "pieces of analyses" in " ".join(plan.split())
    done = s3ta("run", tiny, f"results={root}", *EVERY)
    assert done.code == 0, done.output
    sweep = root / "sweeps" / "tiny"
    tables = {f.stem for f in (sweep / "analyses").glob("*.parquet")}
    assert (tables, {f.stem for f in (sweep / "analyses").glob("*.csv")}) == (TABLES, NUMBERS)
    for name in FIGURES:
        assert (sweep / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (sweep / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert len(list((sweep / "figures").glob("attention-*.png"))) == 2  # an image of each model
    page = (sweep / "report.html").read_text()
    assert "The loss around an image" in page
    assert "The computational race" in page
    assert {*pq.read_table(sweep / "analyses" / "attention.parquet")["model"].to_pylist()} == {
        "S3TA-1",
        "S3TA-2",
    }
    before = {f: f.stat().st_mtime_ns for f in (root / "analyses").iterdir()}
    again = s3ta("run", tiny, f"results={root}", *EVERY)
    assert "Nothing to compute: all 2 trials are stored" in again.output
    assert {f: f.stat().st_mtime_ns for f in (root / "analyses").iterdir()} == before
    assert s3ta("verify", root).code == 0
    _check_artifacts(root)


def _check_artifacts(root: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("s3ta")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (sweep,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    found = {
        Path(f.path).name
        for folder in ("analyses", "figures")
        for f in client.list_artifacts(sweep.info.run_id, folder)
    }
    assert {f"{name}.csv" for name in NUMBERS} | {f"{name}.parquet" for name in TABLES} <= found
    assert {f"{name}.png" for name in FIGURES} <= found


def test_what_cannot_be_analysed_is_said_before_anything_starts(
    root: Path, tiny: Path, s3ta: Command
) -> None:
    bad = s3ta("run", tiny, f"results={root}", "analyze.do=[race]", "analyze.race.attack=fgsm")
    assert bad.code == 2
    assert "analyze.race.attack is 'fgsm': it must be one of evaluate.attacks (pgd)" in bad.output
