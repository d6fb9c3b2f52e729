"""`s3ta ps`: which runs there are on a results root, and how far each of their trials is."""

import time

from rich.console import Console
from rich.text import Text

from s3ta_platform.runs import Run, Standing, State, read_runs
from s3ta_platform.storage import open_storage

COLOURS = {
    State.running: "green",
    State.finished: "green",
    State.silent: "yellow",
    State.stopped: "yellow",
}
WORDS = {
    State.dead: "dead: its process has ended without a word; the same `s3ta run` goes on",
    State.silent: "silent: it is on another host, or its store is away",
}


def ps(results: str, *, everything: bool) -> int:
    """Print the runs that have not ended, or all; exit code 0.

    A dead one is shown until the same experiment is run again.
    """
    storage, console = open_storage(results), Console()
    runs = read_runs(storage)
    last = {run.name: run.id for run in runs}
    dead = [run for run in runs if run.state is State.dead and last[run.name] == run.id]
    shown = [run for run in runs if everything or run.state.may_work or run in dead]
    for run in shown:
        for line in lines(run, time.time()):
            console.print(line, soft_wrap=True)
    if not shown:
        more = f" {len(runs)} ended before: `s3ta ps --all` shows them." if runs else ""
        console.print(f"Nothing runs in {storage.root}.{more}", highlight=False, soft_wrap=True)
    return 0


def lines(run: Run, now: float) -> list[Text]:
    """A run and its trials, one line each."""
    colour = COLOURS.get(run.state, "red")
    since = f"since {_clock(run.holder.time)} ({ago(run.heard - run.holder.time)})"
    heard = f", heard {ago(now - run.heard)} ago" if run.state.may_work else ""
    who = f"  {run.host}, pid {run.holder.pid}, {since}{heard}"
    found = [Text.assemble((run.id, "bold"), "  ", (run.state.name, colour), who)]
    if run.state in WORDS:
        found.append(Text(f"  {WORDS[run.state]}", style="dim"))
    width = max((len(run.trial_name(key)) for key in run.todo), default=0)
    for key in run.todo:
        standing = run.standings.get(key, Standing(phase="waiting", since=run.holder.time))
        found.append(_trial_line(key, f"{run.trial_name(key):{width}}", standing, run.heard))
    stored = len(run.trials) - len(run.todo)
    if stored:
        found.append(Text(f"  and {stored} that were complete already", style="dim"))
    if "" in run.errors:
        found.append(Text(f"  {run.errors['']}", style="red"))
    found.append(Text(f"  log {run.log}", style="dim"))
    return found


def _trial_line(key: str, name: str, standing: Standing, heard: float) -> Text:
    share = standing.done / standing.total if standing.total else 0.0
    moving = standing.phase in ("train", "attack")
    done = f"{share:4.0%}  " if moving else " " * 6
    lasted = f"for {ago(heard - standing.since)}" if standing.phase != "complete" else ""
    words = f"  {key}  {standing.phase:8}  {done}{lasted:11}  {standing.note if moving else ''}"
    return Text.assemble("  ", (name, "bold"), words.rstrip())


def ago(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h` or `2.1 days`."""
    for unit, length, digits in (("days", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * length or (unit == "h" and seconds >= length):
            return f"{seconds / length:.{digits}f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _clock(when: float) -> str:
    then, today = time.localtime(when), time.localtime()
    same_day = then[:3] == today[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M", then)
