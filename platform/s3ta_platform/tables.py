"""From per-example rows to the numbers of a report: shares, a table for the terminal, a CSV file.

Definitions: `top1@n` is the share of images classified right at step n of the attack, `success@n`
the share predicted as the attacker's target there, `nominal` the share right without an attack.
"""

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from s3ta.statistics import wilson
from s3ta_platform.remarks import remarks
from s3ta_platform.results import SweepResult, TrialResult

DASH = "\N{EN DASH}"
COLUMNS = "model key measure attack steps value low high successes total population"
READINGS_SIDE_BY_SIDE = 3
"""More readings than this don't fit beside one another in 100 columns."""
UNTIL = "_until_success"
MAIN_STEP = 16
"""From this many steps on, the step size of PGD no longer depends on the number of steps."""


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


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One trial in numbers. `readings` are sorted by attack and step."""

    key: str
    name: str
    parameters: int
    unroll: int | None
    nominal: Share
    readings: tuple[Reading, ...]

    def at(self, attack: str, steps: int) -> Reading | None:
        """The reading of that attack at that step, or None if there is none."""
        found = (r for r in self.readings if (r.attack, r.steps) == (attack, steps))
        return next(found, None)


def summarise(trial: TrialResult) -> Summary:
    """Count one trial's per-example rows."""
    rows = trial.rows
    was_right = pc.equal(rows["clean_prediction"], rows["label"])
    rows = rows.append_column("was_right", was_right)
    rows = rows.append_column("broken", pc.and_not(was_right, rows["correct"]))
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
    )


def _readings(rows: pa.Table, population: int | None) -> Iterable[Reading]:
    counts = [("image_id", "count"), ("image_id", "count_distinct"), ("target", "min")]
    sums = [(name, "sum") for name in ("correct", "fooled", "was_right", "broken")]
    for group in rows.group_by(["attack", "step"]).aggregate(counts + sums).to_pylist():
        total, where = group["image_id_count"], f"{group['attack']} at step {group['step']}"
        assert total == group["image_id_count_distinct"], f"an image is counted twice: {where}"
        targeted = group["target_min"] >= 0
        # Without a target, success is the share of images turned from right to wrong.
        successes, of = (group["fooled_sum"], total) if targeted else _broken(group)
        top1 = Share(group["correct_sum"], total, population)
        yield Reading(
            attack=group["attack"],
            steps=group["step"],
            targeted=targeted,
            # An attack that stops at its goal, a target, says nothing of other wrong answers.
            top1=Share(0, 0) if targeted and until_success(group["attack"]) else top1,
            success=Share(successes, of, population if targeted else None),
        )


def _broken(group: dict[str, int]) -> tuple[int, int]:
    return group["broken_sum"], group["was_right_sum"]


def reading_keys(summaries: Iterable[Summary]) -> list[tuple[str, int]]:
    """All (attack, steps) of these trials, sorted."""
    return sorted({(r.attack, r.steps) for summary in summaries for r in summary.readings})


def has_own_step_size(attack: str, steps: int) -> bool:
    """Whether a reading comes from a run of its own, with larger steps than the main trajectory.

    PGD moves by epsilon * max(1/16, 1/n) per step: below 16 steps smaller ones couldn't cross the
    ball.
    """
    return "pgd" in attack.lower() and 0 < steps < MAIN_STEP


def attack_title(attack: str) -> str:
    """`pgd_targeted_eps25.5` as a reader would write it: `targeted PGD, ε = 25.5/255`."""
    parts = re.fullmatch(r"([a-z0-9]+)((?:_[a-z0-9]+)*)_eps([0-9.]+)", attack)
    if parts is None:
        return attack.replace("_", " ")
    family, words, epsilon = parts.groups()
    words, until = words.removesuffix(UNTIL), " until success" if words.endswith(UNTIL) else ""
    return f"{words.replace('_', ' ')} {family.upper()}{until}, ε = {epsilon}/255".strip()


def until_success(attack: str) -> bool:
    """Whether this attack leaves an image alone once its goal is met."""
    return f"{UNTIL}_" in attack


def short_count(number: int) -> str:
    """Three digits or so: `912`, `148 k`, `60.2 M`."""
    if number < 1000:
        return str(number)
    return f"{number / 1e3:.0f} k" if number < 999_500 else f"{number / 1e6:.1f} M"


