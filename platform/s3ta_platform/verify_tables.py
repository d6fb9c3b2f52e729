"""Every number of a stored `table.csv`, counted again from the shard files.

On purpose by another way than the tables take: straight from the files, with pyarrow's compute.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from s3ta.statistics import wilson
from s3ta_platform.attack_names import WORST
from s3ta_platform.evaluation_record import EvaluationRecord
from s3ta_platform.outcomes import (
    Course,
    courses,
    early_stop,
    finished_images,
    shard_file,
    together,
)
from s3ta_platform.rows import about
from s3ta_platform.storage import NotStored, Storage, StoreAwayError
from s3ta_platform.tables import COLUMNS
from s3ta_platform.verified import Check, Root, Tick

TOLERANCE = 1e-6
"""Tables hold six decimals."""
REMEDY = "Make the report anew with `s3ta report FILE`."

Line = dict[str, str]
Name = tuple[str, str, str]
"""Measure, attack and steps, as in the table."""


@dataclass(frozen=True)
class Counts:
    """A proportion."""

    successes: int
    total: int
    population: int | None = None
    """Given where only a part of so many images was attacked."""


Recount = dict[Name, Counts]
"""All numbers of one evaluation."""


def recount(
    storage: Storage, record: EvaluationRecord, images: int, population: int | None
) -> Recount:
    """Count the first `images` images of an evaluation whose shards are stored."""
    counts: Recount = {}
    not_right: set[int] = set()
    last: dict[str, Survivors] = {}
    for group in together(courses(record)):
        rows, lost = _rows_of_starts(storage, record, group, images)
        was_wrong = pc.not_equal(rows["clean_prediction"], rows["label"])
        not_right |= {*lost, *rows["image_id"].filter(was_wrong).to_pylist()}
        for step in group[0].readings:
            at = rows.filter(pc.equal(rows["step"], step))
            counts |= _at(at, group[0], step, len(lost), population)
            if step >= last.get(group[0].attack, Survivors(group[0], step)).step:
                last[group[0].attack] = Survivors.of(group[0], step, at, lost)
    counts["nominal", "", ""] = Counts(images - len(not_right), images, population)
    return counts | _worst_cases(last.values(), images, population)


@dataclass(frozen=True)
class Survivors:
    """Who is not right any more, and who is taken for its target, at an attack's last reading."""

    course: Course
    step: int
    broken: frozenset[int] = frozenset()
    fooled: frozenset[int] = frozenset()

    @classmethod
    def of(cls, course: Course, step: int, rows: pa.Table, lost: set[int]) -> "Survivors":
        sides = [pc.not_equal(rows["prediction"], rows["label"])]
        sides.append(pc.equal(rows["prediction"], rows["target"]))
        broken, fooled = ({*rows["image_id"].filter(s).to_pylist(), *lost} for s in sides)
        return cls(course, step, frozenset(broken), frozenset(fooled))


def _worst_cases(found: Iterable[Survivors], images: int, population: int | None) -> Recount:
    """Of all attacks with one epsilon, and of those that share their targets."""
    counts: Recount = {}
    groups: dict[str, list[Survivors]] = {}
    for survivors in found:
        groups.setdefault(survivors.course.attack.rpartition("_eps")[2], []).append(survivors)
    for epsilon, group in groups.items():
        name = f"{WORST}_eps{epsilon}"
        if len(group) > 1:
            broken = frozenset[int]().union(*(s.broken for s in group))
            counts["top1", name, ""] = Counts(images - len(broken), images, population)
        alike = [s.fooled for s in group if s.course.trajectory["goal"] == "random_target"]
        if len(alike) > 1:
            fooled = frozenset[int]().union(*alike)
            counts["success", name, ""] = Counts(len(fooled), images, population)
    return counts


def _rows_of_starts(
    storage: Storage, record: EvaluationRecord, group: list[Course], images: int
) -> tuple[pa.Table, set[int]]:
    """Of all starts of an attack; an image that is quarantined in one of them has no rows here."""
    tables, losses = zip(*(_rows(storage, record, c, images) for c in group), strict=True)
    lost = set[int]().union(*losses)
    rows = pa.concat_tables(tables)
    return rows.filter(pc.invert(pc.is_in(rows["image_id"], pa.array(lost, pa.int64())))), lost


def _rows(
    storage: Storage, record: EvaluationRecord, course: Course, images: int
) -> tuple[pa.Table, set[int]]:
    """The rows of these images, and which of them are quarantined."""
    ids = record.image_ids[:images]
    names = [shard_file(shard) for shard in course.shards if shard["first"] < images]
    # For so small files threads cost more than they bring.
    tables = [pq.read_table(io.BytesIO(storage.get(name)), use_threads=False) for name in names]
    lost = {int(i) for table in tables for i in about(table).get("quarantined", {})}
    rows = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    chosen = pc.is_in(rows["image_id"], pa.array(ids, pa.int64()))
    return rows.filter(chosen), lost & set(ids)


