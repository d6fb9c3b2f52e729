"""Which host this is, and whether a process on it is still the one that it was."""

import os
import socket
from functools import cache
from pathlib import Path


@cache
def this_host() -> str:
    """Names this host since it was started; differs between containers, whose pids do too."""
    return " ".join([socket.gethostname(), _boot_id(), _pid_namespace()]).strip()


def process_start(pid: int) -> str | None:
    """When a process of this host was started, in clock ticks since boot; None if it is dead.

    A killed process that nobody has waited for yet is dead. Empty where there is no /proc to say.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # another user's
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
    except ProcessLookupError:  # it has just died
        return None
    except OSError:
        return ""
    state, *fields = line.rpartition(")")[2].split()  # its name, in brackets, may hold anything
    return None if state in "ZX" else fields[18]


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
