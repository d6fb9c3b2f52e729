"""Storage: the same claims on a local folder and on an S3 server (moto, on loopback)."""

import errno
import itertools
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from s3ta.errors import UserError
from s3ta_platform.storage import NotStored, S3Storage, Storage, open_storage
from s3ta_platform.trials import read_trained

WRITERS = 8


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
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.session.Session().client("s3").create_bucket(Bucket="runs")
        yield "runs"
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


def test_the_first_value_of_a_name_stays(storage: Storage) -> None:
    assert storage.put_new("a/b.json", b"first")
    assert not storage.put_new("a/b.json", b"second")
    assert storage.get("a/b.json") == b"first"
    assert storage.exists("a/b.json")


def test_an_absent_name_is_not_stored_and_reads_as_an_error_that_names_it(storage: Storage) -> None:
    assert not storage.exists("a/b")
    with pytest.raises(NotStored, match=r"^a/b is not stored in ") as caught:
        storage.get("a/b")
    assert isinstance(caught.value, KeyError)
    storage.put_new("a/b", b"")
    assert not storage.exists("a")
    assert storage.get("a/b") == b""


def test_a_list_is_sorted_and_a_prefix_need_not_end_at_a_slash(storage: Storage) -> None:
    for name in ["b", "a/2", "a/10", "a-b", "a/deep/er/1", "ab/1"]:
        storage.put_new(name, b"x")
    assert storage.list() == ["a-b", "a/10", "a/2", "a/deep/er/1", "ab/1", "b"]
    assert storage.list("a/") == ["a/10", "a/2", "a/deep/er/1"]
    assert storage.list("a/1") == ["a/10"]
    assert storage.list("a/deep") == ["a/deep/er/1"]
    assert storage.list("nothing/here/") == []
    assert storage.list("b/") == []


def test_a_deleted_name_can_be_written_again(storage: Storage) -> None:
    storage.put_new("a/b/c", b"old")
    storage.put_new("a/d", b"stays")
    storage.delete("a/b/c")
    storage.delete("a/b/c")
    assert storage.list() == ["a/d"]
    assert storage.put_new("a/b/c", b"new")
    assert storage.get("a/b/c") == b"new"


def test_a_name_that_could_leave_the_root_is_refused(storage: Storage) -> None:
    names = ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", ".hidden", "a\\b", "a\nb"]
    calls: list[Callable[[str], object]] = [
        lambda name: storage.put_new(name, b"x"),
        storage.get,
        storage.exists,
        storage.delete,
        storage.uri,
    ]
    for name, call in itertools.product(names, calls):
        with pytest.raises(UserError, match="is no name for stored data"):
            call(name)


def test_a_list_never_leaves_the_root(storage: Storage) -> None:
    with pytest.raises(UserError, match="is no name"):
        storage.list("../")


def test_of_racing_writers_exactly_one_wins_and_readers_see_its_whole_value(
    storage: Storage,
) -> None:
    values = [bytes([writer]) * 300_000 for writer in range(WRITERS)]
    stop, torn = threading.Event(), []

    def read_all(round_: int) -> None:
        while not stop.is_set():
            for name in storage.list(f"race/{round_}"):
                if storage.get(name) not in values:
                    torn.append(name)

    def write(round_: int, writer: int, barrier: threading.Barrier) -> bool:
        barrier.wait()
        return storage.put_new(f"race/{round_}/value", values[writer])

    with ThreadPoolExecutor(WRITERS + 1) as pool:
        for round_ in range(10):
            stop.clear()
            reader, barrier = pool.submit(read_all, round_), threading.Barrier(WRITERS)
            writers = [pool.submit(write, round_, writer, barrier) for writer in range(WRITERS)]
            created = [writer.result() for writer in writers]
            stop.set()
            reader.result()
            assert created.count(True) == 1
            assert storage.get(f"race/{round_}/value") == values[created.index(True)]
    assert torn == []


def test_a_copy_in_another_process_sees_the_same_values(storage: Storage) -> None:
    storage.exists("a")  # an open client must not get in the way
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.put_new("a", b"from the copy")
    assert storage.get("a") == b"from the copy"
    assert (copy, copy.root) == (storage, storage.root)
    assert open_storage(storage.root).get("a") == b"from the copy"


def test_the_check_for_writing_leaves_nothing(storage: Storage) -> None:
    storage.check_writable()
    assert storage.list() == []
    storage.put_new("a", b"x")
    storage.check_writable()
    assert storage.list() == ["a"]


def test_the_check_leaves_no_folder_that_it_made(tmp_path: Path) -> None:
    open_storage(str(tmp_path / "new" / "deep"), durable=False).check_writable()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    open_storage(str(tmp_path / "empty"), durable=False).check_writable()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


STOPPED_BEFORE_THE_NAME = """
import os, sys, time
from s3ta_platform.storage import open_storage
def stop(*args, **kwargs):
    print("stopped", flush=True)
    time.sleep(60)
os.link = stop
open_storage(sys.argv[1]).put_new("a/b", b"x" * 1000)
"""


