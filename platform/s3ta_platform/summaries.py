"""From per-example rows to the numbers of a report, as counts with their intervals.

Definitions: `top1@n` is the share of images classified right at step n of the attack, `success@n`
the share predicted as the attacker's target there, `nominal` the share right without an attack;
`any_error@n` and `any_target@n` are the shares of which that happened at some step from 0 to n. An
image withstands an attack of several starts if it withstands it from all of them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from s3ta.statistics import wilson
from s3ta_platform.attack_names import SAME_TARGET, WORST, any_step
from s3ta_platform.published import NOTHING, SYSTEMS, Published
from s3ta_platform.results import TrialResult

DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Share:
    """A proportion as the two counts it comes from."""

    successes: int
    total: int
    population: int | None = None
    """All the images there are, where only a random sample of them was attacked."""

    @property
    def value(self) -> float:
        """In [0, 1]; NaN without data."""
        return self.successes / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson 95 % interval, in [0, 1]."""
        return wilson(self.successes, self.total, self.population)

    @property
    def percent(self) -> str:
        """Such as `71.5`."""
        return f"{100 * self.value:.1f}" if self.total else DASH

    @property
    def range(self) -> str:
        """The interval in percent, such as `67.4-75.2` (with an en dash)."""
        low, high = self.interval
        return f"{100 * low:.1f}{DASH}{100 * high:.1f}" if self.total else ""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one attack had done to one model after `steps` steps."""

    attack: str
    steps: int
    targeted: bool
    top1: Share
    success: Share
    any_error: Share = Share(0, 0)
    """Wrong at some step so far; empty where `top1` or `success` says that already."""
    any_target: Share = Share(0, 0)
    """Taken for the target at some step so far; empty without one."""

    @property
    def measures(self) -> dict[str, Share]:
        """By name, those that there are."""
        names = ("top1", "success", "any_error", "any_target")
        shares = {name: getattr(self, name) for name in names}
        return {name: share for name, share in shares.items() if share.total}


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """All attacks of one epsilon together, each at its last reading."""

    epsilon_255: str
    attacks: tuple[str, ...]
    top1: Share
    """Right under every one of them."""
    success: Share
    """Predicted as the same random target under any of those that have it; empty for less than two
    such attacks."""

    @property
    def attack(self) -> str:
        """How it is called where attacks have names."""
        return f"{WORST}_eps{self.epsilon_255}"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One trial in numbers. `readings` are sorted by attack and step."""

    key: str
    name: str
    parameters: int
    unroll: int | None
    nominal: Share
    readings: tuple[Reading, ...]
    worst_cases: tuple[WorstCase, ...] = ()
    """One per epsilon at which there were several attacks."""
    published: Published = NOTHING
    """What the paper says of this system."""

    def at(self, attack: str, steps: int) -> Reading | None:
        """The reading of that attack at that step, or None if there is none."""
        found = (r for r in self.readings if (r.attack, r.steps) == (attack, steps))
        return next(found, None)


def summarise(trial: TrialResult) -> Summary:
    """Count one trial's per-example rows."""
    rows = _worst_of_starts(trial.rows)
    population = None if trial.halfwidth is None else trial.planned
    # Every trajectory repeats the clean prediction. Should two kinds of machine disagree on an
    # image it counts as wrong, so that the number doesn't depend on the order of the rows.
    images = rows.group_by("image_id").aggregate([("was_right", "all")])["was_right_all"]
    return Summary(
        key=trial.key,
        name=trial.name,
        parameters=trial.parameters,
        unroll=trial.unroll,
        nominal=Share(sum(images.to_pylist()), len(images), population),
        readings=tuple(sorted(_readings(rows, population), key=lambda r: (r.attack, r.steps))),
        worst_cases=tuple(_worst_cases(rows, population)),
        published=SYSTEMS.get(trial.published, NOTHING),
    )


