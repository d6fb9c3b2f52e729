"""Why a trial is new: in which settings it differs from the stored trial that is nearest to it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from s3ta_platform.plan import TrialPlan
from s3ta_platform.record import plain
from s3ta_platform.storage import Storage
from s3ta_platform.trials import trial_folder

SHOWN = 4
"""Differences that are named."""
ABSENT = "nothing"

Settings = dict[str, Any]
"""By their full names, such as `train.attack.steps`."""


def parts_name(key: str) -> str:
    return f"{trial_folder(key)}/settings.json"


def write_parts(storage: Storage, trial: TrialPlan) -> None:
    """Store what the trial's key is a digest of, unless it is there."""
    storage.put_new(parts_name(trial.key), json.dumps(plain(trial.parts), indent=1).encode())


def stored_settings(storage: Storage) -> dict[str, Settings]:
    """Of all trials below this root that were ever begun, by key."""
    found = {}
    for name in storage.list("trials/"):
        key = name.split("/")[1]
        if name == parts_name(key):
            try:
                found[key] = dict(_flat(json.loads(storage.get(name))))
            except ValueError:  # damaged: it only explains
                continue
    return found


def why_new(trial: TrialPlan, stored: Mapping[str, Settings]) -> str:
    """In words, beside what is stored, one trial at least; empty if it was begun before."""
    if trial.key in stored:
        return ""
    own = dict(_flat(plain(trial.parts)))
    nearest = {key: differences(own, settings) for key, settings in stored.items()}
    key = min(nearest, key=lambda other: (len(nearest[other]), other))
    found = nearest[key]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"new: {', '.join(found[:SHOWN])}{more} (beside {key}, the nearest that is stored)"


def differences(own: Settings, other: Settings) -> list[str]:
    """`train.seed is 1, not 0` for every setting that differs, by name."""
    names = sorted(own.keys() | other.keys())
    return [
        f"{name} is {own.get(name, ABSENT)}, not {other.get(name, ABSENT)}"
        for name in names
        if own.get(name, ABSENT) != other.get(name, ABSENT)
    ]


def _flat(value: Any, start: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value under its full name; a list is one value unless it holds sections."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _flat(entry, f"{start}.{name}" if start else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, entry in enumerate(value):
            yield from _flat(entry, f"{start}[{index}]")
    else:
        yield start, value
