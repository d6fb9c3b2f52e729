"""`s3ta logs`: what a run's log says, all of it or the lines of one trial."""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from s3ta.errors import UserError
from s3ta_platform.hosts import this_host
from s3ta_platform.runs import SHORTEST_KEY, Run, find_run, find_trial, read_runs
from s3ta_platform.storage import open_storage

_WORKER = re.compile(r"\(\S+ pid=(\d+)\) ")
"""How a line that a worker has printed begins, wherever it stands (see cluster._relayed)."""
_KEY = re.compile(r"(?<![0-9a-f])[0-9a-f]{16}(?![0-9a-f])")


def logs(word: str | None, results: str, last: int) -> int:
    """Print the end of the latest run's log, of the named run's, or of a trial; exit code 0."""
    storage = open_storage(results)
    runs = read_runs(storage)
    if not runs:
        raise UserError(
            f"No run has written a log in {storage.root}: start one with `s3ta run FILE`, or name "
            "its results root with --results."
        )
    key, run = _meant(word, runs, storage.root)
    file = _log_of(run)
    with file.open(encoding="utf-8", errors="replace") as text:
        found = list(text if key is None else of_trial(text, key))
    print(file if key is None else f"{file}, trial {key} ({run.trial_name(key)})")
    if last and len(found) > last:
        print(f"... {len(found) - last} lines before; --lines 0 shows all")
    sys.stdout.writelines(found[-last:] if last else found)
    return 0


def _meant(word: str | None, runs: list[Run], root: str) -> tuple[str | None, Run]:
    """The trial's key, or None, and the run."""
    if word is None:
        working = [run for run in runs if run.state.may_work]
        return None, (working or runs)[-1]
    keys = [str(trial["key"]) for run in runs for trial in run.trials]
    if len(word) >= SHORTEST_KEY and any(key.startswith(word) for key in keys):
        return find_trial(runs, word, root)
    return None, find_run(runs, word, root)


def _log_of(run: Run) -> Path:
    file = Path(run.log)
    if not file.is_file():
        here = run.holder.host == this_host()
        remedy = "It was deleted." if here else f"It is on {run.host}: ask there."
        raise UserError(f"{file}, the log of {run.id}, is not on this machine. {remedy}")
    return file


def of_trial(lines: Iterable[str], key: str) -> Iterator[str]:
    """The lines that name a trial, and what its worker printed after it had named it.

    A worker may serve several trials, one after the other: the last key that it named counts.
    """
    serves: dict[str, str] = {}
    for line in lines:
        named, worker = _KEY.findall(line), _WORKER.search(line)
        if worker and named:
            serves[worker[1]] = named[-1]
        if key in named or (not named and worker and serves.get(worker[1]) == key):
            yield line