def test_a_writer_killed_before_the_name_exists_leaves_nothing_listed(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path), durable=False)
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED_BEFORE_THE_NAME, storage.root],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"stopped\n"
        writer.send_signal(signal.SIGKILL)
    assert len(list((tmp_path / "a").iterdir())) == 1
    assert storage.list() == storage.list("a/") == []
    assert not storage.exists("a/b")

    assert storage.clear_temporaries("a/") == 0  # it could be a writer at work
    assert storage.put_new("a/b", b"y")
    assert storage.clear_temporaries("a/", older_than_s=-1) == 1
    assert storage.get("a/b") == b"y"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_an_absent_folder_below_a_file_is_reported_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for root in [tmp_path / "file", tmp_path / "file" / "results" / "deep"]:
        storage = open_storage(str(root))
        with pytest.raises(UserError, match=r"file.* move it away or choose another folder"):
            storage.check_writable()
        with pytest.raises(UserError, match="move it away"):
            storage.put_new("a/b", b"x")
    assert (tmp_path / "file").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs Linux's /sys")
def test_a_file_system_that_takes_no_files_is_reported() -> None:
    with pytest.raises(UserError, match=r"Can't write to /sys/kernel/results: .*another folder"):
        open_storage("/sys/kernel/results").check_writable()


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free space"), (errno.EROFS, "read-only"), (errno.EACCES, "make it writable")],
)
@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_write_that_fails_leaves_nothing_and_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, remedy: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    storage = open_storage(str(tmp_path / "results"))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(UserError, match=remedy):
            storage.check_writable()
        assert not (tmp_path / "results").exists()
        with pytest.raises(UserError, match=remedy):
            storage.put_new("a/b", b"x" * 100)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert storage.put_new("a/b", b"x")


def test_a_full_disk_is_found_by_the_check(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a small disk here")
    try:
        with pytest.raises(UserError, match="No space left on device; free space there"):
            open_storage(str(disk / "results")).check_writable()
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_bucket_that_is_not_there_is_reported(bucket: str) -> None:
    with pytest.raises(UserError, match=r"s3://no-such-bucket/x: .*NoSuchBucket.* Check the buck"):
        open_storage("s3://no-such-bucket/x").check_writable()


def test_a_store_that_overwrites_is_refused(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(f"s3://{bucket}/overwritten")
    client = storage._client  # type: ignore[attr-defined]
    put = client.put_object
    monkeypatch.setattr(client, "put_object", lambda IfNoneMatch, **rest: put(**rest))
    with pytest.raises(UserError, match="ignores `If-None-Match"):
        storage.check_writable()
    assert storage.list() == []


def test_a_put_whose_reply_was_lost_still_knows_that_it_won(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(f"s3://{bucket}/lost-reply")
    client = storage._client  # type: ignore[attr-defined]
    put = client.put_object

    def put_twice(**request: Any) -> Any:
        put(**request)
        return put(**request)

    monkeypatch.setattr(client, "put_object", put_twice)
    assert storage.put_new("a", b"x")
    monkeypatch.undo()
    assert not storage.put_new("a", b"y")


@pytest.mark.parametrize("root", ["", "  ", "s3://", "s3:///a", "gs://bucket/a", "file:///tmp/a"])
def test_a_root_of_an_unknown_kind_is_refused(root: str) -> None:
    with pytest.raises(UserError, match=r"s3://BUCKET/PREFIX"):
        open_storage(root)


def test_a_local_root_is_absolute_so_that_other_processes_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage("results", durable=False)
    monkeypatch.chdir("/")
    storage.put_new("a b/c", b"x")
    assert (tmp_path / "results" / "a b" / "c").read_bytes() == b"x"
    assert storage.uri("a b/c") == f"file://{tmp_path}/results/a%20b/c"
    assert open_storage("~/results").root == str(Path.home() / "results")
    assert open_storage("s3://bucket/a/b/").uri("c") == "s3://bucket/a/b/c"
    assert open_storage("s3://bucket").uri("c") == "s3://bucket/c"


def test_durable_puts_reach_the_disk_value_before_name_and_name_before_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, link = os.fsync, os.link

    def record_sync(descriptor: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "value")
        fsync(descriptor)

    def record_link(*names: Path) -> None:
        order.append("name")
        link(*names)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "link", record_link)
    open_storage(str(tmp_path)).put_new("a/b", b"x")
    assert order == ["value", "name", "folder"]
    open_storage(str(tmp_path), durable=False).put_new("a/c", b"x")
    assert order == ["value", "name", "folder", "name"]


def test_a_store_that_is_away_is_said_to_be_away_and_worth_another_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    away = open_storage("s3://bucket/runs")
    with pytest.raises(UserError, match="Can't use s3://bucket/runs") as error:
        read_trained(away, "0123456789abcdef")
    assert isinstance(error.value, OSError)
