"""Which pieces the analyses of a trained model consist of. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from s3ta.calibration import LEAST
from s3ta.errors import UserError
from s3ta.settings import AttackSettings, ModelSettings, Queries, Through
from s3ta.trajectory import Trajectory, trajectories
from s3ta_platform.data import ParquetImages, read_manifest
from s3ta_platform.jobs import EvaluateJob, Ids, open_images
from s3ta_platform.pieces import (
    LandscapeTask,
    MapsTask,
    NaturalTask,
    Piece,
    Task,
    piece_parts,
)
from s3ta_platform.record import content_key
from s3ta_platform.schema_analyze import Analysis
from s3ta_platform.shards import AT_MOST_TILES, Portraits, shard_size
from s3ta_platform.storage import Storage


def plan_analyses(job: EvaluateJob, ids: Ids) -> list[Piece | Portraits]:
    """Everything that the job's analyses need, each piece once."""
    planned: list[Piece | Portraits] = [
        *pieces(job, ids),
        *attacked_images(job, ids),
        *maps_drawn(job, ids),
    ]
    return list({work.name: work for work in planned}.values())


def missing_analyses(storage: Storage, job: EvaluateJob, ids: Ids) -> list[Piece | Portraits]:
    """What of its analyses is not stored."""
    return [work for work in plan_analyses(job, ids) if not storage.exists(work.name)]


def pieces(job: EvaluateJob, ids: Ids, analysis: Analysis | None = None) -> Iterator[Piece]:
    """Of one analysis or of all, in the order of their images."""
    asked = [a for a in job.analyze.do if analysis in (None, a)]
    if Analysis.landscape in asked:
        yield from _landscape(job, ids)
    if Analysis.attention in asked and looks_around(job.model):
        yield from _attention(job, ids)
    if Analysis.natural in asked:
        yield from _natural(job)


def attacked_images(job: EvaluateJob, ids: Ids) -> list[Portraits]:
    """Images kept whole, after each reading (Figure 8); each reading's in the same order."""
    if Analysis.images not in job.analyze.do:
        return []
    settings = job.analyze.images
    attack, chosen = attack_of(job, settings.attack), _first(job, ids, settings.images)
    return [
        _portraits(job, attack, run, chosen[start : start + size])
        for run in _one_per_reading(attack)
        for size in [shard_size(job.evaluate, run)]
        for start in range(0, len(chosen), size)
    ]


def maps_drawn(job: EvaluateJob, ids: Ids) -> list[Portraits]:
    """The first tile, after the attack whose effect on the maps is analysed."""
    if Analysis.attention not in job.analyze.do or not looks_around(job.model):
        return []
    settings = job.analyze.attention
    attack = attack_of(job, settings.attack)
    chosen = _first(job, ids, min(settings.images, job.evaluate.tile))
    return [_portraits(job, attack, longest_runs(attack)[0], chosen)]


def looks_around(model: ModelSettings) -> bool:
    """Whether a model has a controller, whose maps can be given to it."""
    return model.attention is not None and model.attention.queries is not Queries.one_shot


def attack_of(job: EvaluateJob, name: str) -> AttackSettings:
    """The attack that an analysis names."""
    return job.evaluate.attacks[name] if name else next(iter(job.evaluate.attacks.values()))


def longest_runs(attack: AttackSettings) -> list[Trajectory]:
    """The attack at its last reading, from every start."""
    runs = trajectories(attack)
    steps = max(run.steps for run in runs)
    return [replace(run, readings=(steps,)) for run in runs if run.steps == steps]


def _one_per_reading(attack: AttackSettings) -> list[Trajectory]:
    """A run that ends at each reading, from the first start: the way there is the same."""
    first = {n: run for run in reversed(trajectories(attack)) for n in run.readings}
    return [replace(first[n], steps=n, readings=(n,)) for n in attack.readings]


def _first(job: EvaluateJob, ids: Ids, count: int) -> tuple[int, ...]:
    return tuple(ids[:count].tolist())


def _portraits(
    job: EvaluateJob, attack: AttackSettings, run: Trajectory, chosen: tuple[int, ...]
) -> Portraits:
    key = job.key(run, chosen)
    return Portraits(key=key, attack=attack.name, trajectory=run, image_ids=chosen)


def _landscape(job: EvaluateJob, ids: Ids) -> Iterator[Piece]:
    settings = job.analyze.landscape
    runs = longest_runs(attack_of(job, settings.attack))
    task = LandscapeTask(points=settings.points, reach=settings.reach)
    size = shard_size(job.evaluate, runs[0])
    yield from _cut(job, Analysis.landscape, task, runs, _first(job, ids, settings.images), size)


def _attention(job: EvaluateJob, ids: Ids) -> Iterator[Piece]:
    settings = job.analyze.attention
    run = longest_runs(attack_of(job, settings.attack))[0]
    runs = [run, replace(run, through=Through.held_maps, unroll=None)]
    task = MapsTask(object_above=settings.object_above)
    size = shard_size(job.evaluate, run)
    yield from _cut(job, Analysis.attention, task, runs, _first(job, ids, settings.images), size)


def _natural(job: EvaluateJob) -> Iterator[Piece]:
    settings = job.analyze.natural
    digest = read_manifest(_location(job), _classes(job)).digest
    task = NaturalTask(digest=digest, classes=tuple(settings.classes))
    ids = tuple(natural_images(job).ids_N.tolist())
    yield from _cut(job, Analysis.natural, task, [], ids, job.evaluate.tile * AT_MOST_TILES)


def natural_images(job: EvaluateJob) -> ParquetImages:
    """The images of that analysis."""
    return open_images(_location(job), replace(job.data, classes=_classes(job)), job.model)


def _location(job: EvaluateJob) -> str:
    return job.analyze.natural.location or job.data.test


def _classes(job: EvaluateJob) -> int:
    """So many classes the labels of these images have."""
    return len(job.analyze.natural.classes) or job.classes


def _cut(
    job: EvaluateJob,
    analysis: Analysis,
    task: Task,
    runs: list[Trajectory],
    ids: tuple[int, ...],
    size: int,
) -> Iterator[Piece]:
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        yield Piece(
            key=content_key(**piece_parts(job, analysis, task, tuple(runs), part)),
            analysis=analysis,
            task=task,
            runs=tuple(runs),
            image_ids=part,
        )


def check_analyses(jobs: Sequence[EvaluateJob]) -> None:
    """UserError for what can't be analysed, before anything is computed."""
    for job in jobs:
        if Analysis.natural in job.analyze.do:
            _check_natural(job)
    asked = [job for job in jobs if Analysis.attention in job.analyze.do]
    if asked and not any(looks_around(job.model) for job in asked):
        raise UserError(
            "analyze.do has attention, and no model of this file has a controller whose attention "
            "could be analysed: one must be an S3TA. Leave it out, or add such a model."
        )
    for job in jobs:
        if Analysis.race in job.analyze.do and job.model.factory is not None:
            raise UserError(
                "analyze.do has race, and what model.factory's model computes is not known: every "
                "model must be one of ours. Leave race out."
            )


def _check_natural(job: EvaluateJob) -> None:
    outside = [c for c in job.analyze.natural.classes if not 0 <= c < job.classes]
    if outside:
        raise UserError(
            f"analyze.natural.classes has {outside[0]}: the model's classes are 0 to "
            f"{job.classes - 1}. Correct the list."
        )
    images = len(natural_images(job).ids_N)
    if images < LEAST:
        raise UserError(
            f"{_location(job)} has {images} images: a calibration error needs at least {LEAST}. "
            "Name more in analyze.natural.location, or leave natural out of analyze.do."
        )
