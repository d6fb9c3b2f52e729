"""Leases between real processes: killed, stopped, and all after the same keys at once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import psutil
import pytest

from s3ta_platform.hosts import process_start, this_host
from s3ta_platform.leases import Lease, Leases
from s3ta_platform.storage import open_storage

STALE_S = 128.0


def must_take(leases: Leases, key: str) -> Lease:
    lease = leases.take(key)
    assert lease is not None
    return lease


HOLD = """
import sys, time
from s3ta_platform.leases import Leases
from s3ta_platform.storage import open_storage
root, stale_s = sys.argv[1], float(sys.argv[2])
lease = Leases(open_storage(root, durable=False), "theirs", stale_s)
lease = lease.take("key")
print("holds" if lease else "refused", flush=True)
while True:
    lease.beat()
    time.sleep(0.01)
    print(time.monotonic(), flush=True)
"""


@contextmanager
def process(script: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def output(child: "subprocess.Popen[str]") -> IO[str]:
    assert child.stdout is not None
    return child.stdout


def wait_until(happened: Callable[[], object], within_s: float = 20.0) -> None:
    end = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_killed_worker_on_this_host_holds_its_lease_no_moment_longer(tmp_path: Path) -> None:
    leases = Leases(open_storage(str(tmp_path), durable=False), "ours", stale_s=1e6)
    with process(HOLD, tmp_path, 1e6) as worker:
        assert output(worker).readline() == "holds\n"
        assert leases.take("key") is None
        worker.send_signal(signal.SIGKILL)
        wait_until(lambda: process_start(worker.pid) is None)  # not yet waited for: a zombie
        assert Path(f"/proc/{worker.pid}").exists()
        must_take(leases, "key").release()
    assert leases.storage.list() == []


def test_a_stopped_worker_loses_its_lease_and_does_not_take_it_back(tmp_path: Path) -> None:
    leases = Leases(open_storage(str(tmp_path), durable=False), "ours", stale_s=0.4)
    with process(HOLD, tmp_path, 0.4) as worker:
        assert output(worker).readline() == "holds\n"
        names = leases.latest("key")
        wait_until(lambda: leases.latest("key") != names)  # it beats
        assert leases.take("key") is None
        worker.send_signal(signal.SIGSTOP)
        wait_until(lambda: leases.take("key"))
        names = leases.latest("key")
        worker.send_signal(signal.SIGCONT)
        after_some_beats = time.monotonic() + 0.3
        while float(output(worker).readline()) < after_some_beats:
            pass
        assert leases.latest("key") == names


def test_a_pid_that_now_is_another_process_does_not_hold_a_lease(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path), durable=False)
    holder = {"owner": "x", "host": this_host(), "pid": os.getpid(), "time": time.time()}
    started = process_start(os.getpid())
    leases = Leases(storage, "ours", STALE_S)
    storage.put_new("leases/a/000001-000000", json.dumps({**holder, "started": "1"}).encode())
    must_take(leases, "a")
    storage.put_new("leases/b/000001-000000", json.dumps({**holder, "started": started}).encode())
    assert leases.take("b") is None
    other = {**holder, "host": "another-host", "started": "1"}
    storage.put_new("leases/c/000001-000000", json.dumps(other).encode())
    assert leases.take("c") is None
    unknown = {**holder, "started": ""}  # written where there is no /proc
    storage.put_new("leases/d/000001-000000", json.dumps(unknown).encode())
    assert leases.take("d") is None


ODD_NAME = """
import sys
from pathlib import Path
Path("/proc/self/comm").write_text("a) Z (b) 1 2")
print("named", flush=True)
sys.stdin.read()
"""


def test_a_process_is_known_by_the_moment_when_it_was_started() -> None:
    with process(ODD_NAME) as child:
        assert output(child).readline() == "named\n"
        for pid in (os.getpid(), child.pid):
            started = int(process_start(pid) or "") / os.sysconf("SC_CLK_TCK")
            expected = psutil.Process(pid).create_time() - psutil.boot_time()
            assert started == pytest.approx(expected, abs=0.1)
    assert process_start(child.pid) is None


HAMMER = """
import os, random, sys, time
from pathlib import Path
from s3ta_platform.leases import Leases
from s3ta_platform.storage import open_storage
root, marks, owner, holds = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
leases, draw = Leases(open_storage(root, durable=False), owner, 60.0), random.Random(owner)
held = refused = twice = 0
print("ready", flush=True)
sys.stdin.readline()
while held < holds:
    key = draw.choice("ab")
    lease = leases.take(key)
    if lease is None:
        refused += 1
        time.sleep(draw.random() / 200)
        continue
    held += 1
    try:
        os.close(os.open(marks / key, os.O_CREAT | os.O_EXCL))
        for _ in range(draw.randrange(8)):
            lease._tried = -1e9  # else it would beat every 15 s
            lease.beat()
            time.sleep(draw.random() / 200)
        os.unlink(marks / key)
    except FileExistsError:
        twice += 1
    lease.release()
print(refused, twice, flush=True)
"""


def test_processes_that_hammer_the_same_keys_never_hold_one_at_once(
    tmp_path: Path,
) -> None:
    root, marks, counts = tmp_path / "results", tmp_path / "marks", Counter[str]()
    marks.mkdir()
    with ExitStack() as stack:
        takers = [stack.enter_context(process(HAMMER, root, marks, owner, 25)) for owner in "xyz"]
        for taker in takers:
            assert output(taker).readline() == "ready\n"
        for taker in takers:
            assert taker.stdin is not None
            taker.stdin.write("go\n")
            taker.stdin.flush()
        for taker in takers:
            refused, twice = map(int, output(taker).readline().split())
            counts += Counter(refused=refused, twice=twice)
    assert counts["refused"] > 10  # they did meet
    assert counts["twice"] == 0
    assert open_storage(str(root)).list() == []
