"""What the fault tests share: an experiment, its undisturbed rows, and a place for Ray's files."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray on loopback only; read by import ray

import pyarrow as pa
import pytest
import torch
from drill import EXPERIMENT, TWO_ATTACKS, final_rows, planned
from lessons import EXPERIMENT as LESSONS
from lessons import training_job

from s3ta_platform import cli
from s3ta_platform.evaluate import evaluate
from s3ta_platform.executors import run_inline
from s3ta_platform.train import train


@pytest.fixture(scope="session", autouse=True)
def _places() -> Iterator[None]:
    """All processes find the shaky model, and put their temporary files where they are removed."""
    with pytest.MonkeyPatch.context() as patch:
        # Paths of sockets have at most 107 characters: pytest's own folders are too long for Ray.
        folder = tempfile.mkdtemp(prefix="faults-", dir="/tmp")
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("TMPDIR", folder)
        patch.setenv("OMP_NUM_THREADS", "1")
        here = str(Path(__file__).parent)
        patch.setenv("PYTHONPATH", here, prepend=os.pathsep)
        yield
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images under one attack: 6 shards of 100 steps, 8 images each."""
    path = tmp_path_factory.mktemp("experiment") / "drill.yaml"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture(scope="session")
def both(file: Path) -> Path:
    """The same with a second attack, in which images take the slots of those that are solved."""
    path = file.with_name("both.yaml")
    path.write_text(TWO_ATTACKS)
    return path


@pytest.fixture(scope="session")
def reference(both: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The rows of all images under both attacks, computed in peace."""
    root, threads = tmp_path_factory.mktemp("undisturbed"), torch.get_num_threads()
    evaluate(planned(both, root)[1], run_inline)
    torch.set_num_threads(threads)
    return final_rows(both, root)


@pytest.fixture(scope="session")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment of the trainings that are disturbed."""
    path = tmp_path_factory.mktemp("experiment") / "lessons.yaml"
    path.write_text(LESSONS)
    return path


@pytest.fixture(scope="session")
def undisturbed(lessons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of that training by one worker, in this process, in peace."""
    root, threads = tmp_path_factory.mktemp("undisturbed"), torch.get_num_threads()
    train(training_job(lessons, root))
    torch.set_num_threads(threads)
    return root


class Done(NamedTuple):
    """How a command ended."""

    code: int
    output: str
    """What it printed on both streams."""


Command = Callable[..., Done]


@pytest.fixture
def s3ta(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`s3ta("run", file, "cluster.executor=inline")`, in this process: a start costs nothing."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["s3ta", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        printed = capfd.readouterr()
        code = exit_.value.code
        return Done(code if isinstance(code, int) else 0, printed.out + printed.err)

    return call
