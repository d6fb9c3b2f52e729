"""Attacked images after more and more steps, beside what was changed (Figure 8).

A block per image: for each model a row of attacked images and under it a row of changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np

from s3ta_platform.attack_names import attack_title
from s3ta_platform.drawing import FAINT, STYLE, Drawing, Sheet, cut
from s3ta_platform.pictures import TIMES, Example, fooled_images, gain_of, hwc, image_ids
from s3ta_platform.results import Gallery

CELL, GAP, WORDS, TOP = 0.86, 0.05, 0.34, 1.0
NAMES, BLOCK_GAP = 0.98, 0.45
BLOCKS_WIDE = 2


@dataclass(frozen=True, kw_only=True)
class Course:
    """One model's attacked images after each reading; all of the same images."""

    model: str
    key: str
    galleries: tuple[Gallery, ...]
    """By rising steps."""


def telling_places(courses: Sequence[Course], shown: int) -> list[int]:
    """Places in the galleries: first those on which most models are right, then fooled in the end;
    of equals the first."""
    counts = np.zeros(len(courses[0].galleries[-1].image_ids_B))
    for course in courses:
        last = course.galleries[-1]
        counts += fooled_images(last) & (last.clean_predictions_B == last.labels_B)
    order = np.argsort(-counts, kind="stable")
    return [int(place) for place in order[:shown]]


@mpl.rc_context(STYLE)
def attack_images(courses: Sequence[Course], class_names: Sequence[str], shown: int) -> Drawing:
    """All models side by side, image by image."""
    places, galleries = telling_places(courses, shown), courses[0].galleries
    columns = 1 + len(galleries)
    width = NAMES + columns * (CELL + GAP) + BLOCK_GAP
    block = len(courses) * (2 * (CELL + GAP) + WORDS) + 0.5
    wide = min(BLOCKS_WIDE, len(places))
    sheet = Sheet(0.12 + wide * width, TOP - 0.25 + -(-len(places) // wide) * block)
    gain = gain_of([gallery for course in courses for gallery in course.galleries])
    title, attack = "Attacked images, step by step", attack_title(galleries[0].attack)
    sheet.heading(title, f"{attack}; under each image its change {TIMES}{gain}, grey: none")
    for number, place in enumerate(places):
        left = 0.12 + (number % wide) * width
        top = TOP + (number // wide) * block
        _block(sheet, (left, top), courses, place, gain, class_names)
    return sheet.drawing("attack_images", title, _caption(attack, gain, len(places)))


def _block(
    sheet: Sheet,
    corner: tuple[float, float],
    courses: Sequence[Course],
    place: int,
    gain: int,
    class_names: Sequence[str],
) -> None:
    left, top = corner
    first = Example(courses[0].galleries[0], place, class_names)
    target = f", target: {first.target}" if first.target is not None else ""
    sheet.text(left, top - 0.32, cut(f"true: {first.label}{target}", 60), fontsize=8)
    for column, gallery in enumerate(courses[0].galleries):
        centre = left + NAMES + (column + 1) * (CELL + GAP) + CELL / 2
        words = f"{gallery.steps:,} steps" if column == 0 else f"{gallery.steps:,}"
        sheet.text(centre, top - 0.15, words, ha="center", fontsize=7, color=FAINT)
    for row, course in enumerate(courses):
        at = top + row * (2 * (CELL + GAP) + WORDS)
        sheet.text(left, at + 0.02, cut(course.model, 16), fontsize=7.5, fontweight="bold")
        clean = course.galleries[0].clean_BCHW[place]
        sheet.picture(left + NAMES, at, CELL, hwc(clean))
        example = Example(course.galleries[0], place, class_names)
        words, colour = example.verdict(course.galleries[0].clean_predictions_B)
        below = at + 2 * CELL + GAP + 0.03
        sheet.text(left + NAMES, at + CELL + 0.03, "clean", fontsize=6.5, color=FAINT)
        sheet.text(left + NAMES, at + CELL + 0.14, cut(words, 14), fontsize=6.5, color=colour)
        for column, gallery in enumerate(course.galleries):
            x = left + NAMES + (column + 1) * (CELL + GAP)
            attacked = gallery.attacked_BCHW[place]
            change = np.clip(0.5 + gain * (attacked - clean), 0, 1)
            sheet.picture(x, at, CELL, hwc(attacked))
            sheet.picture(x, at + CELL + GAP, CELL, hwc(change))
            words, colour = Example(gallery, place, class_names).verdict(gallery.predictions_B)
            sheet.text(x, below, cut(words, 14), fontsize=6.5, color=colour, fontweight="bold")


def _caption(attack: str, gain: int, images: int) -> str:
    return (
        f"{images} test images, clean (left) and after more and more steps of {attack}, and under "
        f"each the change itself, {gain} times as strong, around mid-grey. ✓ still right; ✗ the "
        "attack has reached its goal; ≠ wrong, but not as the attacker wanted. First those on "
        "which the longest attack succeeds against most models: examples, not a measurement."
    )


def image_rows(courses: Sequence[Course]) -> list[list[object]]:
    """Lines of model, key, image, steps, label, target, clean, prediction, linf_255, for all images
    that were attacked, not only those drawn."""
    rows: list[list[object]] = []
    for course in courses:
        for g in course.galleries:
            linf_B = np.abs(g.attacked_BCHW - g.clean_BCHW).reshape(len(g.labels_B), -1).max(axis=1)
            for place, image_id in enumerate(image_ids(g)):
                about = (g.labels_B, g.targets_B, g.clean_predictions_B, g.predictions_B)
                numbers = [int(column_B[place]) for column_B in about]
                row = [course.model, course.key, image_id, g.steps, *numbers]
                rows.append([*row, round(255 * float(linf_B[place]), 4)])
    return rows
