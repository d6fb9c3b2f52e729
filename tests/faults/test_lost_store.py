"""A disk that is full and a store that is away are waited for: the run goes on by itself."""

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from drill import STEPS, Run, ended, expect_same, final_rows, steps_by_process, stored

from s3ta_platform.storage import open_storage

pytestmark = pytest.mark.faults

SMALL = ["cluster.executor=inline", "evaluate.images=24", "evaluate.gallery_images=0"]
"""3 shards."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB; skips where mounting is forbidden."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a small disk here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """A file that leaves no room on a disk."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    assert shutil.disk_usage(disk).free == 0
    return filler


def steady(count: Callable[[], int], seconds: float) -> Callable[[], bool]:
    """Whether a count has not changed for so long."""
    last, since = count(), time.monotonic()

    def is_steady() -> bool:
        nonlocal last, since
        if (now := count()) != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since >= seconds

    return is_steady


def test_a_full_disk_is_waited_for(
    file: Path, reference: pa.Table, disk: Path, tmp_path: Path
) -> None:
    root, steps = disk / "r", tmp_path / "steps"
    with ended(Run(file, root, *SMALL, SHAKY_PACE_S=0.02, SHAKY_LOG=steps)) as run:
        run.until(lambda: stored(root))
        filler, kept = fill(disk), stored(root)
        run.until(steady(lambda: steps_by_process(steps).total(), seconds=1.5))
        assert steps_by_process(steps).total() >= (len(kept) + 1) * STEPS, "a shard is finished"
        assert stored(root) == kept, "it can't be stored"
        filler.unlink()
        run.finish()
    (log,) = root.glob("logs/*")
    assert f"{root} is back after" in log.read_text()
    expect_same(final_rows(file, root, *SMALL), reference)


class Store:
    """An S3 server on loopback that can be silent, or gone, and keeps what it has."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self.moto = DomainDispatcherApplication(create_backend_app)
        self.speaks = threading.Lock()
        self.port = 0
        self.come()

    def answer(self, environ: Any, start_response: Any) -> Any:
        with self.speaks:
            return self.moto(environ, start_response)

    def come(self) -> None:
        """Also: come back."""
        from werkzeug.serving import make_server

        self.server = make_server("127.0.0.1", self.port, self.answer, threaded=True)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def go(self) -> None:
        """From now on connections are refused."""
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """With a bucket called runs."""
    import boto3

    store = Store()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.session.Session().client("s3").create_bucket(Bucket="runs")
    yield store
    store.go()


def test_a_store_that_is_silent_or_away_is_waited_for(
    file: Path, reference: pa.Table, store: Store, tmp_path: Path
) -> None:
    mine, root = Path(shutil.copy(file, tmp_path)), "s3://runs/r"
    storage = open_storage(root)
    with ended(Run(mine, root, *SMALL, SHAKY_PACE_S=0.02)) as run:
        run.until(lambda: storage.list("snapshots/"))
        with store.speaks:
            time.sleep(3)  # longer than any pause in the work: the run waits for an answer
        run.until(lambda: storage.list("evaluations/"))
        store.go()
        (log,) = tmp_path.glob("s3ta-local/logs/*")
        run.until(lambda: "waiting for the store: " in log.read_text())
        store.come()
        run.finish()
    assert f"{root} is back after" in log.read_text()
    assert len(storage.list("evaluations/")) == 3
    expect_same(final_rows(mine, root, *SMALL), reference)
