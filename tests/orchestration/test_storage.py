"""Storage: the same claims on a local folder and on an S3 server (see stores)."""

import itertools
import os
import pickle
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from s3ta.errors import UserError
from s3ta_platform.storage import NotStored, Storage, open_storage

pytest_plugins = ["stores"]

WRITERS = 8


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


def test_the_bytes_below_a_prefix_are_counted(storage: Storage) -> None:
    assert storage.used() == storage.used("a/") == 0
    for name, size in {"a/1": 10, "a/deep/2": 200, "ab": 3000, "b": 40_000}.items():
        storage.put_new(name, bytes(size))
    assert storage.used("a/") == 210
    assert storage.used("a") == 3210
    assert storage.used("a/deep/2") == 200
    assert storage.used() == 43_210
    assert storage.sizes("a") == {"a/1": 10, "a/deep/2": 200, "ab": 3000}
    assert list(storage.sizes()) == storage.list()
    storage.put_new("b", bytes(7))  # not stored, so not counted
    storage.delete("a/1")
    assert storage.used() == 43_200


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