def _worst_of_starts(rows: pa.Table) -> pa.Table:
    """One row per attack, reading and image, which is right if it is right from every start."""
    was_right = pc.equal(rows["clean_prediction"], rows["label"])
    rows = rows.append_column("was_right", was_right)
    lost = pc.not_equal(rows["quarantined"], "")
    for kind in ("error", "target"):
        happened = pc.or_(pc.greater_equal(rows[f"first_{kind}_step"], 0), lost)
        rows = rows.append_column(f"any_{kind}", happened)
    columns = {"correct": "all", "was_right": "all", "fooled": "any", "target": "min"}
    columns |= {"any_error": "any", "any_target": "any"}
    starts = [("restart", "count"), ("restart", "count_distinct")]
    worst = rows.group_by(["attack", "step", "image_id"]).aggregate([*columns.items(), *starts])
    twice = pc.greater(worst["restart_count"], worst["restart_count_distinct"])
    for row in worst.filter(twice).slice(0, 1).to_pylist():
        raise AssertionError(f"image counted twice: {row['attack']} at step {row['step']}")
    worst = worst.drop_columns(["restart_count", "restart_count_distinct"])
    worst = worst.rename_columns({f"{name}_{how}": name for name, how in columns.items()})
    return worst.append_column("broken", pc.and_not(worst["was_right"], worst["correct"]))


def _readings(rows: pa.Table, population: int | None) -> Iterable[Reading]:
    counts = [("image_id", "count"), ("target", "min")]
    names = ("correct", "fooled", "was_right", "broken", "any_error", "any_target")
    sums = [(name, "sum") for name in names]
    for group in rows.group_by(["attack", "step"]).aggregate(counts + sums).to_pylist():
        total, targeted = group["image_id_count"], group["target_min"] >= 0
        # Without a target, success is the share of images turned from right to wrong.
        successes, of = (group["fooled_sum"], total) if targeted else _broken(group)
        top1 = Share(group["correct_sum"], total, population)
        yield Reading(
            attack=group["attack"],
            steps=group["step"],
            targeted=targeted,
            # An attack that stops at its goal, a target, says nothing of other wrong answers.
            top1=Share(0, 0) if targeted and any_step(group["attack"]) else top1,
            success=Share(successes, of, population if targeted else None),
            **_any_step_measures(group, targeted, population),
        )


def _any_step_measures(
    group: dict[str, Any], targeted: bool, population: int | None
) -> dict[str, Share]:
    """None for an attack that leaves an image at its goal: its numbers are any-step anyway."""
    if any_step(group["attack"]):
        return {}
    kinds = ("any_error", "any_target") if targeted else ("any_error",)
    return {k: Share(group[f"{k}_sum"], group["image_id_count"], population) for k in kinds}


def _worst_cases(rows: pa.Table, population: int | None) -> Iterable[WorstCase]:
    groups: dict[str, list[pa.Table]] = {}
    for attack in sorted(pc.unique(rows["attack"]).to_pylist()):
        own = rows.filter(pc.equal(rows["attack"], attack))
        last = own.filter(pc.equal(own["step"], pc.max(own["step"])))
        groups.setdefault(attack.rpartition("_eps")[2], []).append(last)
    for epsilon, tables in groups.items():
        if len(tables) < 2:
            continue
        right = _together(tables, "correct", "all")
        shared = [t for t in tables if SAME_TARGET in t["attack"][0].as_py()]
        fooled = _together(shared, "fooled", "any") if len(shared) > 1 else []
        yield WorstCase(
            epsilon_255=epsilon,
            attacks=tuple(t["attack"][0].as_py() for t in tables),
            top1=Share(sum(right), len(right), population),
            success=Share(sum(fooled), len(fooled), population if fooled else None),
        )


def _together(tables: Sequence[pa.Table], column: str, how: str) -> list[bool]:
    """Per image, over several attacks."""
    merged = pa.concat_tables(tables).group_by("image_id").aggregate([(column, how)])
    flags: list[bool] = merged[f"{column}_{how}"].to_pylist()
    return flags


def _broken(group: dict[str, int]) -> tuple[int, int]:
    return group["broken_sum"], group["was_right_sum"]


def reading_keys(summaries: Iterable[Summary]) -> list[tuple[str, int]]:
    """All (attack, steps) of these trials, sorted."""
    return sorted({(r.attack, r.steps) for summary in summaries for r in summary.readings})


def worst_case_names(summaries: Iterable[Summary]) -> list[str]:
    """Of all epsilons, sorted."""
    return sorted({w.attack for summary in summaries for w in summary.worst_cases})
