"""What is wrong ends in one message and exit code 2, before any work, and leaves nothing behind."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

import s3ta_platform

Command = Callable[..., Any]
SAMPLES = Path(s3ta_platform.__file__).parent / "samples" / "fashion_mnist"

OVERRIDES = [
    # a misspelt key
    ("train.epoch=3", ["train.epoch is no setting", "Did you mean train.epochs?"]),
    ("trian.epochs=3", ["trian", "Did you mean train"]),
    ("epochs=3", ["epochs is no setting", "train.epochs"]),
    ("evaluate.attacks.pgd.reading=[2]", ["Did you mean evaluate.attacks.pgd.readings?"]),
    ("evaluate.attacks.foo.readings=[2]", ["evaluate.attacks.foo", "has: pgd", "defaults list"]),
    ("hydra.searchpath=[]", ["hydra is no setting"]),
    # a key that is not there
    ("+new=1", ["'+new=1'", "key=value", "Remove the leading '+'"]),
    ("~name", ["'~name'", "key=value"]),
    ("name", ["'name'", "add '='"]),
    # a wrong type
    ("train.epochs=abc", ["train.epochs is 'abc'", "a whole number"]),
    ("train.epochs=1.5", ["train.epochs is 1.5", "a whole number"]),
    ("train.epochs=", ["train.epochs is ''", "a whole number"]),
    ("train.epochs=true", ["train.epochs is", "a whole number"]),
    ("train.epochs=null", ["train.epochs is null", "a whole number"]),
    ("train.learning_rate=fast", ["train.learning_rate is 'fast'", "a number"]),
    ("model.vision.stem_pool=maybe", ["model.vision.stem_pool is maybe", "true or false"]),
    ("train.attack=5", ["train.attack is 5", "a section with any of goal"]),
    ("train.attack.goal=foo", ["'foo'", "one of untargeted, random_target"]),
    ("evaluate.attacks.pgd.readings=2", ["is 2", "a [list] of whole numbers"]),
    ("evaluate.attacks.pgd.readings=[a]", ["readings[0] is 'a'", "a whole number"]),
    ("train.epochs=${foo}", ["train.epochs refers to ${foo}", "Write the full key"]),
    ("train.epochs=1,2", ["has several values", "sweep.grid"]),
    ("train.batch=[1", ["'train.batch=[1' cannot be read", "Close every bracket"]),
    # a choice that does not exist
    ("model=small_rsnet", ["no model/small_rsnet.yaml", "Did you mean small_resnet"]),
    ("data=fashion", ["there is no data/fashion.yaml", "fashion_mnist"]),
    ("attack=small_pgd", ["no entry attack", "attack@evaluate.attacks.pgd=NAME"]),
    ("train=3", ["train chooses a file by its name"]),
    # out of range
    ("train.epochs=0", ["train.epochs is 0", "at least 1", "Change"]),
    ("train.batch=12", ["train.batch is 12", "a multiple of train.microbatch (8)"]),
    ("train.batch=64", ["train.batch is 64", "32 training images", "Lower train.batch"]),
    ("train.learning_rate=-1", ["train.learning_rate is -1.0", "positive"]),
    ("train.learning_rate=inf", ["train.learning_rate is inf", "finite"]),
    ("train.weight_decay=nan", ["train.weight_decay is nan", "finite"]),
    ("train.decay_epochs=[3,1]", ["train.decay_epochs is [3.0, 1.0]", "ascending"]),
    ("train.attack.epsilon_255=300", ["300", "at most 255"]),
    ("evaluate.attacks.pgd.readings=[18,2]", ["[18, 2]", "ascending"]),
    ("evaluate.attacks.pgd.readings=[0]", ["[0]", "at least 1"]),
    ("evaluate.images=5000", ["evaluate.images is 5000", "2000 images"]),
    ("data.train_images=20000", ["data.train_images is 20000", "10000 images"]),
    ("model.attention.key_channels=8", ["key_channels is 8", "less than", "8 channels"]),
    ("model.unroll=2", ["'model.unroll=2'", "varied by this sweep"]),
    ("name=..", ["name is '..'", "letter"]),
    ("cluster.device=tpu", ["cluster.device is 'tpu'", "cpu, cuda, auto"]),
    ("tracking.store=foo", ["'foo' is no tracking address", "sqlite:///"]),
    # places
    ("data.test=/nowhere/x.parquet", ["'/nowhere/x.parquet'", "No Parquet file", "Name a file"]),
    ("data.test=sample:mnist", ["'sample:mnist'", "sample:fashion_mnist/test.parquet"]),
]


@pytest.fixture
def refused(s3ta: Command, tiny: Path, tmp_path: Path) -> Callable[..., str]:
    """Run it; gives the message of what must be refused."""

    def run(*overrides: str, file: Path = tiny) -> str:
        root = tmp_path / "results"
        # What is tried comes last: it may be another results root.
        done = s3ta("run", file, f"results={root}", *overrides)
        assert done.code == 2, done.output
        assert "Traceback" not in done.output
        assert done.output.startswith("s3ta: ")
        assert done.output.count("\n") == 1, "one message"
        assert not root.exists(), "something was left behind"
        return str(done.output)

    return run


@pytest.mark.parametrize(("override", "words"), OVERRIDES)
def test_a_bad_override_is_named_with_its_constraint(
    refused: Callable[..., str], override: str, words: list[str]
) -> None:
    message = refused(override)
    assert [w for w in words if w not in message] == [], message


IN_FILES = [
    ("train: {epochs: 2,", "train: {epoch: 2,", ["train.epoch is no setting", "train.epochs?"]),
    ("train: {epochs: 2,", "train: {epochs: x,", ["train.epochs is 'x'", "a whole number"]),
    ("train: {epochs: 2,", "train: {epochs: 0,", ["train.epochs is 0", "at least 1"]),
    ("data: {train_images: 32}", "data: 3", ["data is 3", "section"]),
    ("data: {train_images: 32}", "dta: {}", ["dta is no setting", "Did you mean data?"]),
    ("data: {train_images: 32}", "hydra: {}", ["hydra is no setting"]),
    ("- data: fashion_mnist_sample", "- data: nope", ["no data/nope.yaml", "fashion_mnist"]),
    ("- data: fashion_mnist_sample", "- dat: nope", ["no group 'dat'", "Did you mean data?"]),
    ("  - schema\n", "", ["not typed", "'- schema'", "Add that line"]),
    ("name: tiny", "name: tiny\nname: b", ["duplicate key name", ".yaml, line 11"]),
    ("name: tiny", "name: [", ["no valid YAML", ".yaml, line 1"]),
    ("name: tiny", "\tname: b", ["no valid YAML", ".yaml, line 10"]),
    ("name: tiny", "", ["name has no value", "name=VALUE"]),
    ("attack@evaluate.attacks.pgd", "attack@evaluate.atacks.pgd", ["evaluate.atacks is no"]),
    ("{model.unroll: 2}", "{model.unrol: 2}", ["points, entry 2", "Did you mean model.unroll?"]),
    ("{model.unroll: 2}", "{model.unroll: 0}", ["points, entry 2", "model.unroll is 0"]),
    ("{model.unroll: 2}", "{model: foo}", ["points, entry 2", "no model/foo.yaml", "small_s3ta"]),
    ("{model.unroll: 2}", "{+new: 2}", ["points, entry 2", "'+new=2'", "key=value"]),
    ("{model.unroll: 2}", "3", ["sweep.points", "{train.epochs: 2}"]),
]


@pytest.mark.parametrize(("good", "bad", "words"), IN_FILES)
def test_a_bad_file_is_named_with_the_place_of_the_mistake(
    refused: Callable[..., str], tiny: Path, tmp_path: Path, good: str, bad: str, words: list[str]
) -> None:
    file = tmp_path / "mine.yaml"
    text = tiny.read_text()
    assert good in text
    file.write_text(text.replace(good, bad, 1))
    message = refused(file=file)
    assert [w for w in ["mine.yaml", *words] if w not in message] == [], message


def test_a_grid_names_the_value_that_is_wrong(
    refused: Callable[..., str], tiny: Path, tmp_path: Path
) -> None:
    file, text = tmp_path / "mine.yaml", tiny.read_text()
    start, end = text.index("  points:"), text.index("data: {")
    file.write_text(f"{text[:start]}  grid: {{train.epochs: [1, many]}}\n{text[end:]}")
    message = refused(file=file)
    assert "sweep.grid at train.epochs=many" in message
    assert "a whole number" in message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("no.yaml", None, ["There is no experiment file", "no.yaml"]),
        ("empty.yaml", b"", ["empty.yaml is empty", "'- schema'"]),
        ("list.yaml", b"- a\n", ["list.yaml is no mapping"]),
        ("mine.yml", b"a: b\n", ["mine.yml", "end in .yaml", "Rename it"]),
        ("schema.yaml", b"a: b\n", ["schema.yaml", "Rename it"]),
        ("binary.yaml", b"\x00\xff", ["binary.yaml cannot be read as UTF-8"]),
    ],
)
def test_a_file_that_is_no_experiment_is_refused(
    refused: Callable[..., str],
    tmp_path: Path,
    name: str,
    content: bytes | None,
    words: list[str],
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    message = refused(file=file)
    assert [w for w in words if w not in message] == [], message


def test_a_folder_is_no_experiment(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "is a folder" in refused(file=tmp_path)


def test_results_must_be_writable_before_anything_starts(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    below = refused(f"results={tmp_path}/file/results")
    assert f"{tmp_path}/file" in below
    assert "choose another folder" in below
    assert "choose another folder" in refused(f"results={tmp_path}/file")
    assert (tmp_path / "file").read_text() == "kept"
    assert "Can't write to /proc/results" in refused("results=/proc/results")
    assert "names no bucket" in refused("results='s3://'")
    assert "neither a local path nor s3://" in refused("results='gs://bucket'")


def test_a_truncated_or_foreign_parquet_file_is_refused(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    whole = (SAMPLES / "train.parquet").read_bytes()
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(whole[: len(whole) // 2])
    for part in ("train", "test"):
        message = refused(f"data.{part}={cut}")
        assert f"{cut} is truncated" in message
        assert "again" in message
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"x": [1, 2]}), other)
    for part in ("train", "test"):
        message = refused(f"data.{part}={other}", "data.classes=10")
        assert f"{other} has no column image" in message or "classes" in message


@pytest.fixture(scope="module")
def _root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained") / "results"


@pytest.fixture
def trained(_root: Path, tiny: Path, s3ta: Command, tmp_path: Path) -> Path:
    """A copy of the results of a finished run."""
    if not _root.exists():
        assert s3ta("run", tiny, "tracking.store=none", f"results={_root}").code == 0
    root = tmp_path / "trained"
    for part in ("trials", "evaluations", "galleries"):
        shutil.copytree(_root / part, root / part)
    return root


def flip_a_byte(checkpoint: Path, _: Path) -> None:
    file = checkpoint / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def other_architecture(checkpoint: Path, _: Path) -> None:
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    first = sorted(tensors)[0]
    save_file({**tensors, first: tensors[first].repeat(2, axis=0)}, file)


def other_trial(checkpoint: Path, another: Path) -> None:
    shutil.rmtree(checkpoint)
    shutil.copytree(another, checkpoint)


def no_tensors(checkpoint: Path, _: Path) -> None:
    (checkpoint / "model.safetensors").unlink()


def no_manifest(checkpoint: Path, _: Path) -> None:
    (checkpoint / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_byte, ["model.safetensors was changed", "SHA-256"]),
        (other_architecture, ["model.safetensors was changed", "SHA-256"]),
        (other_trial, ["is a checkpoint of trial", "must be of"]),
        (no_tensors, ["is not whole", "model.safetensors"]),
        (no_manifest, ["no manifest"]),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_refused_before_work_starts(
    trained: Path, tiny: Path, s3ta: Command, damage: Callable[..., None], words: list[str]
) -> None:
    (last, another) = (
        max((trial / "checkpoints").iterdir()) for trial in (trained / "trials").iterdir()
    )
    damage(last, another)
    before = sorted(trained.rglob("*"))
    new_shards = "evaluate.attacks.pgd.readings=[2,3,16,18]"
    done = s3ta("run", tiny, new_shards, "tracking.store=none", f"results={trained}")
    assert done.code == 2, done.output
    assert done.output.count("\n") == 1
    remedy = f"Delete trials/{last.parents[1].name}/checkpoints/{last.name}"
    assert [w for w in [*words, remedy, str(trained)] if w not in done.output] == [], done.output
    assert sorted(trained.rglob("*")) == before, "something was written"


def test_the_remedy_for_a_damaged_checkpoint_helps(
    trained: Path, tiny: Path, s3ta: Command
) -> None:
    trial = next((trained / "trials").iterdir())
    last = max((trial / "checkpoints").iterdir())
    flip_a_byte(last, last)
    shutil.rmtree(last)
    (trial / "trained.json").unlink()
    done = s3ta("run", tiny, "tracking.store=none", f"results={trained}")
    assert done.code == 0, done.output
    assert len(list((trained / "evaluations").iterdir())) == 6, "the same model came out"


def test_damaged_rows_are_named_with_the_remedy(trained: Path, tiny: Path, s3ta: Command) -> None:
    file = sorted((trained / "evaluations").iterdir())[0]
    file.write_bytes(file.read_bytes()[:-20])
    done = s3ta("run", tiny, "tracking.store=none", f"results={trained}")
    assert done.code == 2, done.output
    assert "Traceback" not in done.output
    assert file.name in done.output
    assert "Delete it and run again" in done.output


def test_a_taken_port_is_refused_before_mlflow_starts(
    s3ta: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("MLflow was started"))
    (tmp_path / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = s3ta("ui", "--results", tmp_path, "--port", port)
    assert done.code == 2
    assert f"Port {port} of 127.0.0.1" in done.output
    assert "--port" in done.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "{tiny}", "train.epoch=1", "results={tmp}/r"],
        ["plan", "{tmp}/nothing.yaml"],
        ["data", "import", "imagenet"],
        ["ui", "--results", "{tmp}/r"],
    ],
)
def test_as_a_process_it_ends_with_code_2_and_one_line(
    tiny: Path, tmp_path: Path, arguments: list[str]
) -> None:
    words = [a.format(tiny=tiny, tmp=tmp_path) for a in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "s3ta_platform", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "80"},
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("s3ta: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
