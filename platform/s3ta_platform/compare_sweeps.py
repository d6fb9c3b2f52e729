"""`s3ta compare A B` for two sweeps or versions: every number that moved beyond its interval.

Trials are matched by their names, and each pair is compared image by image (see compare): a number
has moved if the 95 % interval of its paired difference leaves out zero. Imports no torch.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from s3ta.errors import UserError
from s3ta_platform.attack_names import attack_title
from s3ta_platform.capsule import FOLDER
from s3ta_platform.compare import Comparison, Endpoint, compare_models
from s3ta_platform.compare_table import MEASURES
from s3ta_platform.references import Evaluated, evaluated_models
from s3ta_platform.storage import Storage, open_storage

EXPECTED = 0.05
"""Of numbers whose intervals leave out zero although nothing has moved."""


@dataclass(kw_only=True)
class SweepComparison:
    """What became of each trial."""

    moved: list[tuple[str, Endpoint]] = field(default_factory=list)
    """A trial's name, and a number that is another one in B."""
    compared: int = 0
    """Numbers."""
    same: list[str] = field(default_factory=list)
    """Trials whose models are the same to the last bit."""
    not_compared: dict[str, str] = field(default_factory=dict)
    """Trial -> why."""


def compare_if_sweeps(a: str, b: str, results: str, csv_file: Path | None) -> int | None:
    """Print what moved between two sweeps; gives the exit code, or None if they are none."""
    mine, yours = find_sweep(a, results), find_sweep(b, results)
    if mine is None or yours is None:
        return None
    if csv_file is not None:
        raise UserError(
            f"--csv is {csv_file}, and {a} and {b} are sweeps: it holds the numbers of two models. "
            "Leave it out, or name two models."
        )
    return _say(compare_sweeps(mine, yours))


def find_sweep(word: str, results: str) -> list[Evaluated] | None:
    """The evaluated models of a sweep's name, or of a results root that has several; else None."""
    if word.startswith("s3://") or Path(word).expanduser().is_dir():
        models = evaluated_models(open_storage(word))
        return models if len(models) > 1 else None
    storage = open_storage(results)
    keys = _trials_of(storage, word)
    return [m for m in evaluated_models(storage) if m.trial in keys] if keys else None


def _trials_of(storage: Storage, sweep: str) -> set[str]:
    """The keys that the capsules of a sweep's runs name."""
    keys: set[str] = set()
    for name in storage.list(f"{FOLDER}/{sweep}-") if _is_name(sweep) else ():
        capsule = json.loads(storage.get(name))
        if capsule["name"] == sweep:
            keys |= {trial["key"] for trial in capsule["trials"]}
    return keys


def _is_name(word: str) -> bool:
    """Whether an experiment can have this name (see schema.Experiment)."""
    return word[:1].isalnum() and all(c.isalnum() or c in "-_." for c in word)


def compare_sweeps(a: Sequence[Evaluated], b: Sequence[Evaluated]) -> SweepComparison:
    """Compare the trials of the same names."""
    found, yours = SweepComparison(), _by_name(b)
    for name, mine in _by_name(a).items():
        other = yours.pop(name, None)
        if other is None:
            found.not_compared[name] = "it is not in B"
        elif mine.digest == other.digest:
            found.same.append(name)
        else:
            _pair(name, mine, other, found)
    found.not_compared.update(dict.fromkeys(yours, "it is not in A"))
    return found


def _by_name(models: Sequence[Evaluated]) -> dict[str, Evaluated]:
    """Where several have one name, each has its key beside it."""
    names = [model.name for model in models]
    return {m.name if names.count(m.name) == 1 else f"{m.name} ({m.trial})": m for m in models}


def _pair(name: str, a: Evaluated, b: Evaluated, found: SweepComparison) -> None:
    try:
        comparison = compare_models(a, b)
    except UserError as error:
        found.not_compared[name] = str(error)
        return
    found.moved.extend((name, endpoint) for endpoint in moved(comparison))
    found.compared += len(comparison.endpoints)


def moved(comparison: Comparison) -> list[Endpoint]:
    """The numbers whose difference has an interval without zero."""
    return [e for e in comparison.endpoints if e.difference[1] > 0 or e.difference[2] < 0]


def _say(found: SweepComparison) -> int:
    """Print it; exit code 0, or 1 where nothing could be compared."""
    console = Console()
    for line in in_words(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0 if found.compared or found.same else 1


def in_words(found: SweepComparison) -> list[str]:
    """A line for every number that moved, then what did not, then what could not be compared."""
    lines = [_line(name, endpoint) for name, endpoint in found.moved]
    lines.append(
        f"{len(found.moved)} of {found.compared} numbers moved beyond their 95 % intervals "
        f"(paired, image by image; about {EXPECTED * found.compared:.0f} would if none had)."
    )
    if found.same:
        lines.append(f"The same model, to the last bit: {', '.join(found.same)}.")
    lines += [f"{name} is not compared: {why}" for name, why in found.not_compared.items()]
    return lines


def _line(name: str, e: Endpoint) -> str:
    where = f"{attack_title(e.attack)}, {e.steps:,} steps" if e.attack else "clean"
    d, low, high = (-100 * x for x in (e.difference[0], e.difference[2], e.difference[1]))
    return (
        f"{name}: {MEASURES[e.measure]}, {where}: {100 * e.of_a / e.images:.1f} -> "
        f"{100 * e.of_b / e.images:.1f} ({d:+.1f}, {low:+.1f} to {high:+.1f})"
    )
