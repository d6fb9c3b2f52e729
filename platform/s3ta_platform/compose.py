"""An experiment file and its overrides -> typed experiments, one per trial. Hydra stays in here.

A file anywhere on disk finds the packaged groups (model/, attack/, data/, ...): its own folder
comes first, then theirs.
"""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s3ta.errors import UserError
from s3ta_platform.schema import Experiment

SCHEMA = "schema"
"""The name under which an experiment file's defaults list pulls in the typed schema."""


@dataclass(frozen=True)
class Trial:
    """One point of a sweep."""

    point: dict[str, Any]
    experiment: Experiment


@dataclass(frozen=True)
class Composed:
    """A whole experiment file: what is common, and its trials in order."""

    experiment: Experiment
    trials: list[Trial]


def groups_folder() -> Path:
    """Where the packaged YAML lies: inside a wheel, or in the checkout's experiments/."""
    inside = Path(__file__).parent / "experiments"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "experiments"


def compose(file: Path, overrides: Sequence[str] = ()) -> Composed:
    """Read an experiment file; UserError for everything that is wrong with it or the overrides."""
    ConfigStore.instance().store(name=SCHEMA, node=Experiment)
    path = file.resolve()
    if not path.is_file():
        raise UserError(f"{file}: no such experiment file. Name a YAML file.")
    _check_overrides(overrides)
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(path.parent)):
            base = _compose_one(path, overrides)
            points = _points(base, overrides)
            trials = [
                Trial(point, _compose_one(path, [*_as_overrides(point), *overrides]))
                for point in points
            ]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(file, error)) from error
    return Composed(base, trials)


def _compose_one(path: Path, overrides: Sequence[str]) -> Experiment:
    searchpath = f"hydra.searchpath=[file://{groups_folder()}]"
    config = hydra_compose(config_name=path.stem, overrides=[searchpath, *overrides])
    if OmegaConf.get_type(config) is not Experiment:
        raise UserError(
            f"{path.name} is not typed: its defaults list must begin with '- {SCHEMA}'. "
            "Add that line."
        )
    return _typed(config)


def _typed(config: DictConfig) -> Experiment:
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(
            f"{missing[0]} has no value: it must be set in the experiment file, "
            f"or on the command line as {missing[0]}=VALUE."
        )
    experiment = OmegaConf.to_object(config)
    assert isinstance(experiment, Experiment)
    return experiment


def _check_overrides(overrides: Sequence[str]) -> None:
    """Only plain `key=value`: `+new=1` would be accepted and silently dropped."""
    for text in overrides:
        if text.startswith(("+", "~")) or "=" not in text:
            raise UserError(
                f"Override {text!r} must have the form key=value, for a key that the schema has. "
                "Remove the leading '+' or '~', or add '=' and a value."
            )
    OverridesParser.create().parse_overrides(list(overrides))


def _points(base: Experiment, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """The sweep's points; an axis can't be overridden as if it were a common value."""
    grid = base.sweep.grid
    points = base.sweep.points or [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    axes = {key for point in points for key in point}
    for text in overrides:
        key = text.split("=", 1)[0]
        if key in axes:
            raise UserError(
                f"Override {text!r}: {key} is an axis of this sweep. "
                "Change sweep.grid or sweep.points instead."
            )
    return points


def _as_overrides(point: dict[str, Any]) -> list[str]:
    def text(value: Any) -> str:
        if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value):
            return value
        return json.dumps(value)

    # Group choices first: they bring the keys that the other overrides change.
    return [f"{key}={text(point[key])}" for key in sorted(point, key=lambda k: ("." in k, k))]


def _explain(file: Path, error: Exception) -> str:
    """The library's own message, with the cause it hides, on few lines."""
    parts = [str(error)]
    cause = error.__cause__
    while cause is not None:
        parts.append(str(cause))
        cause = cause.__cause__
    lines = [line.strip() for part in parts for line in part.splitlines()]
    kept = [line for line in dict.fromkeys(lines) if line and not line.startswith("object_type")]
    return f"{file}: " + "\n  ".join(kept) + "\n  Correct the file or the override."
