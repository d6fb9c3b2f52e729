"""The repository's shape: what may import what, which YAML is whole, what the wheel carries."""

import importlib.metadata
import io
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from s3ta_platform.compose import compose, restore
from s3ta_platform.data_files import NoDataError
from s3ta_platform.plan import make_plan
from s3ta_platform.record import plain
from s3ta_platform.show_plan import show_estimate

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(
    file
    for file in (ROOT / "experiments").rglob("*.yaml")
    if "schema" in (yaml.safe_load(file.read_text()) or {}).get("defaults", [])
)
OWN_MODEL = [
    "model.factory=s3ta_platform.nearest_mean:nearest_mean",
    "model.mean=[0]",
    "model.std=[1]",
    "data.test=sample:fashion_mnist/test.parquet",
]
GROUP_FILES = sorted(set((ROOT / "experiments").rglob("*.yaml")) - set(EXPERIMENTS))


def python(script: str, cwd: Path = ROOT, **environment: str) -> str:
    """What a new Python prints."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pythons_own_platform_is_not_shadowed() -> None:
    found = python("import platform; print(platform.system()); print(platform.__file__)")
    system, file = found.split()
    assert system == "Linux"
    assert Path(file) == Path(sysconfig.get_path("stdlib")) / "platform.py"


def test_only_the_packages_are_packages() -> None:
    folders = [ROOT / name for name in ("platform", "experiments", "infra", "tests")]
    found = {p.relative_to(ROOT).as_posix() for f in folders for p in f.rglob("__init__.py")}
    assert found == {"platform/s3ta_platform/__init__.py"}


def test_the_import_contracts_hold() -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


HEAVY = {"torch", "ray", "mlflow", "pyarrow", "hydra", "omegaconf", "matplotlib", "boto3"}


@pytest.mark.parametrize("module", ["s3ta_platform.cli", "s3ta.settings", "s3ta.draws"])
def test_nothing_heavy_is_imported_before_it_is_used(module: str) -> None:
    loaded = set(
        json.loads(python(f"import sys, json, {module}; print(json.dumps([*sys.modules]))"))
    )
    assert module in loaded
    assert not HEAVY & loaded
    assert "numpy" not in loaded or module == "s3ta.draws"


def test_a_plan_imports_neither_torch_nor_ray_nor_mlflow(tmp_path: Path) -> None:
    script = (
        "import sys; sys.argv = ['s3ta', 'plan', 'experiments/quickstart.yaml', "
        f"'results={tmp_path}/r']; from s3ta_platform.cli import main\n"
        "try:\n    main()\nfinally:\n    print(*sys.modules)"
    )
    loaded = set(python(script).split())
    assert "hydra" in loaded
    assert not {"torch", "ray", "mlflow", "matplotlib"} & loaded


@pytest.mark.parametrize("command", [["s3ta"], [sys.executable, "-m", "s3ta_platform"]])
def test_help_answers(command: list[str]) -> None:
    first = Path(sys.executable).parent / command[0]
    done = subprocess.run(
        [first, *command[1:], "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    for word in ("run", "plan", "report", "ps", "logs", "stop", "retry", "gc", "ui", "doctor"):
        assert f" {word} " in done.stdout
    assert done.stderr == ""


def test_there_are_experiments_and_groups() -> None:
    names = {file.relative_to(ROOT / "experiments").as_posix() for file in EXPERIMENTS}
    assert "quickstart.yaml" in names
    assert all(file.parent.parent.name == "experiments" for file in GROUP_FILES)


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda f: f.stem)
def test_every_experiment_composes_and_plans(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A verdict is asked for of a model that is named on the command line.
    model = OWN_MODEL if file.stem == "masking" else []
    composed = compose(file, [*model, f"results={tmp_path}/r"])
    assert composed.trials
    for e in [composed.experiment, *(t.experiment for t in composed.trials)]:
        assert e.about.title
        assert e.about.source, "the table or figure it stands for"
        stored = json.loads(json.dumps(plain(e)))
        assert restore(stored, "a run's record") == e, "a trial can be tried again from it"
    if composed.experiment.data.declared_test_images:  # its data is not at hand
        monkeypatch.chdir(tmp_path)
        printed = io.StringIO()
        show_estimate(Console(file=printed, width=200), composed, NoDataError("not here"))
        images = composed.experiment.evaluate.images or 50_000
        assert f"attacked on {images:,} test images" in printed.getvalue()
        return
    monkeypatch.chdir(ROOT)
    plan = make_plan(composed)
    assert len({t.name for t in plan.trials}) == len(plan.trials)


def outside(cwd: Path, site: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """`s3ta` of an installed wheel: this environment's dependencies, but not its checkout."""
    script = (
        "import sys; from pathlib import Path; import s3ta, s3ta_platform\n"
        f"assert Path(s3ta.__file__).is_relative_to({str(site)!r}), s3ta.__file__\n"
        "from s3ta_platform.cli import main; main()"
    )
    return subprocess.run(
        # -S leaves out the .pth file of the editable install; PYTHONPATH names all there is.
        [sys.executable, "-S", "-c", script, *map(str, arguments)],
        cwd=cwd,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("S3TA_")},
            "PYTHONPATH": os.pathsep.join([str(site), sysconfig.get_path("purelib")]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


TINY = """
defaults:
  - schema
  - data: fashion_mnist_sample
  - model: small_resnet
  - train: small_adversarial
  - attack@evaluate.attacks.pgd: small_pgd
  - cluster: inline
  - tracking: none
  - _self_
name: tiny
model: {vision: {depths: [1], widths: [8], strides: [2], stem_channels: 8}}
data: {train_images: 16}
train: {epochs: 1, batch: 8, microbatch: 8, attack: {steps: 1}}
evaluate: {images: 8, tile: 8, gallery_images: 2, attacks: {pgd: {readings: [1]}}}
"""


def test_the_built_wheel_alone_runs_an_experiment(tmp_path: Path) -> None:
    source, site, work = tmp_path / "source", tmp_path / "site", tmp_path / "work"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in tracked:  # a copy, so that no build folder appears in the checkout
        if name.startswith(
            ("s3ta/", "platform/", "experiments/", "pyproject", "README", "LICENSE")
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_file():
                (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = [
        "--no-deps",
        "--no-compile",
        "--no-build-isolation",
        "--target",
        str(site),
        str(source),
    ]
    subprocess.run([*pip, "install", *options], check=True, cwd=tmp_path, timeout=120)
    work.mkdir()
    (work / "tiny.yaml").write_text(TINY)

    done = outside(work, site, "run", "tiny.yaml", "results=out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (work / "out" / "sweeps" / "tiny" / "report.html").is_file()
    assert len(list((work / "out" / "evaluations").glob("*.parquet"))) == 1

    package = site / "s3ta_platform"
    carried = {p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file()}
    for file in sorted((ROOT / "experiments").rglob("*.yaml")):
        assert f"experiments/{file.relative_to(ROOT / 'experiments').as_posix()}" in carried
    assert "samples/fashion_mnist/LICENSE" in carried
    assert "py.typed" in carried
    (info,) = importlib.metadata.distributions(path=[str(site)])
    assert info.metadata["License-Expression"] == "Apache-2.0"
