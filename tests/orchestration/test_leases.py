"""Leases: two owners hardly ever hold the same key, and nobody who is gone keeps one."""

import errno
import json
import os
from pathlib import Path

import pytest

from s3ta.errors import UserError
from s3ta_platform.hosts import process_start, this_host
from s3ta_platform.leases import Lease, Leases
from s3ta_platform.storage import Storage, StoreAwayError, open_storage

pytest_plugins = ["stores"]

STALE_S = 128.0  # its parts are exact in binary
KEY = "0123abcd"


class Clocks:
    """Of one host: the wall clock may be set wrong, both go on together."""

    def __init__(self, wall: float = 1.7e9) -> None:
        self.wall, self.since_boot = wall, 50.0

    def pass_s(self, seconds: float) -> None:
        self.wall += seconds
        self.since_boot += seconds

    def leases(self, storage: Storage, owner: str) -> Leases:
        return Leases(storage, owner, STALE_S, now=lambda: self.wall, clock=lambda: self.since_boot)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def must_take(leases: Leases, key: str = KEY) -> Lease:
    lease = leases.take(key)
    assert lease is not None
    return lease


def test_a_key_is_one_owners_until_it_is_released(storage: Storage, clocks: Clocks) -> None:
    ours, theirs = clocks.leases(storage, "ours"), clocks.leases(storage, "theirs")
    lease = must_take(ours)
    assert theirs.take(KEY) is None
    must_take(theirs, "another-key")
    lease.release()
    must_take(theirs)
    assert ours.take(KEY) is None
    lease.beat()
    lease.release()  # a second time does not touch what is now theirs
    assert ours.take(KEY) is None


def test_a_release_leaves_nothing(storage: Storage, clocks: Clocks) -> None:
    lease = must_take(clocks.leases(storage, "ours"))
    for _ in range(10):
        clocks.pass_s(STALE_S / 4)
        lease.beat()
    lease.release()
    clocks.pass_s(STALE_S)
    lease.beat()
    assert storage.list() == []


def test_an_owners_own_lease_never_blocks_it(storage: Storage, clocks: Clocks) -> None:
    ours, theirs = clocks.leases(storage, "ours"), clocks.leases(storage, "theirs")
    dead, again = must_take(ours), must_take(ours)
    assert theirs.take(KEY) is None
    dead.release()  # it was alive after all, and the later claim stays
    assert theirs.take(KEY) is None
    again.release()
    must_take(theirs)


def test_a_lease_without_a_beat_is_lost_after_stale_s_and_not_before(
    storage: Storage, clocks: Clocks
) -> None:
    must_take(clocks.leases(storage, "ours"))
    clocks.pass_s(STALE_S - 1)
    assert clocks.leases(storage, "theirs").take(KEY) is None
    clocks.pass_s(1)
    must_take(clocks.leases(storage, "theirs"))


