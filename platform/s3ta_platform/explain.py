"""What is wrong with a setting, in words: where it stands, what it must be, what was likely meant.

Reads the schema's dataclasses, and the attributes of the errors that Hydra and OmegaConf raise.
"""

import re
import types
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from s3ta_platform.schema import Experiment

_VALUES = (
    r"Value '(.*)' of type '(?!str)",
    r"Value ('.*') of type",
    r"Invalid value ('.*'), expected",
    r"Value (.*) \(\w+\) is incompatible",
    r"value: (.*)$",
)
"""How OmegaConf quotes what it refuses."""

_SHAPES = {
    "Cannot merge DictConfig with ListConfig": (
        "a section stands where a [list] must, or a [list] where a section must. Correct it."
    ),
    "to Dict[str, Any]": (
        "an entry of sweep.points is no section. Write each one like {train.epochs: 2}."
    ),
}
"""What OmegaConf says of a wrong shape, without its place."""


def explain(
    error: BaseException, where: str, overrides: Sequence[str], folders: Sequence[Path]
) -> str:
    """One message for an error of composition. `where` names the file or the sweep's point.

    folders: where groups (model/, data/, ...) are looked for.
    """
    cause, text = _cause(error), str(error)
    key = _key(cause)
    group: str = getattr(error, "missing_cfg_file", None) or ""
    if inside := re.match(r"In '(.+/.+)':", text):
        where = f"{where}, in {inside[1]}.yaml"
    elif not text.startswith("In '") or group:
        where = blame(group.partition("/")[0] or key, where, overrides)
    if group:
        return f"{where}: {_no_choice(group, getattr(error, 'options', None) or [], folders)}"
    if (found := re.match(r"Could not override '([^']+)'", text)) and not key:
        where = blame(found[1], where, overrides)
        return f"{where}: {_no_default(found[1], text)}"
    return f"{where}: {_setting(cause, key)}"


def _cause(error: BaseException) -> BaseException:
    """OmegaConf's error, which knows the key, behind Hydra's."""
    chain = [e for e in (error, error.__cause__, error.__context__) if hasattr(e, "full_key")]
    known = [e for e in chain if e is not None]
    return max(known, key=lambda e: bool(getattr(e, "full_key", "")), default=error)


def _key(cause: BaseException) -> str:
    """The setting's full name; OmegaConf leaves out where a list of sections stands."""
    key: str = getattr(cause, "full_key", None) or ""
    kind = getattr(cause, "object_type", None)
    if not key or not is_dataclass(kind) or kind is Experiment or "." in key:
        return key
    section = _section_of(getattr(kind, "__name__", ""))
    return f"{section}.{key}" if section and type_at(key) is None else key


def blame(key: str, where: str, overrides: Sequence[str]) -> str:
    """The override that set a key, or else `where`."""
    bare = key.partition("[")[0]
    for text in reversed(overrides):
        own = text.partition("=")[0]
        same = bare in (own, own.partition("@")[0]) or own.startswith(f"{bare}.")
        if bare and (same or bare.startswith(f"{own}.")):
            return f"override {text!r}"
    return where


def unknown_key(path: str, entries: Sequence[str] = ()) -> str:
    """A key such as `train.epoch` that does not exist; `entries` are a free section's own."""
    section, _, name = path.rpartition(".")
    known = list(_entries(type_at(section))) or list(entries)
    near = _near(section, name, known)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    return (
        f"{path} is no setting.{meant} {section or 'An experiment'} has: "
        f"{', '.join(known) or 'no entry'}."
    )


