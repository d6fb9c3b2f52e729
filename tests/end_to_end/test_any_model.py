"""A model that was not trained here: attacked by the same command, the rows are those by hand."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from s3ta.settings import AttackSettings, Goal
from s3ta_platform.compose import groups_folder
from s3ta_platform.data import ParquetImages
from s3ta_platform.foreign import UnitImages
from s3ta_platform.notebook import evaluate

Command = Callable[..., Any]
EVALUATE = groups_folder() / "evaluate.yaml"
TEST = "sample:fashion_mnist/test.parquet"
NETS = '''
import torch
from torch import nn

def small() -> nn.Module:
    """A network with BatchNorm, for bytes; its weights are whatever a sine gives."""
    net = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(288, 10),
    )
    with torch.no_grad():
        for index, (name, values) in enumerate(net.state_dict().items()):
            if values.is_floating_point():
                waves = torch.arange(values.numel()).mul(1.7 + index).sin().view(values.shape)
                values.copy_(waves.abs() + 0.5 if name.endswith("var") else 0.2 * waves)
    return net
'''
SETTINGS = [
    "model.factory=their_project.nets:small",
    "model.input_range=[0,255]",
    "model.mean=[70]",
    "model.std=[90]",
    "evaluate.images=20",
    "evaluate.tile=8",
    "evaluate.shard_steps=144",
    "evaluate.gallery_images=2",
    "evaluate.attacks.targeted.readings=[2,16,18]",
    "evaluate.attacks.untargeted.readings=[18]",
    "cluster.executor=inline",
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of somebody's own, as `pip install -e .` would make it importable."""
    package = tmp_path / "theirs" / "their_project"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(package.parent))
    for name in [name for name in sys.modules if name.startswith("their_project")]:
        monkeypatch.delitem(sys.modules, name)
    return package


def stored_rows(root: Path) -> list[dict[str, Any]]:
    """All rows below a results root, with the attack that each file names."""
    tables = []
    for file in root.glob("evaluations/*.parquet"):
        table = pq.read_table(file)
        attack = json.loads(table.schema.metadata[b"s3ta"])["attack"]
        names = pa.array([attack] * len(table))
        tables.append(table.replace_schema_metadata(None).append_column("attack", names))
    return ordered(pa.concat_tables(tables))


def ordered(table: pa.Table) -> list[dict[str, Any]]:
    return sorted(table.to_pylist(), key=lambda r: (r["attack"], r["step"], r["image_id"]))


def test_the_command_and_the_notebook_give_the_same_rows(
    project: Path, tmp_path: Path, s3ta: Command
) -> None:
    done = s3ta("run", EVALUATE, *SETTINGS, "tracking.store=none", f"results={tmp_path}/r")
    assert done.code == 0, done.output
    found = stored_rows(tmp_path / "r")
    assert len(found) == 20 * (3 + 1)

    import their_project.nets  # type: ignore[import-not-found]

    test = ParquetImages(TEST, channels=1)
    ids = sorted({row["image_id"] for row in found})
    images, labels = test.read(ids)
    model = UnitImages(their_project.nets.small(), mean=[70], std=[90], input_range=[0, 255])
    torch.set_num_threads(1)  # as cluster.threads; the fixture sets it back
    attacks = [
        AttackSettings(goal=Goal.random_target, epsilon_255=25.5, readings=[2, 16, 18]),
        AttackSettings(goal=Goal.untargeted, epsilon_255=25.5, readings=[18]),
    ]
    by_hand = evaluate(model, images, labels, attacks, ids=ids, tile=8)
    assert ordered(by_hand) == found
    assert len({row["prediction"] for row in found}) > 2, "a model that has opinions"


