"""Numbers as a table for the terminal and as a CSV file."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from s3ta_platform.attack_names import attack_title, has_own_step_size
from s3ta_platform.costs import short_count
from s3ta_platform.published import NOTHING
from s3ta_platform.remarks import remarks
from s3ta_platform.results import SweepResult
from s3ta_platform.summaries import (
    DASH,
    Share,
    Summary,
    reading_keys,
    summarise,
    worst_case_names,
)

COLUMNS = "model key measure attack steps value low high successes total population"
ATTACKS_NAMED = 4
READINGS_SIDE_BY_SIDE = 3
"""More readings than this don't fit beside one another in 100 columns."""


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
    one_attack = len({attack for attack, _ in keys}) <= 1
    few = one_attack and len(keys) <= READINGS_SIDE_BY_SIDE and not has_published(summaries)
    table.add_column("model", overflow="fold")  # names and titles are wrapped, never numbers
    table.add_column("para-\nmeters", justify="right", no_wrap=True)
    if few:
        _fill_side_by_side(table, summaries, keys)
    else:
        _fill_by_reading(table, summaries)
    for name in sweep.failed:
        table.add_row(Text(name), Text("failed", style="red"))
    for name in sweep.stopped:
        table.add_row(Text(name), Text("ended", style="dim"))
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


def _fill_by_reading(table: Table, summaries: Sequence[Summary]) -> None:
    titles, published = ["top-1", "attack success"], has_published(summaries)
    if published:
        titles = ["top-1", "paper", "attack success", "paper"]
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for section in sections(summaries):
        table.add_row(Text(section.title, style="bold"))
        for line in section.lines:
            shares = [_cell(line.top1, " "), _cell(line.success, " ")]
            if published:
                top1, success = (Text("" if p is None else f"{p:g}") for p in line.paper)
                shares = [shares[0], top1, shares[1], success]
            name = Text(f"  {line.summary.name}")
            table.add_row(name, short_count(line.summary.parameters), *shares)
        table.add_section()


@dataclass(frozen=True)
class Line:
    """One model in a section."""

    summary: Summary
    top1: Share
    success: Share | None
    paper: tuple[float | None, float | None] = (None, None)
    """The paper's top-1 and attack success, in percent."""


@dataclass(frozen=True)
class Section:
    """One reading, with a line for each model that has it."""

    title: str
    lines: list[Line]


def sections(summaries: Sequence[Summary]) -> list[Section]:
    """Clean images, then every reading, then the worst cases."""
    clean = [Line(s, s.nominal, None, (s.published.nominal, None)) for s in summaries]
    found = [Section("clean", clean)]
    for attack, steps in reading_keys(summaries):
        readings = [(summary, summary.at(attack, steps)) for summary in summaries]
        lines = [
            Line(s, r.top1, r.success, s.published.at(attack, steps)) for s, r in readings if r
        ]
        found.append(Section(f"{attack_title(attack)}, {steps:,} steps", lines))
    for name in worst_case_names(summaries):
        worst = [(s, w) for s in summaries for w in s.worst_cases if w.attack == name]
        lines = [Line(s, w.top1, w.success) for s, w in worst]
        found.append(Section(attack_title(name), lines))
    return found


def has_published(summaries: Sequence[Summary]) -> bool:
    """Whether the paper has a number to stand beside one of these."""
    return any(s.published is not NOTHING for s in summaries)


def _cell(share: Share | None, between: str = "\n") -> Text:
    if share is None or not share.total:
        return Text(DASH)
    return Text.assemble((share.percent, "bold"), between, (share.range, "dim"))


def _caption(sweep: SweepResult, summaries: Sequence[Summary]) -> Text:
    keys = reading_keys(summaries)
    titles = list(dict.fromkeys(attack_title(attack) for attack, _ in keys))
    attacks = "; ".join(titles) if len(titles) <= ATTACKS_NAMED else f"{len(titles)} attacks"
    lines = [
        f"{sweep.images:,} test images; {attacks or 'no attack'}.",
        "In percent, each with Wilson's 95 % interval.",
        *(["paper: what the paper publishes for this system."] if has_published(summaries) else []),
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
            for measure, share in reading.measures.items():
                writer.writerow((*trial, measure, *where, *_numbers(share)))
        for worst in summary.worst_cases:
            for measure, share in (("top1", worst.top1), ("success", worst.success)):
                if share.total:
                    writer.writerow((*trial, measure, worst.attack, "", *_numbers(share)))
    return out.getvalue()


def _numbers(share: Share) -> tuple[str, str, str, int, int, str]:
    value, low, high = (f"{number:.6f}" for number in (share.value, *share.interval))
    population = "" if share.population is None else str(share.population)
    return value, low, high, share.successes, share.total, population
