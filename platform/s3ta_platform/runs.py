"""The runs of a results root: who they are, how far they are, how they ended. Imports no torch.

    runs/ID/begun.json     who, where and when, and the experiment as it was composed
    runs/ID/beat-000012    how far each trial is; renewed every few seconds, gone at the end
    runs/ID/ended.json     how it ended

The names are create-only, as everywhere. A run without an end is dead if its process is (seen from
the same host: at once), and silent if it has said nothing for SILENT_S, which is all that can be
seen from another host.
"""

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from s3ta.errors import UserError
from s3ta_platform.leases import Holder
from s3ta_platform.storage import NotStored, Storage, StoreAwayError

FOLDER = "runs"
FORMAT = "s3ta-run-1"
BEAT_S = 5.0
SILENT_S = 60.0
SHORTEST_KEY = 4
"""So many letters of a trial's key name it."""


class State(Enum):
    """Of a run; the last four are ends."""

    running = "running"
    silent = "silent"
    dead = "dead"
    finished = "finished"
    failed = "failed"
    stopped = "stopped"
    broken = "broken"

    @property
    def may_work(self) -> bool:
        """Whether it may still be at work, as far as can be seen from here."""
        return self in (State.running, State.silent)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a trial is."""

    phase: str
    """`waiting`, `train`, `attack`, `complete` or `failed`."""
    since: float
    """When the phase began, in seconds since 1970 by the run's clock."""
    done: int = 0
    total: int = 0
    """In images, counting an image once per epoch or per attack trajectory."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One start of `s3ta run` that had something to compute."""

    id: str
    state: State
    holder: Holder
    """The driver's process; its time is when the run began."""
    name: str
    """Of the experiment."""
    log: str
    """Where it writes, on its host."""
    result_version: int
    experiment: dict[str, Any]
    trials: list[dict[str, Any]]
    """`key`, `name`, `point` and `experiment` of each."""
    todo: list[str]
    """Keys of the trials that were not complete when it began."""
    heard: float
    """When it last said something."""
    standings: dict[str, Standing]
    """By the keys of `todo`."""
    errors: dict[str, str] = field(default_factory=dict)
    """Of trials that failed, by key; under "" what broke the run itself."""

    @property
    def host(self) -> str:
        return self.holder.host.split(" ")[0]

    def trial_name(self, key: str) -> str:
        return next((str(t["name"]) for t in self.trials if t["key"] == key), key)


def begun_name(run: str) -> str:
    return f"{FOLDER}/{run}/begun.json"


def beat_name(run: str, beat: int) -> str:
    return f"{FOLDER}/{run}/beat-{beat:06d}"


def ended_name(run: str) -> str:
    return f"{FOLDER}/{run}/ended.json"


def read_runs(storage: Storage) -> list[Run]:
    """All runs below this root, the oldest first; UserError for a damaged record."""
    names: dict[str, list[str]] = {}
    for name in storage.list(f"{FOLDER}/"):
        names.setdefault(name.split("/")[1], []).append(name)
    found = [_read(storage, run, of_run) for run, of_run in names.items()]
    return sorted((run for run in found if run), key=lambda run: (run.holder.time, run.id))


def _read(storage: Storage, run: str, names: list[str]) -> Run | None:
    """None for what is left of a run that is just being removed."""
    begun = _load(storage, begun_name(run)) if begun_name(run) in names else None
    if begun is None:
        return None
    beat = _latest_beat(storage, names)
    ended = _load(storage, ended_name(run)) if ended_name(run) in names else None
    try:
        holder, last = Holder(**begun["holder"]), ended or beat
        heard = float(last.get("time", holder.time))
        standings = last.get("trials", {})
        return Run(
            id=run,
            state=State(ended["state"]) if ended else _state(holder, heard),
            holder=holder,
            **{name: begun[name] for name in ("name", "log", "result_version")},
            **{name: begun[name] for name in ("experiment", "trials", "todo")},
            heard=heard,
            standings={key: Standing(**standing) for key, standing in standings.items()},
            errors=ended["errors"] if ended else {},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(storage, run, repr(error)) from error


def _latest_beat(storage: Storage, names: list[str]) -> dict[str, Any]:
    """The last one that is whole: beats are not made safe against a power loss."""
    for name in sorted((name for name in names if "/beat-" in name), reverse=True):
        with suppress(UserError):
            if (beat := _load(storage, name)) is not None:
                return beat
    return {}


def _state(holder: Holder, heard: float) -> State:
    if holder.is_dead():
        return State.dead
    return State.silent if time.time() - heard > SILENT_S else State.running


def _load(storage: Storage, name: str) -> dict[str, Any] | None:
    """None if it has just been deleted."""
    try:
        found = json.loads(storage.get(name))
    except NotStored:
        return None
    except StoreAwayError:
        raise
    except ValueError as error:
        raise _damaged(storage, name.split("/")[1], str(error)) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise _damaged(storage, name.split("/")[1], f"its format is not {FORMAT}")
    return found


def _damaged(storage: Storage, run: str, why: str) -> UserError:
    return UserError(
        f"{storage.uri(f'{FOLDER}/{run}')} is not the record of a run ({why}). Delete that folder: "
        "no result is in it."
    )


def find_run(runs: list[Run], word: str, root: str) -> Run:
    """The latest run that is meant by an id or its beginning, an experiment's name or a pid."""
    for found in (
        [run for run in runs if word in (run.id, run.name, str(run.holder.pid))],
        [run for run in runs if word and run.id.startswith(word)],
    ):
        if found:
            return found[-1]
    raise UserError(
        f"{word!r} names no run in {root}: it must be a run's id or its beginning, an experiment's "
        f"name or a process id. {_listed(runs)}"
    )


def find_trial(runs: list[Run], word: str, root: str) -> tuple[str, Run]:
    """The key of the trial that is meant by it or its beginning, and the latest run that had it
    to do, else the latest that knew it."""
    keys = {str(t["key"]) for run in runs for t in run.trials}
    long_enough = len(word) >= SHORTEST_KEY
    found = sorted(key for key in keys if key == word or (long_enough and key.startswith(word)))
    if len(found) != 1:
        what = f"the beginning of {len(found)} keys: {', '.join(found)}" if found else "no key"
        raise UserError(
            f"{word!r} is {what} of a trial that was run in {root}. It must be a trial's key, or "
            f"its first {SHORTEST_KEY} letters or more; `s3ta ps --all` shows the keys."
        )
    (key,) = found
    with_it = [run for run in runs if any(t["key"] == key for t in run.trials)]
    return key, max(with_it, key=lambda run: (key in run.todo, run.holder.time))


def _listed(runs: list[Run]) -> str:
    if not runs:
        return "There has been none: start one with `s3ta run FILE`."
    latest = "".join(f"\n  {run.id} ({run.state.name})" for run in reversed(runs[-5:]))
    return f"The latest are:{latest}"
