"""Records of runs made by hand."""

import json
import time
from typing import Any

from s3ta_platform.leases import this_process
from s3ta_platform.record import RESULT_VERSION
from s3ta_platform.runs import FORMAT, beat_name, begun_name, ended_name
from s3ta_platform.storage import Storage

KEYS = ("a" * 16, "b" * 16)


def put_run(
    storage: Storage,
    run: str,
    *,
    name: str = "made",
    state: str | None = None,
    holder: dict[str, Any] | None = None,
    heard_s: float = 0.0,
    begun_s: float = 3600.0,
    todo: tuple[str, ...] = KEYS,
    version: int = RESULT_VERSION,
    log: str = "/nowhere/x.log",
    trials: dict[str, Any] | None = None,
    errors: dict[str, str] | None = None,
) -> None:
    """A run of two trials that began an hour ago, and was heard just now unless it says else."""
    now = time.time()
    who = {**vars(this_process(run)), "time": now - begun_s, **(holder or {})}
    begun = {
        "holder": who,
        "name": name,
        "log": log,
        "result_version": version,
        "experiment": {"name": name},
        "trials": [
            {"key": key, "name": f"model {key[0]}", "point": {}, "experiment": {}} for key in KEYS
        ],
        "todo": list(todo),
    }
    _put(storage, begun_name(run), begun)
    news = {"time": now - heard_s, "trials": trials or {}}
    if state is None:
        _put(storage, beat_name(run, 7), {"time": 0.0, "trials": {}})
        _put(storage, beat_name(run, 8), news)
    else:
        _put(storage, ended_name(run), {"state": state, "errors": errors or {}, **news})


def _put(storage: Storage, name: str, content: dict[str, Any]) -> None:
    storage.put_new(name, json.dumps({"format": FORMAT, **content}).encode())
