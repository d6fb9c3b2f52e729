"""Which evaluation of A and which of B are compared, and why not if none. Imports no torch."""

from dataclasses import dataclass, field

from s3ta.errors import UserError
from s3ta_platform.evaluation_record import EvaluationRecord
from s3ta_platform.outcomes import Course, courses, enough_images, finished_images, together
from s3ta_platform.places import command
from s3ta_platform.references import Evaluated


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two complete evaluations of the same images, from the same starts, by the same attacks."""

    a: EvaluationRecord
    b: EvaluationRecord
    images: int
    """How many, from the beginning of the permutation on, both models met."""
    shared: list[tuple[list[Course], list[Course]]]
    """Attacks that both met, each with all its starts."""
    notes: list[str] = field(default_factory=list)


def pair_up(a: Evaluated, b: Evaluated) -> Pair:
    """The pair with the most images; UserError that names the difference if there is none."""
    if a.digest == b.digest:
        raise UserError(
            f"Both are the same model (digest {a.digest[:12]}): there is nothing to compare. "
            "Name two models."
        )
    both = [(ra, rb) for ra in a.records for rb in b.records]
    obstacles = [(_difference(ra, rb), ra, rb) for ra, rb in both]
    alike = [(ra, rb) for obstacle, ra, rb in obstacles if obstacle is None]
    if not alike:
        # The one that is nearest to a comparison says most.
        _, words = max(o for o, _, _ in obstacles if o is not None)
        raise UserError(f"A ({a}) and B ({b}) cannot be compared: {words}")
    stored = [set(side.storage.list("evaluations/")) for side in (a, b)]
    pairs = [pair for ra, rb in alike if (pair := _pair(a, b, ra, rb, stored)) is not None]
    if not pairs:
        raise UserError(_unfinished(a, b, alike, stored))
    pairs.sort(key=lambda p: (-p.images, -len(p.shared), p.a.name, p.b.name))
    best = pairs[0]
    if len(pairs) > 1:
        best.notes.append(
            f"{len(pairs)} pairs of evaluations could be compared; this is the one with the most "
            f"images ({best.a.name} and {best.b.name})."
        )
    return best


def _difference(a: EvaluationRecord, b: EvaluationRecord) -> tuple[int, str] | None:
    """Why two evaluations cannot be compared, and how much agrees; None if they can."""
    if a.images_digest != b.images_digest:
        return 0, (
            f"their test images differ (digests {a.images_digest[:12]} and "
            f"{b.images_digest[:12]}). Attack both on the same files (data.test)."
        )
    if a.seed != b.seed:
        return 1, (
            f"evaluate.seed is {a.seed} and {b.seed}, so their targets and starts differ. "
            "Attack one of them again with the other's seed."
        )
    if a.image_ids != b.image_ids:
        return 2, (
            f"they were attacked on different images ({_number(a)} and {_number(b)} of them). "
            "Attack one of them again with the other's evaluate.images."
        )
    if not _shared(a, b):
        return 3, f"{_attack_difference(a, b)}. Attack both in the same way (evaluate.attacks)."
    return None


def _number(record: EvaluationRecord) -> str:
    return f"{len(record.image_ids):,}"


def _shared(a: EvaluationRecord, b: EvaluationRecord) -> list[tuple[list[Course], list[Course]]]:
    return [
        (mine, yours)
        for mine in together(courses(a))
        for yours in together(courses(b))
        if [(c.attack, c.trajectory) for c in mine] == [(c.attack, c.trajectory) for c in yours]
        and not mine[0].own_targets
    ]


def _attack_difference(a: EvaluationRecord, b: EvaluationRecord) -> str:
    """The first setting that differs in an attack of the same name, or the attacks' names."""
    for mine in courses(a):
        for yours in courses(b):
            if mine.attack == yours.attack:
                differing = (
                    f"{name} is {mine.trajectory[name]} and {yours.trajectory[name]}"
                    for name in sorted(mine.trajectory, key=lambda name: name == "readings")
                    if mine.trajectory[name] != yours.trajectory.get(name)
                )
                return f"of the attack {mine.attack}, {next(differing, 'something else differs')}"
    names = [", ".join(sorted({c.attack for c in courses(r)})) for r in (a, b)]
    return f"A was attacked by {names[0] or 'nothing'}, B by {names[1] or 'nothing'}"


def _pair(
    a: Evaluated, b: Evaluated, ra: EvaluationRecord, rb: EvaluationRecord, stored: list[set[str]]
) -> Pair | None:
    """None unless both are complete."""
    images = [
        enough_images(side.storage, record, names)
        for side, record, names in zip((a, b), (ra, rb), stored, strict=True)
    ]
    if images[0] is None or images[1] is None:
        return None
    shared = _shared(ra, rb)
    notes = [
        f"{group[0].attack} is left out: its targets are each model's own."
        for group in together(courses(ra))
        if group[0].own_targets
    ]
    notes += [
        f"Only {side} has {group[0].attack} read at {', '.join(map(str, group[0].readings))} steps."
        for side, record, place in (("A", ra, 0), ("B", rb, 1))
        for group in together(courses(record))
        if group not in [pair[place] for pair in shared] and not group[0].own_targets
    ]
    return Pair(a=ra, b=rb, images=min(images[0], images[1]), shared=shared, notes=notes)


def _unfinished(
    a: Evaluated,
    b: Evaluated,
    alike: list[tuple[EvaluationRecord, EvaluationRecord]],
    stored: list[set[str]],
) -> str:
    """Which side of the largest pair is not complete, and what completes it."""
    ra, rb = max(alike, key=lambda pair: len(pair[0].image_ids))
    sides = [
        f"{side} ({model.name}, trial {model.trial}) has {finished_images(record, names):,} of "
        f"{len(record.image_ids):,} images finished"
        for side, model, record, names in (("A", a, ra, stored[0]), ("B", b, rb, stored[1]))
        if enough_images(model.storage, record, names) is None
    ]
    return (
        f"The evaluation is not complete: {' and '.join(sides)}. "
        f"`{command('run FILE')}`, with the experiment file it came from, does the rest."
    )
