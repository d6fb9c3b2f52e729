"""Storage when something goes wrong: killed writers, full disks, stores that are away."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3ta.errors import UserError
from s3ta_platform.storage import Storage, StoreAwayError, open_storage
from s3ta_platform.trials import read_trained

pytest_plugins = ["stores"]

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
    assert storage.temporaries() == storage.sizes() == {}
    ((left, size),) = storage.temporaries(older_than_s=-1).items()
    assert (left.startswith("a/.tmp-"), size) == (True, 1000)
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


def test_a_full_disk_is_found_by_the_check(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("256k")
    with pytest.raises(UserError, match="No space left on device; free space there"):
        open_storage(str(disk / "results")).check_writable()
    assert list(disk.iterdir()) == []


def test_what_a_full_disk_refuses_is_worth_another_try_and_leaves_nothing_half_written(
    small_disk: Callable[[str], Path],
) -> None:
    storage = open_storage(str(small_disk("256k")))
    with pytest.raises(StoreAwayError, match=r"Can't write to .*/a/b: No space left .* free space"):
        storage.put_new("a/b", bytes(300_000))
    assert files_below(storage) == []
    assert storage.put_new("a/b", bytes(100_000))


PASSING = [
    (errno.ENOSPC, "free space there"),
    (errno.EDQUOT, "in your quota"),
    (errno.EIO, "look at the disk"),
    (errno.ESTALE, "bring it back"),
    (errno.EAGAIN, "bring it back"),
    (errno.ETIMEDOUT, "bring it back"),
]
LASTING = [(errno.EROFS, "read-only"), (errno.EACCES, "make it writable"), (errno.EPERM, "hard li")]


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def files_below(storage: Storage) -> list[Path]:
    return [path for path in Path(storage.root).rglob("*") if path.is_file()]


@pytest.mark.parametrize(("number", "remedy"), PASSING)
def test_a_write_that_fails_for_now_is_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    storage = open_storage(str(tmp_path))
    for call in ("mkdir", "fsync", "link"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing(number))
            with pytest.raises(StoreAwayError, match=f"Can't write to .*a/b: .*{remedy}"):
                storage.put_new("a/b", b"x")
        assert files_below(storage) == []
    assert storage.put_new("a/b", b"x")


@pytest.mark.parametrize(("number", "remedy"), LASTING)
def test_a_write_that_can_never_work_is_for_the_user_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    monkeypatch.setattr(os, "link", failing(number))
    with pytest.raises(UserError, match=remedy) as caught:
        open_storage(str(tmp_path)).put_new("a/b", b"x")
    assert not isinstance(caught.value, OSError)


@pytest.mark.parametrize("number", [number for number, _ in PASSING])
def test_a_disk_that_cannot_be_read_is_away_and_not_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    storage = open_storage(str(tmp_path), durable=False)
    storage.put_new("a/b", b"x")
    reads: list[tuple[object, str, Callable[[], object]]] = [
        (Path, "read_bytes", lambda: storage.get("a/b")),
        (Path, "stat", lambda: storage.exists("a/b")),
        (os, "scandir", lambda: storage.list("a/")),
        (os, "scandir", storage.used),
        (Path, "unlink", lambda: storage.delete("a/b")),
    ]
    for owner, name, read in reads:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing(number))
            with pytest.raises(StoreAwayError, match=r"Can't (read|delete) /"):
                read()
    assert storage.get("a/b") == b"x"


def test_a_forbidden_folder_is_reported_with_the_remedy_for_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_bytes", failing(errno.EACCES))
    with pytest.raises(UserError, match=r"Can't read .*a/b: .*; make it readable"):
        open_storage(str(tmp_path)).get("a/b")


def test_a_disk_that_keeps_a_temporary_file_does_not_undo_a_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(tmp_path), durable=False)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", failing(errno.EIO))
        assert storage.put_new("a/b", b"xyz")
    assert storage.list() == ["a/b"]
    assert storage.used() == 2 * 3
    assert storage.clear_temporaries("", older_than_s=-1) == 1
    assert storage.used() == 3


def test_a_link_that_was_made_before_its_reply_was_lost_counts_as_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, link = open_storage(str(tmp_path)), os.link

    def link_and_ask_again(*names: Path) -> None:
        link(*names)
        link(*names)  # as NFS does where the first reply was lost

    monkeypatch.setattr(os, "link", link_and_ask_again)
    assert storage.put_new("a", b"x")
    assert not storage.put_new("a", b"x")


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
