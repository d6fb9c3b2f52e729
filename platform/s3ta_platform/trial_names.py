"""What a reader calls the trials of a sweep."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from s3ta_platform.compose import Trial


def trial_names(trials: list[Trial]) -> list[str]:
    """The models' names, in order; where two agree, with the settings that tell them apart."""
    plain = [t.experiment.model.name for t in trials]
    varying = {
        key
        for t in trials
        for key in t.point
        if len({repr(other.point.get(key)) for other in trials}) > 1
    }
    short = _told_apart(trials, plain, varying - {"model", "model.unroll"})
    return short if len(set(short)) == len(short) else _told_apart(trials, plain, varying)


def _told_apart(trials: list[Trial], plain: list[str], by: set[str]) -> list[str]:
    counts = Counter(plain)

    def full(trial: Trial, name: str) -> str:
        values = {k: _short(trial.point[k]) for k in trial.point if k in by}
        parts = [f"{key.removeprefix('train.')}={value}" for key, value in values.items()]
        return ", ".join([name, *parts])

    return [full(t, n) if counts[n] > 1 else n for t, n in zip(trials, plain, strict=True)]


def _short(value: Any) -> str:
    """A curriculum as `4-8-16`, with slashes where a stage changes more than one thing."""
    if value == []:
        return "none"
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        return str(value)
    changes = ([v for k, v in stage.items() if k != "from_epoch"] for stage in value)
    return "-".join("/".join(map(str, stage)) or "0" for stage in changes)