def _at(rows: pa.Table, course: Course, step: int, lost: int, population: int | None) -> Recount:
    """The numbers at one reading; quarantined images count as not robust."""
    flags = {
        "right": pc.equal(rows["prediction"], rows["label"]),
        "was_right": pc.equal(rows["clean_prediction"], rows["label"]),
        "fooled": pc.equal(rows["prediction"], rows["target"]),
        "any_error": pc.greater_equal(rows["first_error_step"], 0),
        "any_target": pc.greater_equal(rows["first_target_step"], 0),
    }
    over_starts = [("right", "all"), ("was_right", "all"), ("fooled", "any")]
    over_starts += [("any_error", "any"), ("any_target", "any")]
    images = pa.table({"image_id": rows["image_id"], **flags}).group_by("image_id")
    seen = images.aggregate(over_starts)
    right, was_right = seen["right_all"], seen["was_right_all"]
    top1 = Counts(_count(right), len(seen) + lost, population)
    if course.targeted:
        success = Counts(_count(seen["fooled_any"]) + lost, len(seen) + lost, population)
    else:  # of the images that were right, how many are not any more
        success = Counts(_count(pc.and_not(was_right, right)), _count(was_right))
    where = (course.attack, str(step))
    found: Recount = {("top1", *where): top1, ("success", *where): success}
    if not course.until_success:
        for kind in ("any_error", "any_target") if course.targeted else ("any_error",):
            happened = _count(seen[f"{kind}_any"]) + lost
            found[kind, *where] = Counts(happened, len(seen) + lost, population)
    return found


def _count(flags: pa.ChunkedArray) -> int:
    return pc.sum(flags).as_py() or 0


def read_table(file: Path) -> dict[str, list[Line]]:
    """The lines of a `table.csv` by trial; ValueError if it is none."""
    reader = csv.DictReader(io.StringIO(file.read_text()))
    lacking = [name for name in COLUMNS.split() if name not in (reader.fieldnames or [])]
    if lacking:
        raise ValueError(f"it has no column {', '.join(lacking)}")
    trials: dict[str, list[Line]] = {}
    for line in reader:
        trials.setdefault(line["key"], []).append(line)
    return trials


def line_problems(lines: list[Line], found: Recount) -> Iterator[str]:
    """Where a trial's lines differ from the count."""
    for line in lines:
        name = (line["measure"], line["attack"], line["steps"])
        where = " ".join(part for part in (*name, "steps" if line["steps"] else "") if part)
        if name not in found:
            yield f"{where}: the evaluation of trial {line['key']} gives no such number"
            continue
        counts = found[name]
        if (line["successes"], line["total"]) != (str(counts.successes), str(counts.total)):
            yield (
                f"{where} says {line['successes']} of {line['total']}, the per-example files of "
                f"trial {line['key']} give {counts.successes} of {counts.total}"
            )
        elif not _shares_fit(line, counts):
            yield (
                f"{where}: value, low, high or population ({line['value']}, {line['low']}, "
                f"{line['high']}, {line['population'] or 'none'}) are not those of "
                f"{counts.successes} of {counts.total}"
            )


def _shares_fit(line: Line, counts: Counts) -> bool:
    share = counts.successes / counts.total if counts.total else math.nan
    numbers = (share, *wilson(counts.successes, counts.total, counts.population))
    population = "" if counts.population is None else str(counts.population)
    fits = (_same(line[n], x) for n, x in zip(("value", "low", "high"), numbers, strict=True))
    return line["population"] == population and all(fits)


def _same(text: str, number: float) -> bool:
    try:
        found = float(text)
    except (ValueError, TypeError):  # a line that is too short has None in it
        return False
    both_absent = math.isnan(found) and math.isnan(number)
    return both_absent or math.isclose(found, number, rel_tol=0, abs_tol=TOLERANCE)


def table_files(folder: Path) -> list[Path]:
    """The tables of all reports below a local root."""
    return sorted(folder.glob("sweeps/*/table.csv"))


def check_tables(root: Root, folder: Path, tick: Tick) -> Check:
    """Is every number of every report's table what the rows give?"""
    check, numbers = Check(name="tables"), 0
    counted: dict[str, Recount | None] = {}
    files = table_files(folder)
    for file in files:
        tick()
        try:
            trials = read_table(file)
        except (OSError, ValueError, csv.Error) as error:
            check.doubts.append(f"{file} is not a table of results ({error}). {REMEDY}")
            continue
        for trial, lines in trials.items():
            numbers += len(lines)
            problems = _trial_problems(root, trial, lines, counted)
            check.doubts += [f"{file}: {words}. {REMEDY}" for words in problems]
    check.words = f"{numbers} number(s) counted again, in {len(files)} file(s)"
    return check


def _trial_problems(
    root: Root, trial: str, lines: list[Line], counted: dict[str, Recount | None]
) -> list[str]:
    """Of several evaluations of a trial, the one that the lines fit best is meant."""
    for record in root.records:
        if record.trial == trial and record.name not in counted:
            counted[record.name] = _recount_if_complete(root, record)
    found = [counted[r.name] for r in root.records if r.trial == trial]
    problems = [list(line_problems(lines, one)) for one in found if one is not None]
    if not problems:
        return [f"trial {trial} has no complete evaluation here from which it can be counted"]
    return min(problems, key=len)


def _recount_if_complete(root: Root, record: EvaluationRecord) -> Recount | None:
    population = len(record.image_ids)
    try:
        stop = early_stop(root.storage, record, root.stored)
        if stop is not None:
            return recount(root.storage, record, stop, population)
        whole = finished_images(record, root.stored) == population
        return recount(root.storage, record, population, None) if whole else None
    except StoreAwayError:
        raise
    except (ValueError, NotStored, pa.ArrowException, OSError, KeyError):
        return None  # a damaged file: told where the rows are checked
