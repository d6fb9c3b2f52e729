"""The last words of a hung process: where each of its threads was. Then its end, by SIGKILL.

Python code in the process can't help any more: it may be stopped, or wait for a lock for ever. But
a signal handler written in C can still write the stacks down.
"""

import ctypes
import faulthandler
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from threading import get_native_id
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

WRITTEN_WITHIN_S = 3.0
POLL_S = 0.02
STABLE_POLLS = 10
ASKED_WITHIN_S = 30.0
GRACE_S = 1.0
"""So long Ray may take to end a process in its own way."""


@dataclass(frozen=True)
class Process:
    """A process on some node that writes its stacks to an open file of its own at SIGUSR1."""

    node_id: str
    pid: int
    born: str
    """In clock ticks since the node was started; empty where there is no /proc. Pids are reused."""
    stacks_fd: int
    thread: int
    """The system's id of the thread that does the work."""

    @property
    def there(self) -> bool:
        """Whether it, and no other process of that id, is on this node and not a zombie."""
        state, born = _state_and_birth(self.pid)
        return bool(born) and born == self.born and state != "Z"


def listen(node_id: str) -> Process:
    """From now on SIGUSR1 makes this process write all threads' stacks to a file in memory.

    To be called in the thread that does the work.
    """
    if not hasattr(os, "memfd_create"):  # not Linux
        return Process(node_id, os.getpid(), "", -1, -1)
    fd = os.memfd_create("stacks")  # needs no room on a disk, and nothing is left of it
    faulthandler.register(signal.SIGUSR1, file=fd, all_threads=True)
    return Process(node_id, os.getpid(), _state_and_birth(os.getpid())[1], fd, get_native_id())


def ask_and_kill(process: Process, actor: Any) -> "ray.ObjectRef[str]":
    """On the process's own node: ask for its stacks, then end it, whatever it answers."""
    there = NodeAffinitySchedulingStrategy(process.node_id, soft=False)
    task: Any = ray.remote(_ask_and_kill).options(num_cpus=0, scheduling_strategy=there)
    return task.remote(process, actor)  # type: ignore[no-any-return]


def ask_and_end(process: Process) -> str:
    """The same for a process that is to die without its actor being asked; waits, and tells."""
    there = NodeAffinitySchedulingStrategy(process.node_id, soft=False)
    task: Any = ray.remote(_ask_and_end).options(num_cpus=0, scheduling_strategy=there)
    try:
        return str(ray.get(task.remote(process), timeout=ASKED_WITHIN_S))
    except (RayError, TimeoutError) as error:
        return f"process {process.pid} could not be reached: {type(error).__name__}"


def _ask_and_end(process: Process) -> str:
    try:
        return dump(process)
    finally:
        end(process, grace_s=0)


def _ask_and_kill(process: Process, actor: Any) -> str:
    try:
        return dump(process)
    finally:
        ray.kill(actor, no_restart=True)  # first: Ray calls a death that it knows nothing of a bug
        end(process, GRACE_S)


def end(process: Process, grace_s: float) -> None:
    """SIGKILL, if the process has not ended by itself by then."""
    until = time.monotonic() + grace_s
    while process.there and time.monotonic() < until:
        time.sleep(POLL_S)
    if process.there:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def dump(process: Process) -> str:
    """What all threads of a process on this node are doing, or why that isn't known.

    A stopped process is continued: it runs the signal's handler before anything else.
    """
    if not process.born:
        return f"process {process.pid} is on a system without /proc: no stack"
    if not process.there:
        return f"process {process.pid} had ended before it could be asked for its stack"
    state = _line_of_status(process.pid, "State")
    return f"process {process.pid} was in state {state}\n{_dump(process)}"


def _dump(process: Process) -> str:
    """Asks the working thread, then any.

    A stopped process's first thread to wake takes what is sent to the process, and reads the frames
    of threads that run on meanwhile: these may be torn, and now and then it crashes. The working
    thread stands still while it writes. But it may be one that can't be interrupted.
    """
    questions: list[Callable[[], None]] = [
        lambda: _signal_thread(process.pid, process.thread, signal.SIGUSR1),
        lambda: os.kill(process.pid, signal.SIGUSR1),
    ]
    try:
        # Open before it is asked: what it wrote is there even if it dies of the question.
        with Path(f"/proc/{process.pid}/fd/{process.stacks_fd}").open("rb", buffering=0) as file:
            file.seek(0, os.SEEK_END)
            for ask in questions:
                with suppress(ProcessLookupError):
                    ask()
                    os.kill(process.pid, signal.SIGCONT)
                if _written(file, WRITTEN_WITHIN_S / len(questions)):
                    threads = file.read().decode(errors="replace").strip().split("\n\n")
                    return "\n\n".join(t for t in threads if "<no Python frame>" not in t)
    except OSError as error:
        return f"and its stack could not be read: {error}"
    return f"and wrote no stack within {WRITTEN_WITHIN_S:g} s"


def _signal_thread(pid: int, thread: int, number: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.tgkill(pid, thread, number):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _written(file: FileIO, within_s: float) -> bool:
    """Waits until a file has grown beyond what was read of it, and then not for a while."""
    until, last, polls = time.monotonic() + within_s, -1, 0
    while time.monotonic() < until:
        size = os.fstat(file.fileno()).st_size
        last, polls = size, polls + 1 if size == last else 0
        if polls >= STABLE_POLLS and size > file.tell():
            return True
        time.sleep(POLL_S)
    return False


def _state_and_birth(pid: int) -> tuple[str, str]:
    """From /proc; two empty strings where there is none, or no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return "", ""
    fields = stat.rsplit(")", 1)[1].split()  # a process may have brackets and blanks in its name
    return fields[0], fields[19]


def _line_of_status(pid: int, name: str) -> str:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return line.split(":", 1)[1].strip()
    return "unknown"