def test_beats_keep_a_lease_and_few_of_them_cost_anything(
    storage: Storage, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = must_take(clocks.leases(storage, "ours"))
    leases, written = lease._leases, list[int]()
    put = leases.put

    def record(key: str, claim: int, beat: int) -> bool:
        written.append(beat)
        assert len(storage.list(f"leases/{KEY}/")) <= 3
        return put(key, claim, beat)

    monkeypatch.setattr(leases, "put", record)
    for _ in range(640):  # ten times stale_s
        clocks.pass_s(STALE_S / 64)
        lease.beat()
    assert written == list(range(1, 41))
    assert clocks.leases(storage, "theirs").take(KEY) is None


def test_the_content_says_who_holds_it(storage: Storage, clocks: Clocks) -> None:
    must_take(clocks.leases(storage, "ours"))
    (name,) = storage.list()
    assert name == f"leases/{KEY}/000001-000000"
    assert json.loads(storage.get(name)) == {
        "owner": "ours",
        "host": this_host(),
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "time": clocks.wall,
    }


@pytest.mark.parametrize("moment", ["latest", "put"])
def test_of_two_takers_at_the_same_moment_one_wins(
    storage: Storage, clocks: Clocks, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The other takes the key between our look and our claim, or just before our claim."""
    ours, theirs = clocks.leases(storage, "ours"), clocks.leases(storage, "theirs")
    step, won = getattr(ours, moment), list[Lease | None]()

    def be_overtaken(*arguments: object) -> object:
        found = step(*arguments) if moment == "latest" else None
        if not won:
            won.append(theirs.take(KEY))
        return found if moment == "latest" else step(*arguments)

    monkeypatch.setattr(ours, moment, be_overtaken)
    assert ours.take(KEY) is None
    assert won[0] is not None


def test_two_takers_who_saw_different_claims_do_not_both_win(
    storage: Storage, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has seen a stale claim, the other none, for it was released between their looks."""
    stale = must_take(clocks.leases(storage, "stale"))
    clocks.pass_s(STALE_S)
    ours, theirs = clocks.leases(storage, "ours"), clocks.leases(storage, "theirs")
    put, won = ours.put, list[Lease]()

    def be_overtaken(key: str, claim: int, beat: int) -> bool:
        if not won:
            stale.release()
            won.append(must_take(theirs))
        return put(key, claim, beat)

    monkeypatch.setattr(ours, "put", be_overtaken)
    assert ours.take(KEY) is None
    won[0].release()
    assert storage.list() == []


def test_a_key_that_is_released_and_taken_again_is_not_taken_for_the_old_lease(
    storage: Storage, clocks: Clocks
) -> None:
    ours, theirs = clocks.leases(storage, "ours"), clocks.leases(storage, "theirs")
    for _ in range(4):
        lease = must_take(ours)
        assert theirs.take(KEY) is None
        clocks.pass_s(STALE_S / 2)
        lease.release()


def test_a_suspended_worker_that_wakes_up_leaves_the_lease_to_its_new_owner(
    storage: Storage, clocks: Clocks
) -> None:
    suspended = must_take(clocks.leases(storage, "ours"))
    clocks.pass_s(STALE_S + 1)
    theirs = must_take(clocks.leases(storage, "theirs"))
    before = storage.list()
    suspended.beat()
    suspended.release()
    assert storage.list() == before
    theirs.release()
    assert storage.list() == []


def test_a_suspended_worker_whom_nobody_replaced_keeps_its_lease(
    storage: Storage, clocks: Clocks
) -> None:
    suspended = must_take(clocks.leases(storage, "ours"))
    clocks.pass_s(10 * STALE_S)
    suspended.beat()
    assert clocks.leases(storage, "theirs").take(KEY) is None


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b'{"owner": "x", "ho',
        b"\xff\xfe",
        b"[1]",
        b"null",
        b'{"owner": "x", "host": "", "pid": -1, "started": "", "time": 0}',
        b'{"owner": "x", "host": "", "pid": 1, "started": "", "time": NaN}',
        b'{"owner": "x", "host": "", "pid": 1e999, "started": "", "time": 0}',
    ],
)
def test_a_damaged_lease_is_stale_after_the_reader_has_watched_it_for_stale_s(
    tmp_path: Path, clocks: Clocks, garbage: bytes
) -> None:
    storage = open_storage(str(tmp_path), durable=False)
    storage.put_new(f"leases/{KEY}/000007-000003", garbage)
    storage.put_new(f"leases/{KEY}/not-a-lease", garbage)
    leases = clocks.leases(storage, "ours")
    assert leases.take(KEY) is None
    clocks.pass_s(STALE_S - 1)
    assert leases.take(KEY) is None
    clocks.pass_s(1)
    must_take(leases).release()
    assert storage.list() == [f"leases/{KEY}/not-a-lease"]


def test_a_clock_that_is_ahead_keeps_a_dead_lease_no_longer_than_stale_s(
    storage: Storage, clocks: Clocks
) -> None:
    must_take(Clocks(clocks.wall + 1e6).leases(storage, "ahead"))
    leases = clocks.leases(storage, "ours")
    assert leases.take(KEY) is None
    clocks.pass_s(STALE_S)
    must_take(leases)


def test_a_clock_that_is_ahead_does_not_lose_a_living_lease(
    storage: Storage, clocks: Clocks
) -> None:
    ahead = Clocks(clocks.wall + 1e6)
    lease, leases = must_take(ahead.leases(storage, "ahead")), clocks.leases(storage, "ours")
    for _ in range(20):
        for host in (clocks, ahead):
            host.pass_s(STALE_S / 4)
        lease.beat()
        assert leases.take(KEY) is None


AWAY = StoreAwayError("the store is away")


def away_at(storage: Storage, monkeypatch: pytest.MonkeyPatch, *operations: str) -> None:
    def fail(*_: object) -> None:
        raise AWAY

    for operation in operations:
        monkeypatch.setattr(type(storage), operation, fail)


def test_work_begins_and_goes_on_while_the_store_is_away_and_is_registered_later(
    storage: Storage, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = clocks.leases(storage, "theirs")
    with monkeypatch.context() as patch:
        away_at(storage, patch, "put_new", "list", "get", "delete")
        lease, unlucky = must_take(clocks.leases(storage, "ours")), must_take(theirs, "b")
        clocks.pass_s(10 * STALE_S)
        lease.beat()
        unlucky.release()
    assert storage.list() == []
    clocks.pass_s(STALE_S / 4)
    lease.beat()
    assert theirs.take(KEY) is None
    lease.release()
    assert storage.list() == []


def test_beats_that_fail_for_long_do_not_lose_what_nobody_else_took(
    storage: Storage, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = must_take(clocks.leases(storage, "ours"))
    with monkeypatch.context() as patch:
        away_at(storage, patch, "put_new", "list", "delete")
        for _ in range(9):
            clocks.pass_s(STALE_S / 4)
            lease.beat()
    clocks.pass_s(STALE_S / 4)
    lease.beat()
    assert clocks.leases(storage, "theirs").take(KEY) is None
    lease.release()
    assert storage.list() == []


def test_a_store_that_can_never_be_written_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UserError, match="read-only"):
        Leases(open_storage(str(tmp_path)), "ours", STALE_S).take(KEY)
