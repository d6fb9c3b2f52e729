"""`s3ta compare A B`: two models on the same images, from the same starts, image by image.

Imports no torch. N images.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from s3ta.errors import UserError
from s3ta.statistics import Z_95, holm, mcnemar, paired_difference
from s3ta_platform.outcomes import Course, Flags, Outcomes, read_worst
from s3ta_platform.pairing import Pair, pair_up
from s3ta_platform.references import Evaluated, find_model


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One measure of both models: how many images count for each, and for one of them only."""

    attack: str
    """Empty for the clean images."""
    steps: int
    measure: str
    """`top1`, `success`, or of an attack that stops at its goal `any_error` or `any_target`."""
    images: int
    of_a: int
    of_b: int
    only_a: int
    only_b: int

    @property
    def difference(self) -> tuple[float, float, float]:
        """A's share minus B's, with its 95 % interval."""
        d, se = paired_difference(self.only_a, self.only_b, self.images)
        return d, d - Z_95 * se, d + Z_95 * se

    @property
    def p(self) -> float:
        """McNemar's exact p-value."""
        return mcnemar(self.only_a, self.only_b)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All endpoints of two models."""

    a: Evaluated
    b: Evaluated
    endpoints: list[Endpoint]
    notes: list[str]

    @property
    def adjusted(self) -> list[float]:
        """The p-values of the endpoints, adjusted for their number."""
        return holm([endpoint.p for endpoint in self.endpoints])


def compare(a: str, b: str, results: str, csv_file: Path | None = None) -> int:
    """Print the comparison, and write its numbers if a file is given; exit code 0."""
    from s3ta_platform.compare_table import comparison_table, csv_text

    found = compare_models(find_model(a, results), find_model(b, results))
    if csv_file is not None:
        _write(csv_file, csv_text(found))
    console = Console()
    console.print(comparison_table(found))
    for note in found.notes:
        console.print(note, markup=False, highlight=False)
    if csv_file is not None:
        console.print(f"numbers  {csv_file}", markup=False, highlight=False, soft_wrap=True)
    return 0


def compare_models(a: Evaluated, b: Evaluated) -> Comparison:
    """Compare two evaluated models; UserError unless they met the same attacks."""
    pair = pair_up(a, b)
    seen = [
        (
            mine[0],
            read_worst(a.storage, pair.a, mine, pair.images),
            read_worst(b.storage, pair.b, yours, pair.images),
        )
        for mine, yours in pair.shared
    ]
    for course, of_a, of_b in seen:
        _require_same_task(course, pair, of_a, of_b)
    readings = [e for course, of_a, of_b in seen for e in _endpoints(course, of_a, of_b)]
    return Comparison(
        a=a,
        b=b,
        endpoints=[_clean(seen), *sorted(readings, key=lambda e: (e.attack, e.steps))],
        notes=[*pair.notes, *_quarantine_notes(seen)],
    )


def _require_same_task(course: Course, pair: Pair, a: Outcomes, b: Outcomes) -> None:
    """The same labels and targets wherever both have rows."""
    both_N = ~a.quarantined_N & ~b.quarantined_N
    for what, mine_N, yours_N in (
        ("label", a.labels_N, b.labels_N),
        ("target", a.targets_N, b.targets_N),
    ):
        bad_N = both_N & (mine_N != yours_N)
        if bad_N.any():
            place = int(np.argmax(bad_N))
            raise UserError(
                f"Image {pair.a.image_ids[place]} has the {what} {mine_N[place]} in A and "
                f"{yours_N[place]} in B ({course.attack}): they cannot be compared. "
                "`s3ta verify` says which of the two results was changed."
            )


def _clean(seen: list[tuple[Course, Outcomes, Outcomes]]) -> Endpoint:
    """Right without an attack, in the rows of every trajectory."""
    a_N = np.logical_and.reduce([a.clean_right_N for _, a, _ in seen])
    b_N = np.logical_and.reduce([b.clean_right_N for _, _, b in seen])
    return _endpoint("", 0, "top1", a_N, b_N)


def _endpoints(course: Course, a: Outcomes, b: Outcomes) -> Iterator[Endpoint]:
    """What is compared at each reading of one trajectory."""
    for r, steps in enumerate(course.readings):
        if course.until_success:
            name = "any_target" if course.targeted else "any_error"
            flags = [getattr(o, f"{name}_NR")[:, r] for o in (a, b)]
            yield _endpoint(course.attack, steps, name, *flags)
            continue
        yield _endpoint(course.attack, steps, "top1", a.correct_NR[:, r], b.correct_NR[:, r])
        if course.targeted:  # else success is a share of other images in A than in B
            yield _endpoint(course.attack, steps, "success", a.fooled_NR[:, r], b.fooled_NR[:, r])


def _endpoint(attack: str, steps: int, measure: str, a_N: Flags, b_N: Flags) -> Endpoint:
    return Endpoint(
        attack=attack,
        steps=steps,
        measure=measure,
        images=len(a_N),
        of_a=int(a_N.sum()),
        of_b=int(b_N.sum()),
        only_a=int((a_N & ~b_N).sum()),
        only_b=int((b_N & ~a_N).sum()),
    )


def _quarantine_notes(seen: list[tuple[Course, Outcomes, Outcomes]]) -> list[str]:
    """How many images one side could not be attacked on, and how they were counted."""
    notes = []
    for side, outcomes in (("A", [a for _, a, _ in seen]), ("B", [b for _, _, b in seen])):
        lost_N = np.any([o.quarantined_N for o in outcomes], axis=0)
        if lost_N.any():
            notes.append(
                f"{int(lost_N.sum()):,} images are quarantined in {side} (they ended every worker):"
                " they count as wrong and as fooled there."
            )
    return notes


def _write(file: Path, text: str) -> None:
    """Under another name first, so that nobody ever reads half of it."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {file} ({error.strerror}): give --csv a file in a folder that can be "
            "written and has free space"
        ) from error
