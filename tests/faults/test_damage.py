"""Files that are damaged are refused by name, or made anew; what was half-written is ignored."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from signal import SIGKILL

import pyarrow as pa
import pytest
from conftest import Command
from drill import Run, ended, expect_same, final_rows, planned, snapshots, stored

import s3ta_platform
from s3ta_platform.evaluate import evaluate
from s3ta_platform.executors import run_inline

pytestmark = pytest.mark.faults

INLINE = "cluster.executor=inline"
SMALL = [INLINE, "evaluate.images=24"]
"""3 shards."""
TEST = Path(s3ta_platform.__file__).parent / "samples" / "fashion_mnist" / "test.parquet"


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def flip_a_bit(path: Path, where: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 16
    path.write_bytes(data)


Damage = Callable[[Path], None]
DAMAGES = [truncate, flip_a_bit]


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (truncate, 2),
        (partial(flip_a_bit, where=0.3), 2),  # among the images that a plan looks at
        (partial(flip_a_bit, where=0.8), 1),  # among others: found when they are read
    ],
)
def test_a_damaged_test_set_is_refused_by_name_and_no_result_is_stored(
    damage: Damage, code: int, file: Path, tmp_path: Path, s3ta: Command
) -> None:
    images = tmp_path / "images.parquet"
    shutil.copyfile(TEST, images)
    damage(images)
    refused = s3ta("run", file, *SMALL, f"data.test={images}", f"results={tmp_path}/r")
    assert refused.code == code
    assert f"{images.name}" in refused.output
    assert "damaged" in refused.output
    assert stored(tmp_path / "r") == {}
    assert (tmp_path / "r").exists() == (code == 1)


@pytest.fixture(scope="module")
def half_way(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a run that was killed in the middle of its first shard."""
    root = tmp_path_factory.mktemp("half-way") / "r"
    with ended(Run(file, root, *SMALL, "evaluate.gallery_images=0", SHAKY_PACE_S=0.05)) as run:
        run.until(lambda: snapshots(root))
        run.kill()
    return root


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_snapshot_is_told_and_its_attack_begun_anew(
    damage: Damage, file: Path, half_way: Path, reference: pa.Table, tmp_path: Path
) -> None:
    root = tmp_path / "r"
    shutil.copytree(half_way, root)
    (saved,) = root.glob("snapshots/*/*")
    damage(saved)
    with ended(Run(file, root, *SMALL)) as run:
        run.finish()
    said = "".join(log.read_text() for log in root.glob("logs/*"))
    assert f"{saved.name} is damaged or of another version: deleted" in said
    assert not list(root.glob("snapshots/*"))
    expect_same(final_rows(file, root, *SMALL), reference)


@pytest.fixture(scope="module")
def finished(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Complete results."""
    root = tmp_path_factory.mktemp("finished") / "r"
    evaluate(planned(file, root, *SMALL)[1], run_inline)
    return root


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_refused_by_name_and_once_deleted_made_anew(
    damage: Damage, file: Path, finished: Path, reference: pa.Table, tmp_path: Path, s3ta: Command
) -> None:
    root = tmp_path / "r"
    shutil.copytree(finished, root)
    shard = sorted(root.glob("evaluations/*.parquet"))[1]
    whole = shard.read_bytes()
    damage(shard)
    for command in ("report", "run"):
        refused = s3ta(command, file, *SMALL, f"results={root}")
        assert refused.code == 2
        assert shard.name in refused.output
        assert "Delete it and run again: it is computed anew." in refused.output
    shard.unlink()
    assert s3ta("run", file, *SMALL, f"results={root}").code == 0
    assert shard.read_bytes() == whole
    expect_same(final_rows(file, root, *SMALL), reference)


DIES_BEFORE_THE_NAME = """
import os, signal, sys
from s3ta_platform import cli
link = os.link
def die(temporary, path, **rest):
    if "evaluations/" in str(path) and str(path).endswith(".parquet"):
        os.kill(os.getpid(), signal.SIGKILL)
    link(temporary, path, **rest)
os.link = die
cli.main()
"""


def test_what_a_crash_left_between_write_and_name_is_ignored(
    file: Path, reference: pa.Table, tmp_path: Path, s3ta: Command
) -> None:
    root = tmp_path / "r"
    arguments = ["run", str(file), *SMALL, f"results={root}"]
    crash = [sys.executable, "-c", DIES_BEFORE_THE_NAME, *arguments]
    assert subprocess.run(crash, check=False, capture_output=True).returncode == -SIGKILL
    (left,) = root.glob("evaluations/*")
    assert left.name.startswith(".tmp-")
    assert left.stat().st_size > 0
    assert s3ta(*arguments).code == 0
    assert len(stored(root)) == 3
    expect_same(final_rows(file, root, *SMALL), reference)
    assert s3ta("report", *arguments[1:]).code == 0
