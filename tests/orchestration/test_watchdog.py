"""Two workers that share sums: whoever is wedged is named and ended, whoever is slow is not."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from waiting import until

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("watched_worker.py")
HANG_S = 3.0


class Pair:
    """Rank 0, which keeps the store, and rank 1."""

    def __init__(self, folder: Path, what: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.errors = [folder / f"errors-{rank}" for rank in range(2)]
        self.outputs = [folder / f"output-{rank}" for rank in range(2)]
        self.workers = []
        for rank in range(2):
            with self.errors[rank].open("wb") as errors, self.outputs[rank].open("wb") as output:
                command = [sys.executable, str(WORKER), str(rank), str(port), str(HANG_S), what]
                environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
                self.workers.append(
                    subprocess.Popen(command, stderr=errors, stdout=output, env=environment)
                )

    def said(self, rank: int) -> str:
        return self.errors[rank].read_text()

    def end(self, within_s: float = 60) -> list[int]:
        """Their exit codes."""
        return [worker.wait(timeout=within_s) for worker in self.workers]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Pair]]:
    pairs: list[Pair] = []

    def begin(what: str) -> Pair:
        pairs.append(Pair(tmp_path, what))
        return pairs[-1]

    yield begin
    for pair in pairs:
        for worker in pair.workers:
            worker.kill()
            worker.wait()


@pytest.mark.parametrize("victim", [1, 0])
def test_a_stopped_worker_is_named_with_its_stack_and_ended(
    victim: int, start: Callable[[str], Pair]
) -> None:
    """Rank 0 keeps the store through which they hear of one another."""
    pair, other = start("goes on"), 1 - victim
    until(lambda: len(pair.outputs[0].read_text().split()) > 20)
    began = time.monotonic()
    pid = pair.workers[victim].pid
    os.kill(pid, signal.SIGSTOP)
    until(lambda: not psutil.pid_exists(pid) or pair.workers[victim].poll() is not None, 60)
    assert HANG_S <= time.monotonic() - began < 5 * HANG_S + 10
    codes = pair.end()
    assert codes[victim] in (-signal.SIGKILL, 1)
    assert codes[other] not in (0, -signal.SIGKILL)
    said = pair.said(other)
    assert f"for rank {victim} (process {pid} on this node), which shows no life" in said
    assert f"rank {victim}: process {pid} was in state T (stopped)" in said
    # Continued to be asked, it may end by its own timer, with its own words.
    told = said.split("was in state T")[1] + pair.said(victim)
    assert "watched_worker.py" in told, "where it was"
    assert "most recent call first" in said.split("which shows no life")[1].split("was in")[0]


@pytest.mark.parametrize("what", ["sleeps", "holds"])
def test_a_worker_that_gets_nowhere_ends_itself_with_its_stack(
    what: str, start: Callable[[str], Pair]
) -> None:
    pair = start(what)
    codes = pair.end()
    assert codes[1] == 1
    assert codes[0] != 0
    assert "Timeout (0:00:03)!" in pair.said(1)
    assert "in misbehave" in pair.said(1)
    assert "shows no life" not in pair.said(0)


def test_a_worker_that_is_late_but_lives_is_waited_for(start: Callable[[str], Pair]) -> None:
    pair = start("waits")
    assert pair.end() == [0, 0]
    for rank in range(2):
        assert pair.outputs[rank].read_text().endswith("added up to 400\n")
    assert "for rank 1 (process" in pair.said(0)
    assert "which shows life" in pair.said(0)
