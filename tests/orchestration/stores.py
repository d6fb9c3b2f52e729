"""Storages to test with: a local folder, an S3 server (moto, on loopback), a disk that is small."""

import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from s3ta_platform.storage import S3Storage, Storage, open_storage

SmallDisk = Callable[[str], Path]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket on a moto server whose puts are atomic, as S3's are (moto's own are not quite)."""
    import boto3
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def one_at_a_time(environ: Any, start_response: Any) -> Any:
        with lock:
            return application(environ, start_response)

    server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    name = f"runs-{uuid.uuid4().hex}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.session.Session().client("s3").create_bucket(Bucket=name)
        yield name
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def client(bucket: str) -> Any:
    return S3Storage(bucket, "")._client


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "results"), durable=False)
    storage = open_storage(f"s3://{request.getfixturevalue('bucket')}/{tmp_path.name}/results")
    vars(storage)["_client"] = request.getfixturevalue("client")  # making one takes half a second
    return storage


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """`small_disk("1m")`: the folder of a real disk of that size; skips where that is forbidden."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("may not mount a small disk here")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", str(disk)], check=True)