def yaml_message(error: yaml.YAMLError, where: str) -> str:
    """Where a file is no YAML, and why."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    place = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
    return f"{place}: this is no valid YAML ({problem}). Correct it there or just above."


def type_at(path: str) -> Any:
    """The type of a setting; None if the path leads nowhere."""
    kind: Any = Experiment
    head, grid, axis = path.partition("sweep.grid.")  # the axis itself has dots
    names = ["sweep", "grid", axis] if grid and not head else path.replace("[", ".[").split(".")
    for name in names if path else []:
        kind = _without_none(kind)
        if is_dataclass(kind) or (get_origin(kind) is list and not name.startswith("[")):
            kind = _entries(kind).get(name)
        else:
            kind = get_args(kind)[-1] if get_origin(kind) in (dict, list) else None
    return kind


def in_words(kind: Any) -> str:
    """A type as a person says it."""
    bare = _without_none(kind)
    if bare is not kind:
        return f"{in_words(bare)}, or null"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(kind.__members__)}"
    if is_dataclass(kind):
        return f"a section with any of {', '.join(_entries(kind))}"
    if get_origin(kind) is list:
        noun, *more = in_words(get_args(kind)[0]).removeprefix("a ").split(" with ")
        return " with ".join([f"a [list] of {noun}s", *more])
    if get_origin(kind) is dict:
        return "a section of named entries"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return words.get(kind, "a value")


def _setting(cause: BaseException, key: str) -> str:
    """What OmegaConf objects to, said with the schema's names."""
    text = str(cause).splitlines()[0].rstrip(".")
    if re.match(r"Key '.*' (not in|is not in struct)", text):
        parent = getattr(cause, "parent_node", None)
        unknown = unknown_key(key, [str(k) for k in parent] if parent is not None else ())
        if key.startswith("evaluate.attacks.") and key.count(".") == 2:
            unknown += f" To add one write '- attack@{key}: small_pgd' into the defaults list."
        return unknown
    if found := re.match(r"Interpolation key '(.*)' not found", text):
        return (
            f"{key} refers to ${{{found[1]}}}, which is no setting. Write the full key, as in "
            "${train.epochs}, or the value itself."
        )
    if found := re.search(r"is not a subclass of (\w+)", text):
        key = key or _section_of(found[1])
    if found := re.match(r"Key (.+) \(.*is incompatible", text):
        return f"{key}: the key {found[1]} is no text. Write a setting's name there."
    if words := next((words for said, words in _SHAPES.items() if said in text), None):
        return words
    if (kind := type_at(key)) is None:
        return f"{text[0].lower()}{text[1:]} ({key}). Change it there." if key else f"{text}."
    return f"{key} is {_value(cause, text)}, but must be {in_words(kind)}. Change it there."


def _value(cause: BaseException, text: str) -> str:
    quoted = next((found[1] for p in _VALUES if (found := re.search(p, text))), None)
    if quoted is None and "not Optional" in text:
        return "null"
    return quoted if quoted is not None else str(getattr(cause, "value", None))


def _no_choice(missing: str, options: Sequence[str], folders: Sequence[Path]) -> str:
    """`model: foo`, where there is no model/foo.yaml."""
    group, _, choice = missing.rpartition("/")
    if not options:
        known = {*_entries(Experiment), "attack"}  # other folders hold experiment files
        here = [p for f in folders for p in f.iterdir() if any(p.glob("*.yaml"))]
        groups = sorted({p.name for p in here} & known)
        meant = _meant(get_close_matches(group or missing, groups, n=1))
        return f"there is no group {group or missing!r}.{meant} There are: {', '.join(groups)}."
    meant = _meant(get_close_matches(choice, options, n=2))
    return f"there is no {missing}.yaml.{meant} {group} is one of: {', '.join(options)}."


def _no_default(key: str, text: str) -> str:
    """`attack=small_pgd`, where the defaults list has no entry of that name."""
    if found := re.search(r"Did you mean to override (.+)\?", text):
        return f"the defaults list has no entry {key}. Write {found[1]}=NAME instead."
    return (
        f"the defaults list has no entry {key}, so it cannot be chosen here. "
        f"Add '- {key}: NAME' to the list, or set single values such as {key}.KEY=VALUE."
    )


def _meant(near: Sequence[str]) -> str:
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _near(section: str, name: str, known: Sequence[str]) -> list[str]:
    """Full keys: siblings written alike, else settings of that name in other sections."""
    if siblings := get_close_matches(name, known, n=2, cutoff=0.7):
        return [f"{section}.{s}" if section else s for s in siblings]
    return [path for path, _ in _all_paths() if path.rpartition(".")[2] == name][:3]


def _section_of(class_name: str) -> str:
    """The path of the section that a dataclass describes, such as `train` for TrainSettings."""
    for path, kind in _all_paths():
        one = get_args(kind)[0] if get_origin(kind) is list else kind
        if getattr(one, "__name__", "") == class_name:
            return path
    return ""


def _entries(kind: Any) -> dict[str, Any]:
    """A section's settings and their types; of a list, those of its sections."""
    kind = _without_none(kind)
    kind = get_args(kind)[0] if get_origin(kind) is list else kind
    if not is_dataclass(kind):
        return {}
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind)}


def _all_paths(start: str = "", kind: Any = Experiment) -> list[tuple[str, Any]]:
    found = []
    for name, entry in _entries(kind).items():
        found.append((start + name, _without_none(entry)))
        found += _all_paths(f"{start}{name}.", entry)
    return found


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        some = [k for k in get_args(kind) if k is not type(None)]
        return some[0] if len(some) == 1 else kind
    return kind
