"""Patience: what may pass by itself is waited for, and everything else is said at once."""

import errno
import os
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from s3ta.errors import UserError
from s3ta_platform.patience import Patient, patient
from s3ta_platform.storage import NotStored, Storage, StoreAwayError, open_storage

pytest_plugins = ["stores"]


@dataclass
class Time:
    """A clock that only sleep moves on."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@dataclass
class Away:
    """Stands before a storage's method: raises `error` until the given time, or `times` times."""

    call: Callable[..., Any]
    error: Exception
    time: Time
    until: float = 0.0
    times: int = 0
    tried_at: list[float] = field(default_factory=list)

    def __call__(self, *arguments: Any) -> Any:
        self.tried_at.append(self.time.now)
        if self.time.now < self.until or len(self.tried_at) <= self.times:
            raise self.error
        return self.call(*arguments)


class Setting:
    """A patient storage over a local one, whose operations can be made to fail."""

    def __init__(self, storage: Storage, patience_s: float = 3600.0) -> None:
        self.time, self.told, self.beats = Time(), list[str](), list[float]()
        self.storage = storage
        self.patient = Patient(
            storage,
            patience_s,
            tell=self.told.append,
            alive=lambda: self.beats.append(self.time.now),
            clock=lambda: self.time.now,
            sleep=self.time.sleep,
        )

    def away(self, operation: str, error: Exception, **limits: Any) -> Away:
        away = Away(getattr(self.storage, operation), error, self.time, **limits)
        object.__setattr__(self.storage, operation, away)
        return away


FULL = StoreAwayError("Can't write to /disk/a: No space left on device")


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(open_storage(str(tmp_path), durable=False))


def test_where_nothing_fails_nothing_is_said_and_nobody_waits(setting: Setting) -> None:
    assert setting.patient.put_new("a/b", b"x")
    assert not setting.patient.put_new("a/b", b"x")
    assert setting.patient.get("a/b") == b"x"
    assert setting.patient.exists("a/b")
    assert setting.patient.list("a") == ["a/b"]
    assert setting.patient.used("a") == 1
    assert setting.patient.clear_temporaries("") == 0
    setting.patient.delete("a/b")
    assert setting.patient.list() == []
    assert setting.patient.root == setting.storage.root
    assert setting.patient.uri("a") == setting.storage.uri("a")
    assert (setting.told, setting.time.slept) == ([], [])


OPERATIONS: list[tuple[str, tuple[Any, ...], Any]] = [
    ("put_new", ("b", b"y"), True),
    ("put_new", ("a", b"y"), False),
    ("get", ("a",), b"xyz"),
    ("exists", ("a",), True),
    ("list", ("",), ["a"]),
    ("used", ("",), 3),
    ("sizes", ("",), {"a": 3}),
    ("temporaries", (), {}),
    ("delete", ("a",), None),
    ("clear_temporaries", ("",), 0),
]


@pytest.mark.parametrize(("operation", "arguments", "answer"), OPERATIONS)
def test_every_operation_waits_and_then_answers_as_if_nothing_had_been(
    setting: Setting, operation: str, arguments: tuple[Any, ...], answer: object
) -> None:
    setting.storage.put_new("a", b"xyz")
    away = setting.away(operation, FULL, times=3)
    assert getattr(setting.patient, operation)(*arguments) == answer
    assert len(away.tried_at) == 4
    assert setting.storage.exists("a") == (operation != "delete")
    assert setting.told == [
        f"waiting for the store: {FULL}",
        f"{setting.storage.root} is back after {0.5 + 1 + 2:.0f} s",
    ]


def test_pauses_double_from_half_a_second_to_thirty(setting: Setting) -> None:
    away = setting.away("get", FULL, until=1150.0)
    with pytest.raises(NotStored):
        setting.patient.get("a")
    at = away.tried_at
    pauses = [later - earlier for earlier, later in pairwise(at)]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]


def test_who_waits_shows_every_second_that_it_is_alive(setting: Setting) -> None:
    setting.away("list", FULL, until=1500.0)
    setting.patient.list()
    beats = [1000.0, *setting.beats, setting.time.now]
    assert setting.time.now >= 1500
    assert max(b - a for a, b in pairwise(beats)) <= 1


def test_the_wait_is_told_when_it_begins_then_each_minute_and_when_it_ends(
    setting: Setting,
) -> None:
    setting.away("list", FULL, until=1000.0 + 63)
    setting.patient.list()
    assert [text.replace(setting.storage.root, "ROOT") for text in setting.told] == [
        f"waiting for the store: {FULL}",
        f"still waiting for the store (1 of 60 minutes): {FULL}",
        "ROOT is back after 92 s",  # the first try after its return
    ]
    setting.told.clear()
    setting.away("list", FULL, until=setting.time.now + 1800)
    setting.patient.list()
    assert 30 <= len(setting.told) <= 32