def terminal_table(sweep: SweepResult) -> Table:
    """The headline: one model per line, or one section per reading where there are many."""
    summaries = [summarise(trial) for trial in sweep.trials]
    keys = reading_keys(summaries)
    table = Table(
        title=Text(sweep.title, style="bold"),
        title_justify="left",
        caption=_caption(sweep, summaries),
        caption_justify="left",
        caption_style="",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("model", no_wrap=True)
    table.add_column("para-\nmeters", justify="right", no_wrap=True)
    one_attack = len({attack for attack, _ in keys}) <= 1
    if one_attack and len(keys) <= READINGS_SIDE_BY_SIDE:
        _fill_side_by_side(table, summaries, keys)
    else:
        _fill_by_reading(table, summaries, keys)
    for name in sweep.failed:
        table.add_row(Text(name), Text("failed", style="red"))
    return table


def _fill_side_by_side(
    table: Table, summaries: Sequence[Summary], keys: Sequence[tuple[str, int]]
) -> None:
    table.add_column("clean\ntop-1", justify="right", no_wrap=True)
    for _, steps in keys:
        table.add_column(f"top-1\n{steps:,} steps", justify="right", no_wrap=True)
        table.add_column(f"success\n{steps:,} steps", justify="right", no_wrap=True)
    for summary in summaries:
        cells = [_cell(summary.nominal)]
        for key in keys:
            reading = summary.at(*key)
            pair = (reading.top1, reading.success) if reading else (None, None)
            cells += map(_cell, pair)
        table.add_row(Text(summary.name), short_count(summary.parameters), *cells)


def _fill_by_reading(
    table: Table, summaries: Sequence[Summary], keys: Sequence[tuple[str, int]]
) -> None:
    for title in ("top-1", "attack success"):
        table.add_column(title, justify="right", no_wrap=True)
    _section(table, "clean", [(s, s.nominal, None) for s in summaries])
    for attack, steps in keys:
        found = [(summary, summary.at(attack, steps)) for summary in summaries]
        title = f"{attack_title(attack)}, {steps:,} steps"
        _section(table, title, [(s, r.top1, r.success) for s, r in found if r is not None])


def _section(
    table: Table, title: str, lines: Sequence[tuple[Summary, Share, Share | None]]
) -> None:
    table.add_row(Text(title, style="bold"))
    for summary, top1, success in lines:
        cells = _cell(top1, " "), _cell(success, " ")
        table.add_row(Text(f"  {summary.name}"), short_count(summary.parameters), *cells)
    table.add_section()


def _cell(share: Share | None, between: str = "\n") -> Text:
    if share is None or not share.total:
        return Text(DASH)
    return Text.assemble((share.percent, "bold"), between, (share.range, "dim"))


def _caption(sweep: SweepResult, summaries: Sequence[Summary]) -> Text:
    keys = reading_keys(summaries)
    attacks = "; ".join(dict.fromkeys(attack_title(attack) for attack, _ in keys)) or "no attack"
    lines = [
        f"{sweep.images:,} test images; {attacks}.",
        "In percent, each with Wilson's 95 % interval.",
        *(["top-1: the share of images classified right."] if summaries else []),
        *_unroll_words(summaries),
        *(_reading_words(summaries) if keys else []),
        *remarks(sweep.trials),
    ]
    return Text("\n".join(lines))


def _unroll_words(summaries: Sequence[Summary]) -> list[str]:
    unrolls = [f"{s.name}: {s.unroll}" for s in summaries if s.unroll is not None]
    examples = ", ".join(unrolls[:3]) + (", ..." if len(unrolls) > 3 else "")
    words = "Unroll: how many glances the attention controller takes before it answers"
    return [f"{words} ({examples})."] if unrolls else []


def _reading_words(summaries: Sequence[Summary]) -> list[str]:
    keys = reading_keys(summaries)
    own = [str(n) for n in sorted({n for attack, n in keys if has_own_step_size(attack, n)})]
    untargeted = any(not r.targeted for summary in summaries for r in summary.readings)
    return [
        "Reading: a point in the attack (so many steps) at which the model is measured."
        + (f" {' and '.join(own)} steps: a run of its own, with larger steps." if own else ""),
        "Attack success: the share of images predicted as the class that the attacker chose"
        + ("; untargeted, the share turned from right to wrong." if untargeted else "."),
    ]


def csv_text(sweep: SweepResult) -> str:
    """Every number with its interval and counts, one per line; shares, not percent."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS.split())
    for summary in map(summarise, sweep.trials):
        trial = (summary.name, summary.key)
        writer.writerow((*trial, "nominal", "", "", *_numbers(summary.nominal)))
        for reading in summary.readings:
            where = (reading.attack, reading.steps)
            for measure, share in (("top1", reading.top1), ("success", reading.success)):
                if share.total:
                    writer.writerow((*trial, measure, *where, *_numbers(share)))
    return out.getvalue()


def _numbers(share: Share) -> tuple[str, str, str, int, int, str]:
    value, low, high = (f"{number:.6f}" for number in (share.value, *share.interval))
    population = "" if share.population is None else str(share.population)
    return value, low, high, share.successes, share.total, population
