"""An experiment file and its overrides -> typed experiments, one per trial. Hydra stays in here.

A file anywhere on disk finds the packaged groups (model/, attack/, data/, ...): its own folder
comes first, then theirs.
"""

import itertools
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s3ta.errors import UserError
from s3ta_platform.explain import blame, explain, unknown_key, yaml_message
from s3ta_platform.schema import Experiment

NO_GROUPS = ("name", "results")
"""Settings that Hydra would take for groups where a folder of that name lies beside the file."""
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
    _check_file(file)
    path = file.resolve()
    for text in overrides:
        _check_override(text, f"override {text!r}")
    with initialize_config_dir(version_base="1.3", config_dir=str(path.parent)):
        with _explained(str(file), path, overrides):
            base = _compose_one(path, overrides)
        trials = []
        for index, point in enumerate(_points(base, overrides)):
            where = f"{file}, {_name_of(base, index, point)}"
            as_overrides = _as_overrides(point)
            for text in as_overrides:
                _check_override(text, f"{where}: {text!r}")
            with _explained(where, path, overrides):
                trials.append(Trial(point, _compose_one(path, [*as_overrides, *overrides])))
    return Composed(base, trials)


def restore(settings: Mapping[str, Any], where: str) -> Experiment:
    """A composed experiment from its plain values (record.plain); `where` names their place."""
    try:
        config = OmegaConf.merge(OmegaConf.structured(Experiment), OmegaConf.create(dict(settings)))
        assert isinstance(config, DictConfig)
        return _typed(config)
    except (UserError, OmegaConfBaseException) as error:
        raise UserError(
            f"{where} holds settings that this version does not take ({error}): run the experiment "
            "file itself."
        ) from error


def _compose_one(path: Path, overrides: Sequence[str]) -> Experiment:
    folder = json.dumps(f"file://{groups_folder()}", ensure_ascii=False)
    single = [text for text in overrides if text.split("=", 1)[0] in NO_GROUPS]
    others = [text for text in overrides if text not in single]
    with warnings.catch_warnings():
        # A file without `_self_` is as good as one that ends its defaults with it.
        warnings.filterwarnings("ignore", message=".*missing `_self_`.*")
        config = hydra_compose(
            config_name=path.stem, overrides=[f"hydra.searchpath=[{folder}]", *others]
        )
    for override in OverridesParser.create().parse_overrides(single):
        OmegaConf.update(config, override.key_or_group, override.value())
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(
            f"{missing[0]} has no value: it must be set in the experiment file, "
            f"or on the command line as {missing[0]}=VALUE."
        )
    return _typed(config)


def _typed(config: DictConfig) -> Experiment:
    experiment = OmegaConf.to_object(config)
    assert isinstance(experiment, Experiment)
    return experiment


def _check_file(file: Path) -> None:
    """What can be said better here than by a library that reads the file later."""
    if file.is_dir():
        raise UserError(f"{file} is a folder: name an experiment file, one with the ending .yaml.")
    if not file.is_file():
        raise UserError(f"There is no experiment file {file}: name a YAML file that exists.")
    if file.suffix != ".yaml" or file.stem == SCHEMA:
        raise UserError(
            f"{file} has an unusable name: it must end in .yaml and not be {SCHEMA}.yaml. "
            "Rename it."
        )
    try:
        with file.open(encoding="utf-8") as stream:
            content = yaml.safe_load(stream)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as UTF-8 text ({error}). Correct it.") from error
    except yaml.YAMLError as error:
        raise UserError(yaml_message(error, str(file))) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{file} is {'empty' if content is None else 'no mapping'}: it must hold "
            "'key: value' lines, first a list 'defaults' that "
            f"begins with '- {SCHEMA}'. Copy experiments/quickstart.yaml to start with."
        )
    if "hydra" in content:
        raise UserError(f"{file}: {unknown_key('hydra')}")
    defaults = content.get("defaults")
    listed = [d for d in defaults if d != "_self_"] if isinstance(defaults, list) else []
    if not listed or listed[0] != SCHEMA:
        raise UserError(
            f"{file} is not typed: its list 'defaults' must begin with '- {SCHEMA}'. Add that line."
        )


def _check_override(text: str, where: str) -> None:
    """Only plain `key=value`: `+new=1` would be accepted and silently dropped."""
    if text.startswith(("+", "~")) or "=" not in text:
        raise UserError(
            f"{where} must have the form key=value, for a key that the schema has. "
            "Remove the leading '+' or '~', or add '=' and a value."
        )
    try:
        parsed = OverridesParser.create().parse_overrides([text])[0]
    except OverrideParseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{where} cannot be read ({reason}): it must be key=value with a number, a word, a "
            "quoted text or a [list]. Close every bracket and quote, and quote it for the shell: "
            "'train.decay_epochs=[1,2]'."
        ) from error
    if parsed.is_sweep_override():
        raise UserError(
            f"{where} has several values: an override sets one. For a list write "
            f"{parsed.get_key_element()}=[...]; to vary it use sweep.grid in the experiment file."
        )
    if re.split(r"[./@]", parsed.key_or_group)[0] == "hydra":
        raise UserError(f"{where}: {unknown_key('hydra')}")
    if (groups_folder() / parsed.key_or_group).is_dir() and not isinstance(parsed.value(), str):
        raise UserError(
            f"{where}: {parsed.key_or_group} chooses a file by its name, such as "
            f"{parsed.key_or_group}=NAME. For single values write {parsed.key_or_group}.KEY=VALUE."
        )


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
                f"override {text!r}: {key} is varied by this sweep, so it has no common value. "
                "Change sweep.grid or sweep.points instead."
            )
    return points


def _name_of(base: Experiment, index: int, point: dict[str, Any]) -> str:
    """Where a reader finds a point."""
    if base.sweep.points:
        return f"sweep.points, entry {index + 1}"
    return f"sweep.grid at {', '.join(_as_overrides(point))}"


def _as_overrides(point: Mapping[str, Any]) -> list[str]:
    flat = dict(_flat(point))
    # Group choices first: they bring the keys that the other overrides change.
    return [f"{key}={_text(flat[key])}" for key in sorted(flat, key=lambda k: ("." in k, k))]


def _flat(point: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """`{train: {epochs: 2}}` is `{train.epochs: 2}`."""
    for key, value in point.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{start}{key}.")
        else:
            yield start + str(key), value


def _text(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value):
        return value
    return _nested(value)


def _nested(value: Any) -> str:
    """As JSON, but a section's keys stand without quotes, as Hydra reads them."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_nested(entry)}' for key, entry in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_nested, value))}]"
    return json.dumps(value, ensure_ascii=False)


@contextmanager
def _explained(where: str, file: Path, overrides: Sequence[str]) -> Iterator[None]:
    """Turns what the libraries raise, and the schema's own checks, into one located message."""
    try:
        yield
    except UserError as error:
        guilty = blame(str(error).partition(" is ")[0], where, overrides)
        raise UserError(f"{guilty}: {error}") from error
    except yaml.YAMLError as error:  # in a group's file
        raise UserError(yaml_message(error, where)) from error
    except (HydraException, OmegaConfBaseException) as error:
        folders = (file.resolve().parent, groups_folder())
        raise UserError(explain(error, where, overrides, folders)) from error
