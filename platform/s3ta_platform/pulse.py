"""How far the running job of this process is: told by the work, read by whoever watches over it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY_S = 2.0
"""Whoever listens is told at most so often."""

_beats = 0
_done = 0.0
_hear: Callable[[float], None] = lambda done: None  # noqa: E731 (a default, replaced below)


def beat(done: float | None = None) -> None:
    """The work is alive, and so much of the job is done, in whatever unit the job counts."""
    global _beats, _done  # noqa: PLW0603 (one process does one job at a time)
    _done = _done if done is None else done
    _beats += 1
    _hear(_done)


def read() -> tuple[int, float]:
    """How many beats there were since `reset`, and what was done at the last one that said."""
    return _beats, _done


def reset() -> None:
    """A new job begins."""
    global _beats, _done
    _beats, _done = 0, 0.0


@contextmanager
def heard_by(hear: Callable[[float], None]) -> Iterator[None]:
    """Inside the block `hear` is told what is done: at once, then every two seconds if it moved."""
    global _hear  # noqa: PLW0603
    before, told, next_at = _hear, 0.0, 0.0

    def now_and_then(done: float) -> None:
        nonlocal told, next_at
        if done != told and time.monotonic() >= next_at:
            told, next_at = done, time.monotonic() + EVERY_S
            hear(done)

    _hear = now_and_then
    try:
        yield
    finally:
        _hear = before
