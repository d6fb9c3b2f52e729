"""Snapshots: a state comes back bit for bit or not at all, and they never fill the store."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from s3ta_platform.patience import patient
from s3ta_platform.snapshots import Arrays, Snapshots
from s3ta_platform.storage import Storage, StoreAwayError, open_storage

pytest_plugins = ["stores"]

KEY = "0123abcd"
PLENTY = 10**9


def some_arrays(seed: int = 0) -> Arrays:
    draw = np.random.default_rng(seed)
    floats = draw.standard_normal((4, 3, 5, 5), dtype=np.float32)
    floats.ravel()[:4] = [np.nan, -0.0, np.inf, 1e-45]
    floats.view(np.uint32).ravel()[0] |= 0x1234  # not the usual NaN
    grid = np.arange(12, dtype=np.int64).reshape(3, 4)
    return {
        "x_adv": floats,
        "moments": floats.astype(np.float64),
        "half": floats.astype(np.float16),
        "solved": np.array([True, False, True]),
        "first_error_step": np.array([-1, 2**62], dtype=np.int64),
        "bytes": np.arange(256, dtype=np.uint8).reshape(16, 16),
        "step_size": np.float32(0.1) * np.ones((), dtype=np.float32),
        "count": np.array(7),
        "yes": np.array(True),
        "none": np.zeros((0, 3, 2), dtype=np.float32),
        "no_flags": np.zeros(0, dtype=bool),
        "transposed": grid.T,
        "every_second": grid[:, ::2],
        "backwards": grid[::-1],
        "sha256": np.arange(3, dtype=np.int32),
    }


def bits(arrays: Arrays) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()}


ABOUT = {"model": "d1", "tile": 32, "nothing": None, "note": 'a "sha256":"' + "0" * 64 + '" ü'}


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "results"), durable=False)


def path_of(storage: Storage, step: int) -> Path:
    return Path(storage.root, "snapshots", KEY, f"{step:010d}.safetensors")


def test_a_state_comes_back_bit_for_bit(storage: Storage) -> None:
    snapshots = Snapshots(storage, PLENTY)
    assert snapshots.latest(KEY) is None
    assert snapshots.save(KEY, 6000, some_arrays(), ABOUT)
    assert storage.list() == [f"snapshots/{KEY}/0000006000.safetensors"]
    found = snapshots.latest(KEY)
    assert found is not None
    step, arrays, about = found
    assert (step, about) == (6000, ABOUT)
    assert bits(arrays) == bits(some_arrays())
    for array in arrays.values():
        array[...] = 0  # they are the caller's own


def test_no_arrays_at_all_are_a_state_too(local: Storage) -> None:
    assert Snapshots(local, PLENTY).save(KEY, 0, {}, {})
    assert Snapshots(local, PLENTY).latest(KEY) == (0, {}, {})


def test_the_newest_state_counts_and_those_before_it_are_deleted(storage: Storage) -> None:
    snapshots = Snapshots(storage, PLENTY)
    for step in (9, 10, 1000):
        assert snapshots.save(KEY, step, some_arrays(step), {"step": step})
        assert snapshots.save("another", step, some_arrays(), {})
        assert snapshots.steps(KEY) == [step]
    assert snapshots.save(KEY, 500, some_arrays(), {})  # by a worker that is behind
    found = snapshots.latest(KEY)
    assert found is not None
    assert found[0] == 1000
    assert bits(found[1]) == bits(some_arrays(1000))
    assert snapshots.keys() == [KEY, "another"]
    snapshots.clear(KEY)
    assert snapshots.latest(KEY) is None
    assert snapshots.keys() == ["another"]


def test_the_state_before_is_there_until_the_new_one_is(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots, seen = Snapshots(local, PLENTY), list[list[int]]()
    put = type(local).put_new

    def look(self: Storage, name: str, data: bytes) -> bool:
        seen.append(snapshots.steps(KEY))
        created = put(self, name, data)
        seen.append(snapshots.steps(KEY))
        return created

    monkeypatch.setattr(type(local), "put_new", look)
    for step in (1, 2):
        snapshots.save(KEY, step, some_arrays(), {})
    assert seen == [[], [1], [1], [1, 2]]


def test_other_programs_can_read_a_snapshot(local: Storage) -> None:
    Snapshots(local, PLENTY).save(KEY, 1, some_arrays(), ABOUT)
    with safe_open(path_of(local, 1), framework="np") as file:
        assert bits({"half": file.get_tensor("half")})["half"] == bits(some_arrays())["half"]


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "the length only": lambda data: data[:8],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\0",
    "one bit of a value": lambda data: flip(data, len(data) - 5),
    "one bit of the digest": lambda data: flip(data, data.index(b'"sha256":"') + 20),
    "one bit of the metadata": lambda data: flip(data, data.index(b"d1")),
    "one bit of the length": lambda data: flip(data, 0),
    "no digest": lambda data: data.replace(b'"sha256":"', b'"sha257":"'),
    "another version": lambda data: data.replace(rb"\"version\": 1", rb"\"version\": 2"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_told_deleted_and_the_one_before_taken(
    local: Storage, damage: str
) -> None:
    told: list[str] = []
    snapshots = Snapshots(local, PLENTY, told.append)
    snapshots.save(KEY, 200, some_arrays(2), ABOUT)
    snapshots.save(KEY, 100, some_arrays(1), ABOUT)
    path, whole = path_of(local, 200), path_of(local, 200).read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    assert path.read_bytes() != whole
    found = snapshots.latest(KEY)
    assert found is not None
    assert found[0] == 100
    assert bits(found[1]) == bits(some_arrays(1))
    assert [local.uri(f"snapshots/{KEY}/0000000200.safetensors") in text for text in told] == [True]
    assert snapshots.steps(KEY) == [100]
    path_of(local, 100).write_bytes(DAMAGES[damage](path_of(local, 100).read_bytes()))
    assert snapshots.latest(KEY) is None
    assert snapshots.save(KEY, 200, some_arrays(2), ABOUT)  # the name is free again


def test_every_single_bit_is_guarded(local: Storage) -> None:
    snapshots = Snapshots(local, PLENTY)
    snapshots.save(KEY, 1, {"a": np.arange(3, dtype=np.int16)}, {"tile": 32})
    whole = path_of(local, 1).read_bytes()
    snapshots.clear(KEY)
    for place in range(len(whole)):
        local.put_new(f"snapshots/{KEY}/0000000001.safetensors", flip(whole, place))
        assert snapshots.latest(KEY) is None, place  # and it is deleted
    local.put_new(f"snapshots/{KEY}/0000000001.safetensors", whole)
    assert snapshots.latest(KEY) is not None


def test_a_state_under_another_steps_name_is_not_taken(local: Storage) -> None:
    Snapshots(local, PLENTY).save(KEY, 100, some_arrays(), {})
    os.rename(path_of(local, 100), path_of(local, 900))
    assert Snapshots(local, PLENTY).latest(KEY) is None


def test_a_save_beyond_the_budget_is_refused_told_once_and_harms_nothing(storage: Storage) -> None:
    told: list[str] = []
    snapshots = Snapshots(storage, PLENTY, told.append)
    snapshots.save("first", 1, some_arrays(), ABOUT)
    size = storage.used("snapshots/")
    storage.put_new("results/large", bytes(10 * size))  # is in no budget
    tight = Snapshots(storage, 2 * size - 1, told.append)
    before = storage.list()
    assert not tight.save(KEY, 1, some_arrays(), ABOUT)
    assert not tight.save(KEY, 2, some_arrays(), ABOUT)
    assert storage.list() == before
    assert len(told) == 1
    assert "cluster.snapshot_budget_mb" in told[0]
    assert Snapshots(storage, 2 * size).save(KEY, 2, some_arrays(), ABOUT)
    snapshots.clear("first")
    snapshots.clear(KEY)
    assert tight.save(KEY, 3, some_arrays(), ABOUT)
    assert not tight.save(KEY, 4, some_arrays(), ABOUT)
    assert len(told) == 2  # it had worked in between
    assert tight.steps(KEY) == [3]


def test_a_full_disk_costs_the_snapshot_and_not_the_work(
    small_disk: Callable[[str], Path],
) -> None:
    told: list[str] = []
    disk = small_disk("1m")
    snapshots = Snapshots(open_storage(str(disk)), PLENTY, told.append)
    large = {"a": np.ones(400_000, dtype=np.uint8)}
    assert snapshots.save(KEY, 1, large, {})
    (disk / "filler").write_bytes(bytes(500_000))
    assert not snapshots.save(KEY, 2, large, {})
    assert "No space left on device" in told[0]
    assert snapshots.steps(KEY) == [1]
    assert [path.name for path in disk.rglob("*") if path.is_file() and ".tmp" in path.name] == []
    (disk / "filler").unlink()
    assert snapshots.save(KEY, 3, large, {})
    assert snapshots.steps(KEY) == [3]


def test_a_read_only_store_costs_the_snapshot_and_not_the_work(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "link", refuse)
    assert not Snapshots(local, PLENTY, told.append).save(KEY, 1, some_arrays(), {})
    assert "read-only" in told[0]


def test_a_store_that_is_away_is_not_taken_for_one_without_a_state(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    Snapshots(local, PLENTY).save(KEY, 1, some_arrays(), {})
    get, left = type(local).get, [2]

    def away_twice(self: Storage, name: str) -> bytes:
        left[0] -= 1
        if left[0] >= 0:
            raise StoreAwayError("the store is away")
        return get(self, name)

    monkeypatch.setattr(type(local), "get", away_twice)
    with pytest.raises(StoreAwayError):
        Snapshots(local, PLENTY).latest(KEY)
    waiting = patient(local, 30.0, lambda text: None, lambda: None)
    assert Snapshots(waiting, PLENTY).latest(KEY) is not None


def test_states_that_cannot_be_cleared_now_are_left_for_later(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = Snapshots(local, PLENTY)
    snapshots.save(KEY, 1, some_arrays(), {})

    def fail(*_: object) -> None:
        raise StoreAwayError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(type(local), "delete", fail)
        snapshots.clear(KEY)
    assert snapshots.keys() == [KEY]
    snapshots.clear(KEY)
    assert snapshots.keys() == []


KILLED_IN_THE_MIDDLE = """
import os, signal, sys
import numpy as np
from s3ta_platform.snapshots import Snapshots
from s3ta_platform.storage import open_storage
snapshots = Snapshots(open_storage(sys.argv[1]), 10**9)
snapshots.save(sys.argv[2], 1, {"a": np.arange(5)}, {})
os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
snapshots.save(sys.argv[2], 2, {"a": np.arange(6)}, {})
"""


def test_a_killed_save_leaves_the_state_before_and_its_remains_are_cleared(local: Storage) -> None:
    died = subprocess.run(
        [sys.executable, "-c", KILLED_IN_THE_MIDDLE, local.root, KEY],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert died.returncode == -9
    snapshots = Snapshots(local, PLENTY)
    found: Any = snapshots.latest(KEY)
    assert found[0] == 1
    assert found[1]["a"].tolist() == [0, 1, 2, 3, 4]
    (left,) = path_of(local, 1).parent.glob(".tmp-*")
    snapshots.save("another", 1, {}, {})
    assert left.exists()  # it could be a writer at work
    os.utime(left, (0, 0))
    snapshots.save("another", 2, {}, {})
    assert not left.exists()
    left.touch()
    snapshots.clear("another")
    assert left.exists()
    snapshots.clear(KEY)  # its result is stored: nobody needs what is written there
    assert not left.parent.exists()


def test_saving_states_imports_no_torch() -> None:
    script = "import sys, s3ta_platform.snapshots; assert 'torch' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
