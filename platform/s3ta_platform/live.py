"""What a person sees while work runs: a bar per trial and phase, or plain lines without a terminal.

Everything else that would be printed (Ray's own chatter, warnings of libraries) goes to a log file.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from s3ta_platform.events import Event, Phase

PLAIN_EVERY_S = 20.0
"""Without a terminal a bar is a line, at most so often."""


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} images/s", style="cyan")


@dataclass
class _Line:
    """The state of one plain line."""

    started: float
    first_done: int
    printed: float = 0.0


class Display:
    """Shows events; `names` gives a trial's key a name."""

    def __init__(self, console: Console, names: Mapping[str, str]) -> None:
        self.console, self.names = console, names
        self.width = max((len(name) for name in names.values()), default=0)
        self.bars: dict[tuple[str, Phase], TaskID] = {}
        self.lines: dict[tuple[str, Phase], _Line] = {}
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            _Rate(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            speed_estimate_period=60,
        )

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self.progress.stop()

    def __call__(self, event: Event) -> None:
        if self.console.is_terminal:
            self._bar(event)
        else:
            self._line(event)

    def _bar(self, event: Event) -> None:
        at = (event.trial, event.phase)
        if at not in self.bars:
            text = f"{self._name(event):{self.width}} {event.phase.word:6}"
            # What was done before this start must not count as speed.
            self.bars[at] = self.progress.add_task(text, total=event.total, note="")
            self.progress.update(self.bars[at], completed=event.done)
            self.progress.reset(self.bars[at], completed=event.done)
        self.progress.update(self.bars[at], completed=event.done, note=event.note)

    def _line(self, event: Event) -> None:
        at, now = (event.trial, event.phase), time.monotonic()
        line = self.lines.setdefault(at, _Line(now, event.done))
        finished = event.done >= event.total
        if line.printed == float("inf") or (now - line.printed < PLAIN_EVERY_S and not finished):
            return
        line.printed = float("inf") if finished else now
        rate = (event.done - line.first_done) / max(now - line.started, 1e-9)
        left = (event.total - event.done) / rate if rate and not finished else 0.0
        eta = f", {left:.0f} s left" if left else ""
        speed = f", {rate:,.0f} images/s" if rate else ""
        self.console.print(
            f"{self._name(event):{self.width}} {event.phase.word:6} "
            f"{event.done:,} of {event.total:,} images{speed}{eta}  {event.note}".rstrip(),
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def _name(self, event: Event) -> str:
        return self.names.get(event.trial, event.trial)


@contextmanager
def only_ours(log: Path) -> Iterator[Console]:
    """A console for our own words; all else that is printed, by children too, goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    screen = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    with log.open("ab") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    try:
        # The width is asked of the real screen: file descriptor 1 is a file now.
        columns = os.get_terminal_size(screen.fileno()).columns if screen.isatty() else 100
        yield Console(file=screen, width=columns, force_terminal=screen.isatty() or None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        screen.close()
