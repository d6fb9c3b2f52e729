"""Do the rows of one shard hold together, and with what the evaluation was to do? Imports no torch.

Every function gives sentences about what is wrong, none if all is well.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from s3ta.draws import Key, Purpose
from s3ta.settings import Goal
from s3ta_platform.evaluation_record import EvaluationRecord
from s3ta_platform.record import content_key
from s3ta_platform.rows import SCHEMA, about

Array = npt.NDArray[Any]
Columns = dict[str, Array]

LINF_SLACK_255 = 255 * 2.0**-24
"""In units of 1/255. The ball's edge, image - epsilon, is rounded to float32, below 1 by at most
2^-25, and the distance is measured from there. Twice that, for arithmetic that rounds otherwise."""
RELATIVE_SLACK = 1e-6
"""Epsilon itself, the difference and the factor 255 are rounded by 2^-24 each."""


def own_problems(table: pa.Table, name: str) -> Iterator[str]:
    """What a file can contradict without knowing the evaluation it belongs to."""
    said, file_key = about(table), name.rpartition("/")[2].removesuffix(".parquet")
    if said.get("key") != file_key:
        yield f"it says that its key is {said.get('key')}, its name says {file_key}"
    parts = said.get("key_parts")
    if not isinstance(parts, dict) or content_key(**parts) != said.get("key"):
        yield "its key is not the digest of what it says decided its rows"


def shard_problems(
    record: EvaluationRecord, shard: dict[str, Any], table: pa.Table
) -> Iterator[str]:
    """All checks of one stored shard against its place in an evaluation."""
    yield from _agreement(record, shard, about(table))
    if table.schema.types != SCHEMA.types or any(c.null_count for c in table.columns):
        yield "its columns have other types than they should, or empty places"
        return
    rows = {name: table[name].to_numpy() for name in table.column_names}
    ids = set(record.image_ids[shard["first"] : shard["first"] + shard["images"]])
    lost = {int(i) for i in about(table).get("quarantined", {})}
    wrong = sorted(lost - ids)
    if wrong:
        yield f"it says that image {wrong[0]} is quarantined, which is none of its images"
    absent = list(_presence(rows, ids - lost, shard["trajectory"]["readings"]))
    yield from absent
    if absent:
        return
    for bad_N, words in _contradictions(rows, record, shard["trajectory"]):
        if bad_N.any():
            yield _told(bad_N, words, rows)
    yield from _over_readings(rows)


def _agreement(
    record: EvaluationRecord, shard: dict[str, Any], said: dict[str, Any]
) -> Iterator[str]:
    parts = said.get("key_parts")
    if not isinstance(parts, dict):
        return
    images = parts.get("images")
    wanted = {
        "key": (said.get("key"), shard["key"]),
        "attack": (said.get("attack"), shard["attack"]),
        "model": (parts.get("model"), record.model_digest),
        "trajectory": (parts.get("trajectory"), shard["trajectory"]),
        "seed": (parts.get("seed"), record.seed),
        "tile": (parts.get("tile"), record.tile),
        "images_digest": (
            images.get("digest") if isinstance(images, dict) else None,
            record.images_digest,
        ),
        "image_ids": (
            parts.get("image_ids"),
            record.image_ids[shard["first"] : shard["first"] + shard["images"]],
        ),
    }
    for name, (found, expected) in wanted.items():
        if found != expected:
            yield f"its {name} is {_short(found)}, its evaluation's is {_short(expected)}"


def _presence(rows: Columns, ids: set[int], readings: list[int]) -> Iterator[str]:
    """Each image once per reading, and no other."""
    pairs, counts = np.unique(
        np.stack([rows["image_id"], rows["step"].astype(np.int64)]), axis=1, return_counts=True
    )
    if (counts > 1).any():
        image, step = pairs[:, counts > 1][:, 0]
        yield f"image {image} is counted {counts.max()} times at step {step}"
    found = set(zip(*pairs.tolist(), strict=True))
    wanted = {(image, step) for image in ids for step in readings}
    for these, words in ((wanted - found, "is missing"), (found - wanted, "does not belong there")):
        if these:
            image, step = min(these)
            yield f"{len(these):,} row(s) wrong: image {image} at step {step} {words}"


def _contradictions(
    rows: Columns, record: EvaluationRecord, trajectory: dict[str, Any]
) -> Iterator[tuple[Array, str]]:
    """Rows that contradict themselves, the draws or the threat, as (which, what is wrong)."""
    label, target, prediction = rows["label"], rows["target"], rows["prediction"]
    for name in ("label", "clean_prediction", "prediction", "attack_prediction"):
        known = (rows[name] >= 0) & (rows[name] < record.classes)
        yield ~known, f"{name} is none of the {record.classes} classes"
    yield from _targets(rows, record, trajectory)
    yield rows["correct"] != (prediction == label), "correct is not prediction == label"
    yield rows["fooled"] != (prediction == target), "fooled is not prediction == target"
    limit = trajectory["epsilon"] * 255 * (1 + RELATIVE_SLACK) + LINF_SLACK_255
    # Written so that a number that is none is a contradiction, too.
    yield ~(rows["linf_255"] <= limit), "linf_255 is beyond epsilon"
    yield ~(rows["linf_255"] >= 0), "linf_255 is negative or no number"
    yield ~(rows["pixel_min"] >= 0), "pixel_min is below 0"
    yield ~(rows["pixel_max"] <= 1), "pixel_max is above 1"
    yield rows["restart"] != trajectory["restart"], "restart is not its trajectory's"
    yield from _first_steps(rows, trajectory)


def _targets(
    rows: Columns, record: EvaluationRecord, trajectory: dict[str, Any]
) -> Iterator[tuple[Array, str]]:
    label, target, goal = rows["label"], rows["target"], Goal[trajectory["goal"]]
    if goal is Goal.random_target:
        pairs = zip(rows["image_id"].tolist(), label.tolist(), strict=True)
        drawn = [_target(record.seed, record.classes, image, y) for image, y in pairs]
        yield target != drawn, "target is not the class drawn from the seed and the image's id"
    elif goal is Goal.given_target:
        given = np.array(trajectory["target_of_label"])[label]
        yield target != given, "target is not the class that the attack names for its label"
    elif goal is Goal.least_likely_target:  # only the model knows which class that is
        other = (target >= 0) & (target < record.classes) & (target != label)
        yield ~other, "target is no class beside the label"
    else:
        yield target != -1, "target is a class, and the attack has none"


@lru_cache(maxsize=1_000_000)
def _target(seed: int, classes: int, image_id: int, label: int) -> int:
    return int(Key(seed, Purpose.EVAL_TARGET).wrong_classes([image_id], [label], classes)[0])


def _first_steps(rows: Columns, trajectory: dict[str, Any]) -> Iterator[tuple[Array, str]]:
    """The first steps with an error, or at the target, against the readings themselves."""
    step, error, target = rows["step"], rows["first_error_step"], rows["first_target_step"]
    for name, first in (("first_error_step", error), ("first_target_step", target)):
        yield (first < -1) | (first > step), f"{name} is not between -1 and the step"
    yield ~rows["correct"] & (error < 0), "it is wrong, but first_error_step says never"
    yield rows["fooled"] & (target < 0), "it is fooled, but first_target_step says never"
    yield rows["correct"] & (error == step), "it is right, but first_error_step says wrong"
    yield ~rows["fooled"] & (target == step), "it is not fooled, but first_target_step says so"
    if not trajectory["until_success"]:
        return
    # An image that reached its attack's goal stays there.
    if Goal[trajectory["goal"]].targeted:
        yield ~rows["fooled"] & (target >= 0), "it was fooled before and is not, in until_success"
    else:
        yield rows["correct"] & (error >= 0), "it was wrong before and is not, in until_success"


def _over_readings(rows: Columns) -> Iterator[str]:
    """What is known of an image stays known at its later readings, and so does its label."""
    order = np.lexsort((rows["step"], rows["image_id"]))
    sorted_rows = {name: column[order] for name, column in rows.items()}
    earlier = {name: column[:-1] for name, column in sorted_rows.items()}
    later = {name: column[1:] for name, column in sorted_rows.items()}
    same = earlier["image_id"] == later["image_id"]
    for name in ("label", "target", "clean_prediction"):
        changed = same & (earlier[name] != later[name])
        if changed.any():
            yield _told(changed, f"{name} changes between the readings of one image", later)
    for name in ("first_error_step", "first_target_step"):
        before, after = earlier[name], later[name]
        kept = np.where(before >= 0, after == before, (after < 0) | (after > earlier["step"]))
        if (same & ~kept).any():
            yield _told(same & ~kept, f"{name} contradicts an earlier reading", later)


def _told(bad_N: Array, words: str, rows: Columns) -> str:
    place = int(np.argmax(bad_N))
    image, step = rows["image_id"][place], rows["step"][place]
    return f"{words} in {int(bad_N.sum()):,} row(s), the first: image {image} at step {step}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
