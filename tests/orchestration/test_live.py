"""What a person sees: bars on a terminal, lines elsewhere, and nobody else's chatter."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from s3ta_platform.events import Event, Phase
from s3ta_platform.live import Display, only_ours

NAMES = {"k1": "ResNet-8", "k2": "S3TA-4"}


def event(done: int, total: int = 200, trial: str = "k1", phase: Phase = Phase.train) -> Event:
    return Event(trial=trial, phase=phase, done=done, total=total, note="loss 2.30 [a] [7.1%, 9%]")


class Clock:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("s3ta_platform.live.time.monotonic", lambda: self.now)


def shown(events: list[tuple[float, Event]], clock: Clock) -> list[str]:
    """The lines printed without a terminal; each event comes so many seconds after the last."""
    screen = io.StringIO()
    with Display(Console(file=screen, width=60), NAMES) as display:
        for seconds, e in events:
            clock.now += seconds
            display(e)
    return screen.getvalue().splitlines()


def test_without_a_terminal_a_line_comes_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown([(0, event(10)), (5, event(20)), (16, event(50))], Clock(monkeypatch))
    assert lines == [
        "ResNet-8 train  10 of 200 images  loss 2.30 [a] [7.1%, 9%]",
        # 40 images in 21 seconds; 150 are left
        "ResNet-8 train  50 of 200 images, 2 images/s, 79 s left  loss 2.30 [a] [7.1%, 9%]",
    ]


def test_the_end_is_always_shown_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown([(0, event(100)), (1, event(200)), (60, event(200))], Clock(monkeypatch))
    assert len(lines) == 2
    assert lines[1].startswith("ResNet-8 train  200 of 200 images, 100 images/s  loss")


def test_trials_and_phases_have_lines_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [(0.0, event(1)), (0.0, event(1, trial="k2")), (0.0, event(1, phase=Phase.evaluate))]
    lines = shown(events, Clock(monkeypatch))
    assert [line[:15] for line in lines] == [
        "ResNet-8 train ",
        "S3TA-4   train ",
        "ResNet-8 attack",
    ]


def test_what_was_done_before_this_start_is_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown([(0, event(150)), (25, event(175))], Clock(monkeypatch))
    assert "175 of 200 images, 1 images/s, 25 s left" in lines[1]


def test_on_a_terminal_there_is_a_bar_per_trial_and_phase() -> None:
    screen = io.StringIO()
    console = Console(force_terminal=True, file=screen, width=120)
    with Display(console, NAMES) as display:
        for e in (event(100), event(50, phase=Phase.evaluate), event(200, trial="k2")):
            display(e)
        assert len(display.bars) == 3
        tasks = {
            t.description.split()[0] + t.description.split()[1]: t for t in display.progress.tasks
        }
    assert {name: task.percentage for name, task in tasks.items()} == {
        "ResNet-8train": 50.0,
        "ResNet-8attack": 25.0,
        "S3TA-4train": 100.0,
    }
    text = screen.getvalue()
    assert "\x1b[" in text
    assert "50 %" in text
    assert "loss 2.30 [a] [7.1%, 9%]" in text, "brackets are text, not markup"


def run_with_only_ours(tmp_path: Path, body: str) -> "subprocess.CompletedProcess[str]":
    """`body` inside `only_ours`, in a process of its own, whose streams are pipes."""
    script = f"""
import subprocess, sys, warnings
from pathlib import Path
from s3ta_platform.live import only_ours
print("before")
try:
    with only_ours(Path({str(tmp_path / "logs" / "x.log")!r})) as console:
        {body}
except ZeroDivisionError:
    print("raised")
print("after")
print("after on stderr", file=sys.stderr)
subprocess.run(["echo", "child after"])
"""
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )


def test_chatter_goes_to_the_log_and_our_words_to_the_screen(tmp_path: Path) -> None:
    body = (
        'console.print("ours"); print("a print"); print("on stderr", file=sys.stderr); '
        'subprocess.run(["echo", "a child"]); warnings.warn("a warning")'
    )
    done = run_with_only_ours(tmp_path, body)
    assert sorted(done.stdout.split("\n")) == ["", "after", "before", "child after", "ours"]
    assert done.stderr == "after on stderr\n"
    log = (tmp_path / "logs" / "x.log").read_text()
    for words in ("a print", "on stderr", "a child", "a warning"):
        assert words in log
    assert "ours" not in log


def test_the_streams_come_back_after_an_error(tmp_path: Path) -> None:
    done = run_with_only_ours(tmp_path, 'console.print("ours"); print("lost"); 1 / 0')
    assert sorted(done.stdout.split()) == ["after", "after", "before", "child", "ours", "raised"]
    assert done.stderr == "after on stderr\n"
    assert (tmp_path / "logs" / "x.log").read_text() == "lost\n"


def test_no_descriptor_is_lost(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with only_ours(tmp_path / "x.log") as console:
            assert console.width == 100
    assert len(os.listdir("/proc/self/fd")) == before