def test_the_last_reason_is_raised_when_the_patience_is_over(setting: Setting) -> None:
    away = setting.away("put_new", FULL, until=1e9)
    with pytest.raises(StoreAwayError, match=r"No space left .*waited 60 minutes for it") as caught:
        setting.patient.put_new("a", b"x")
    assert caught.value.__cause__ is FULL
    assert setting.time.now == 1000 + 3600
    assert away.tried_at[-1] == 4600  # to the very end
    assert "back" not in "".join(setting.told)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("the store hung up"),
        TimeoutError("no answer"),
        OSError(errno.EBUSY, "busy"),
        OSError(errno.ESTALE, "stale file handle"),
    ],
)
def test_other_errors_that_pass_are_waited_for_too(setting: Setting, error: OSError) -> None:
    setting.away("put_new", error, times=1)
    assert setting.patient.put_new("a", b"x")


@pytest.mark.parametrize(
    "error", [UserError("read-only"), PermissionError(errno.EACCES, "no"), ValueError("?")]
)
def test_errors_that_last_are_raised_at_once_even_in_the_middle_of_a_wait(
    setting: Setting, error: Exception
) -> None:
    setting.away("get", error, times=1)
    with pytest.raises(type(error)) as caught:
        setting.patient.get("a")
    assert caught.value is error
    assert setting.time.slept == []
    setting.away("get", error, times=1)
    setting.away("get", FULL, times=1)
    with pytest.raises(type(error)) as caught:
        setting.patient.get("a")
    assert caught.value is error
    assert setting.time.slept == [0.5]


def test_a_put_whose_reply_was_lost_knows_that_it_won(setting: Setting) -> None:
    put = setting.storage.put_new
    away = setting.away("put_new", FULL, times=1)

    def create_and_fail(name: str, data: bytes) -> bool:
        if not away.tried_at:
            put(name, data)
        return bool(away(name, data))

    object.__setattr__(setting.storage, "put_new", create_and_fail)
    assert setting.patient.put_new("a", b"mine")
    assert setting.patient.get("a") == b"mine"


def test_a_put_that_another_was_quicker_with_during_the_wait_has_lost(setting: Setting) -> None:
    put = setting.storage.put_new
    setting.away("put_new", FULL, times=1)
    put("a", b"another's")
    assert not setting.patient.put_new("a", b"mine")
    assert setting.patient.get("a") == b"another's"


def test_a_lost_reply_of_s3_is_seen_through(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(f"s3://{bucket}/lost")
    client = storage._client  # type: ignore[attr-defined]
    put, replies = client.put_object, iter([False, True, True])
    from botocore.exceptions import ReadTimeoutError

    def put_without_reply(**request: Any) -> Any:
        reply = put(**request)
        if not next(replies):
            raise ReadTimeoutError(endpoint_url="http://store")
        return reply

    monkeypatch.setattr(client, "put_object", put_without_reply)
    waiting = Setting(storage)
    assert waiting.patient.put_new("a", b"mine")
    assert waiting.told[0].startswith("waiting for the store: Can't use s3://")
    assert not waiting.patient.put_new("a", b"mine")  # nothing failed: it is another's


def test_the_check_for_writing_does_not_wait(setting: Setting) -> None:
    setting.away("check_writable", FULL, times=1)
    with pytest.raises(StoreAwayError, match="No space left"):
        setting.patient.check_writable()


def ignore(*_: object) -> None: ...


def test_a_patient_storage_can_be_pickled(tmp_path: Path) -> None:
    storage = patient(open_storage(str(tmp_path)), 10.0, ignore, ignore)
    copy = pickle.loads(pickle.dumps(storage))
    assert copy == storage
    assert copy.put_new("a", b"x")


def put_while_away(storage: Storage, data: bytes, bring_back: Callable[[], None]) -> list[str]:
    """What is told by a put that really waits, until `bring_back` is called after its first try."""
    told: list[str] = []
    waiting, created = threading.Event(), list[bool]()

    def tell(text: str) -> None:
        told.append(text)
        waiting.set()

    willing = patient(storage, 30.0, tell, ignore)
    writer = threading.Thread(target=lambda: created.append(willing.put_new("a/b", data)))
    writer.start()
    assert waiting.wait(10)
    assert not storage.exists("a/b")
    bring_back()
    writer.join(30)
    assert created == [True]
    assert storage.get("a/b") == data
    return told


def test_a_put_goes_through_once_a_full_disk_has_room_again(
    small_disk: Callable[[str], Path],
) -> None:
    disk = small_disk("1m")
    filler = disk / "filler"
    filler.write_bytes(bytes(900_000))
    told = put_while_away(open_storage(str(disk / "results")), bytes(400_000), filler.unlink)
    assert "No space left on device" in told[0]
    assert "is back after" in told[-1]
    assert [path.name for path in disk.rglob("*") if path.is_file()] == ["b"]


def test_a_put_goes_through_once_links_and_syncs_work_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, fsync, full = os.link, os.fsync, threading.Event()
    full.set()

    def fail_if_full(call: Callable[..., None]) -> Callable[..., None]:
        def maybe(*arguments: Any) -> None:
            if full.is_set():
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
            call(*arguments)

        return maybe

    monkeypatch.setattr(os, "link", fail_if_full(link))
    monkeypatch.setattr(os, "fsync", fail_if_full(fsync))
    told = put_while_away(open_storage(str(tmp_path)), b"xyz", full.clear)
    assert len(told) == 2
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["b"]