def test_a_run_without_training_leaves_what_every_run_leaves_but_no_checkpoint(
    project: Path, tmp_path: Path, s3ta: Command
) -> None:
    root = tmp_path / "r"
    plan = s3ta("plan", EVALUATE, *SETTINGS, f"results={root}").output
    assert "no training" in plan
    assert not root.exists()
    done = s3ta("run", EVALUATE, *SETTINGS, f"results={root}")
    assert done.code == 0, done.output
    page = (root / "sweeps" / "evaluate" / "report.html").read_text()
    assert "model.factory=their_project.nets:small" in page
    assert "Learning curves" not in page
    for absent in ("train.epochs", "train.attack", "model.vision", "model.unroll"):
        assert absent not in page
    assert not list(root.glob("trials/*/checkpoints"))
    assert not list(root.glob("trials/*/trained.json"))
    assert "checkpoints" not in done.output

    client = MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("s3ta")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (trial,) = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert trial.info.status == "FINISHED"
    assert trial.data.params == {"model": "small", "factory": "their_project.nets:small"}
    assert "train_pgd_steps" not in trial.data.tags
    assert {k for k in trial.data.metrics if k.startswith("eval/pgd_untargeted_eps25.5/top1")}

    files = {p: p.stat().st_mtime_ns for p in root.glob("evaluations/*")}
    again = s3ta("run", EVALUATE, *SETTINGS, f"results={root}")
    assert again.code == 0
    assert "Nothing to compute" in again.output
    assert {p: p.stat().st_mtime_ns for p in root.glob("evaluations/*")} == files
    assert s3ta("report", EVALUATE, *SETTINGS, f"results={root}").code == 0


def test_changed_code_is_another_model(project: Path, tmp_path: Path, s3ta: Command) -> None:
    arguments = [*SETTINGS, "tracking.store=none", f"results={tmp_path}/r"]
    assert s3ta("run", EVALUATE, *arguments).code == 0
    before = len(list((tmp_path / "r" / "evaluations").iterdir()))
    (project / "nets.py").write_text(NETS.replace("nn.ReLU()", "nn.LeakyReLU(0.3)"))
    for name in [name for name in sys.modules if name.startswith("their_project")]:
        del sys.modules[name]
    assert "0 of 1 trials are complete" in s3ta("plan", EVALUATE, *arguments).output
    assert s3ta("run", EVALUATE, *arguments).code == 0
    assert len(list((tmp_path / "r" / "evaluations").iterdir())) == 2 * before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.factory=thier_project.nets:small", ["'thier_project'", "`pip install -e .`"]),
        ("model.factory=their_project.nets:smal", ["'smal'", "Did you mean", "nets:small?"]),
        ("model.factory=their_project.nets", ["package.module:function"]),
        ("model.input_range=[1]", ["override 'model.input_range=[1]'", "black and white"]),
        ("data.image_size=20", ["raised RuntimeError", "data.image_size"]),
        ("model.factory=null", ["model.input_range", "unless model.factory names a model"]),
    ],
)
def test_a_mistake_is_one_line_with_its_remedy_and_leaves_nothing(
    project: Path, tmp_path: Path, s3ta: Command, override: str, words: list[str]
) -> None:
    done = s3ta("run", EVALUATE, *SETTINGS, override, f"results={tmp_path}/r")
    assert done.code == 2
    assert done.output.count("\n") == 1, done.output
    assert [w for w in words if w not in done.output] == [], done.output
    assert not (tmp_path / "r").exists()


def test_the_example_is_attacked_as_shipped(tmp_path: Path, s3ta: Command) -> None:
    small = ["evaluate.images=64", "cluster.executor=inline", "tracking.store=none"]
    done = s3ta("run", EVALUATE, *small, f"results={tmp_path}/r")
    assert done.code == 0, done.output
    rows = stored_rows(tmp_path / "r")
    clean = {r["image_id"]: r["clean_prediction"] == r["label"] for r in rows}
    test = ParquetImages(TEST, channels=1)
    train = ParquetImages("sample:fashion_mnist/train.parquet", channels=1)
    pixels, labels = train.read(train.ids_N)
    flat = pixels.reshape(len(pixels), -1) / 255.0
    means = np.stack([flat[labels == c].mean(axis=0) for c in range(10)])
    images, truth = test.read(sorted(clean))
    distances = np.square(images.reshape(64, 1, -1) / 255.0 - means).sum(axis=2)
    assert [clean[i] for i in sorted(clean)] == (distances.argmin(axis=1) == truth).tolist()
