"""What the stored shards of one evaluation say of each image, in the order of its permutation.

Quarantined images have no rows; they count as broken in every way. N images, R readings. Imports no
torch.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from s3ta.errors import UserError
from s3ta.settings import Goal
from s3ta.statistics import stopping_point
from s3ta_platform.evaluation_record import EvaluationRecord
from s3ta_platform.rows import SCHEMA, about, read_rows
from s3ta_platform.storage import Storage

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Course:
    """One trajectory of one attack over all images of an evaluation."""

    attack: str
    trajectory: dict[str, Any]
    shards: tuple[dict[str, Any], ...]
    """In the order of the permutation."""

    @property
    def readings(self) -> list[int]:
        return list(self.trajectory["readings"])

    @property
    def targeted(self) -> bool:
        return Goal[self.trajectory["goal"]].targeted

    @property
    def own_targets(self) -> bool:
        """Whether two models may have different targets for one image."""
        return Goal[self.trajectory["goal"]] is Goal.least_likely_target

    @property
    def until_success(self) -> bool:
        return bool(self.trajectory["until_success"])


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Of one course, for the first N images."""

    labels_N: Array
    """-1 where an image has no rows, as its target."""
    targets_N: Array
    clean_right_N: Flags
    correct_NR: Flags
    fooled_NR: Flags
    any_error_NR: Flags
    """At some step up to the reading."""
    any_target_NR: Flags
    quarantined_N: Flags


def shard_file(shard: dict[str, Any]) -> str:
    """Where the rows of a record's shard are stored."""
    return f"evaluations/{shard['key']}.parquet"


def courses(record: EvaluationRecord) -> list[Course]:
    """The trajectories of an evaluation, in the record's order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for shard in record.shards:
        found.setdefault(f"{shard['attack']} {shard['trajectory']}", []).append(shard)
    return [
        Course(
            attack=shards[0]["attack"],
            trajectory=shards[0]["trajectory"],
            shards=tuple(sorted(shards, key=lambda shard: int(shard["first"]))),
        )
        for shards in found.values()
    ]


def together(found: Iterable[Course]) -> list[list[Course]]:
    """Courses by attack and readings: an image withstands those if it withstands every start."""
    groups: dict[tuple[str, tuple[int, ...]], list[Course]] = {}
    for course in found:
        groups.setdefault((course.attack, tuple(course.readings)), []).append(course)
    return list(groups.values())


def finished_images(record: EvaluationRecord, stored: Collection[str]) -> int:
    """How many images, from the beginning of the permutation on, have met every trajectory."""
    return min((_reach(course, stored) for course in courses(record)), default=0)


def _reach(course: Course, stored: Collection[str]) -> int:
    end = 0
    for shard in course.shards:
        if shard["first"] != end or shard_file(shard) not in stored:
            break
        end += shard["images"]
    return end


def enough_images(
    storage: Storage, record: EvaluationRecord, stored: Collection[str]
) -> int | None:
    """Of how many images its numbers are, the first of the permutation; None if incomplete.

    Of those at which it was allowed to stop, else of all.
    """
    stop, population = early_stop(storage, record, stored), len(record.image_ids)
    whole = finished_images(record, stored) == population
    return population if stop is None and whole else stop


def early_stop(storage: Storage, record: EvaluationRecord, stored: Collection[str]) -> int | None:
    """With how many images it was allowed to stop; None if it was not, or not yet."""
    finished = finished_images(record, stored)
    if record.halfwidth is None or not finished:
        return None
    seen = [read_worst(storage, record, g, finished) for g in together(courses(record))]
    seen_NR = np.hstack([flags for o in seen for flags in (o.correct_NR, o.fooled_NR)])
    return stopping_point(seen_NR, len(record.image_ids), record.halfwidth)


def read_worst(
    storage: Storage, record: EvaluationRecord, group: list[Course], images: int
) -> Outcomes:
    """Of the courses of one attack: an image is right if it is right in all of them."""
    return reduce(_worse, (read_outcomes(storage, record, course, images) for course in group))


def _worse(a: Outcomes, b: Outcomes) -> Outcomes:
    return Outcomes(
        labels_N=np.where(a.quarantined_N, b.labels_N, a.labels_N),
        targets_N=np.where(a.quarantined_N, b.targets_N, a.targets_N),
        clean_right_N=a.clean_right_N & b.clean_right_N,
        correct_NR=a.correct_NR & b.correct_NR,
        fooled_NR=a.fooled_NR | b.fooled_NR,
        any_error_NR=a.any_error_NR | b.any_error_NR,
        any_target_NR=a.any_target_NR | b.any_target_NR,
        quarantined_N=a.quarantined_N | b.quarantined_N,
    )


def read_outcomes(
    storage: Storage, record: EvaluationRecord, course: Course, images: int
) -> Outcomes:
    """The first `images` images of a course; UserError if a shard is damaged or not whole."""
    ids_N = np.array(record.image_ids[:images], dtype=np.int64)
    shards = [shard for shard in course.shards if shard["first"] < images]
    tables = [read_rows(storage, shard_file(shard)) for shard in shards]
    quarantined = [int(i) for table in tables for i in about(table).get("quarantined", {})]
    rows = _columns(tables, ids_N)
    n, r = _places(rows["image_id"], ids_N), np.searchsorted(course.readings, rows["step"])

    def per_reading(flags: Array, without_rows: bool) -> Flags:
        filled_NR = np.full((images, len(course.readings)), without_rows)
        filled_NR[n, np.minimum(r, len(course.readings) - 1)] = flags
        return filled_NR

    def per_image(column: Array, without_rows: int) -> Array:
        filled_N = np.full(images, without_rows)
        filled_N[n] = column
        return filled_N

    outcomes = Outcomes(
        labels_N=per_image(rows["label"], -1),
        targets_N=per_image(rows["target"], -1),
        clean_right_N=per_image(rows["clean_prediction"] == rows["label"], 0) > 0,
        correct_NR=per_reading(rows["correct"], False),
        fooled_NR=per_reading(rows["fooled"], True),
        any_error_NR=per_reading(rows["first_error_step"] >= 0, True),
        any_target_NR=per_reading(rows["first_target_step"] >= 0, True),
        quarantined_N=np.isin(ids_N, quarantined),
    )
    seen_NR = per_reading(np.ones(len(n), bool), False)
    _require_whole(storage, course, ids_N, seen_NR.all(axis=1) | outcomes.quarantined_N)
    return outcomes


def _columns(tables: list[pa.Table], ids_N: Array) -> dict[str, Array]:
    """The rows of these images."""
    table = merged(tables)
    columns = {name: table[name].to_numpy() for name in SCHEMA.names}
    chosen = np.isin(columns["image_id"], ids_N)
    return {name: column[chosen] for name, column in columns.items()}


def merged(tables: list[pa.Table]) -> pa.Table:
    """The rows of several files, without what each says of itself."""
    return pa.concat_tables([SCHEMA.empty_table(), *(t.cast(SCHEMA) for t in tables)])


def _require_whole(storage: Storage, course: Course, ids_N: Array, whole_N: Flags) -> None:
    if not whole_N.all():
        raise UserError(
            f"Image {ids_N[~whole_N][0]} lacks rows of {course.attack} in {storage.root}, and is "
            "not quarantined. `s3ta verify` names the files that are not whole: delete them and "
            "run again."
        )


def _places(ids: Array, ids_N: Array) -> Array:
    """Where each id stands in `ids_N`."""
    order = np.argsort(ids_N)
    places: Array = order[np.searchsorted(ids_N, ids, sorter=order)]
    return places
