"""From stored pieces to figures and tables: what the analyses of a file leave."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from s3ta.calibration import Answers
from s3ta.distraction import ANSWERS
from s3ta_platform.analysis_plan import (
    attack_of,
    attacked_images,
    longest_runs,
    maps_drawn,
    missing_analyses,
    pieces,
)
from s3ta_platform.attack_images import Course, attack_images, image_rows
from s3ta_platform.attack_names import attack_title
from s3ta_platform.calibration_figures import (
    calibrated,
    calibration_bars,
    calibration_rows,
    response_curves,
)
from s3ta_platform.distraction_figures import Distraction, distraction_figure, distraction_rows
from s3ta_platform.drawing import Drawing
from s3ta_platform.gallery import joined, read_gallery
from s3ta_platform.jobs import EvaluateJob, open_images
from s3ta_platform.landscape_figures import (
    LOSSES,
    Landscape,
    chosen_images,
    landscape_figure,
    linearity_rows,
)
from s3ta_platform.pictures import attention_maps, fooled_images, hwc
from s3ta_platform.plan import Plan, TrialPlan
from s3ta_platform.race import race_figure, race_points, race_rows
from s3ta_platform.results import Gallery, SweepResult
from s3ta_platform.rows import parquet_bytes
from s3ta_platform.schema_analyze import Analysis
from s3ta_platform.study_files import read_pieces, values
from s3ta_platform.summaries import summarise


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one analysis leaves."""

    title: str
    drawings: list[Drawing]
    files: dict[str, bytes] = field(default_factory=dict)
    """Tables by file name."""


@dataclass(frozen=True)
class _Trial:
    """A trial whose pieces are all stored."""

    plan: TrialPlan
    job: EvaluateJob

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def key(self) -> str:
        return self.plan.key


def found_by_analyses(plan: Plan, result: SweepResult) -> list[Found]:
    """All analyses of a file, of the trials that are complete, in the order asked for."""
    trials = []
    for trial in plan.trials:
        trained = trial.trained(plan.storage)
        if trained is None or trial.key not in {t.key for t in result.trials}:
            continue
        job = trial.evaluation(trained)
        if not missing_analyses(plan.storage, job, trial.test_ids):
            trials.append(_Trial(trial, job))
    make = {
        Analysis.landscape: _landscape,
        Analysis.attention: _attention,
        Analysis.images: _images,
        Analysis.natural: _natural,
        Analysis.race: _race,
    }
    return [make[a](plan, trials, result) for a in plan.experiment.analyze.do if trials]


def _tables(plan: Plan, trials: Sequence[_Trial], analysis: Analysis) -> list[tuple[_Trial, Any]]:
    """The rows of all trials that have this analysis."""
    found = []
    for trial in trials:
        own = list(pieces(trial.job, trial.plan.test_ids, analysis))
        if own:
            found.append((trial, read_pieces(plan.storage, own)))
    return found


def _stored(name: str, tables: Sequence[tuple[_Trial, Any]]) -> dict[str, bytes]:
    """Every row, with its model, as one Parquet file."""
    parts = []
    for trial, table in tables:
        about = {"model": trial.name, "key": trial.key}
        named = {name: pa.array([v] * len(table), pa.string()) for name, v in about.items()}
        parts.append(
            pa.table({**named, **dict(zip(table.column_names, table.columns, strict=True))})
        )
    # Lists of numbers are as long as a model has glances.
    merged = pa.concat_tables([_plain_lists(part) for part in parts], promote_options="default")
    return {f"{name}.parquet": parquet_bytes(merged)}


def _plain_lists(table: pa.Table) -> pa.Table:
    for place, name in enumerate(table.column_names):
        kind = table.schema.field(name).type
        if pa.types.is_fixed_size_list(kind):
            table = table.set_column(place, name, table[name].cast(pa.list_(kind.value_type)))
    return table


def _csv(columns: str, rows: Sequence[Sequence[Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns.split())
    writer.writerows([[f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows])
    return out.getvalue().encode()


def _landscape(plan: Plan, trials: Sequence[_Trial], result: SweepResult) -> Found:
    tables = _tables(plan, trials, Analysis.landscape)
    settings = plan.experiment.analyze.landscape
    attack = attack_of(trials[0].job, settings.attack)
    landscapes = []
    for trial, table in tables:
        at_P, ids = np.unique(values(table, "u_255")), values(table, "image_id")
        shape = (len(at_P), len(at_P))
        losses = {
            loss: {int(i): values(table, loss)[ids == i].reshape(shape) for i in dict.fromkeys(ids)}
            for loss in LOSSES
        }
        own = attack_of(trial.job, settings.attack)
        landscapes.append(
            Landscape(
                model=trial.name,
                key=trial.key,
                epsilon_255=own.epsilon_255,
                at_P=at_P,
                losses=losses,
            )
        )
    shown = chosen_images(landscapes, settings.shown)
    job = trials[0].job
    pixels, labels = open_images(job.data.test, job.data, job.model).read(shown)
    images = {i: (hwc(pixels[n] / 255), plan.class_names[labels[n]]) for n, i in enumerate(shown)}
    words = f"{longest_runs(attack)[0].steps:,} steps of {attack_title(attack.name)}"
    columns = "model key loss image loss_at_image loss_at_attacked r2_in_diamond"
    return Found(
        title="The loss around an image",
        drawings=[landscape_figure(landscapes, loss, images, words) for loss in LOSSES],
        files={
            "landscape.csv": _csv(columns, linearity_rows(landscapes)),
            **_stored("landscape", tables),
        },
    )


def _attention(plan: Plan, trials: Sequence[_Trial], result: SweepResult) -> Found:
    tables = _tables(plan, trials, Analysis.attention)
    settings = plan.experiment.analyze.attention
    attack = attack_of(tables[0][0].job, settings.attack)
    models = [_distraction(trial, table) for trial, table in tables]
    words = f"{longest_runs(attack)[0].steps:,} steps of {attack_title(attack.name)}"
    columns = "model key measure group step head value low high images"
    return Found(
        title="What the attack does to the attention",
        drawings=[distraction_figure(models, words), *_maps(plan, trials, result)],
        files={
            "distraction.csv": _csv(columns, distraction_rows(models)),
            **_stored("attention", tables),
        },
    )


def _distraction(trial: _Trial, table: Any) -> Distraction:
    label_N, target_N = values(table, "label"), values(table, "target")
    answers = {name: values(table, name) for name in ANSWERS}
    right_N = answers["clean"] == label_N
    wrong_N, hit_N = answers["attacked"] != label_N, answers["attacked"] == target_N
    attention = trial.job.model.attention
    assert attention is not None
    shape = (int(right_N.sum()), trial.job.model.unroll, attention.heads)
    shifts = [n for n in table.column_names if n.startswith(("moved_", "away_"))]
    return Distraction(
        model=trial.name,
        key=trial.key,
        fell_N=np.where(target_N >= 0, hit_N, wrong_N)[right_N],
        answers={name: (found == label_N)[right_N] for name, found in answers.items()},
        shifts={name: values(table, name)[right_N].reshape(shape) for name in shifts},
    )


def _maps(plan: Plan, trials: Sequence[_Trial], result: SweepResult) -> list[Drawing]:
    """Maps of the first images that fell, for each model."""
    by_key = {trial.key: trial for trial in result.trials}
    drawings = []
    for trial in trials:
        for portraits in maps_drawn(trial.job, trial.plan.test_ids):
            gallery = read_gallery(plan.storage, portraits)
            if gallery is None:
                continue
            right_B = gallery.clean_predictions_B == gallery.labels_B
            order = np.argsort(~(fooled_images(gallery) & right_B), kind="stable")
            for number, place in enumerate(order[: trial.job.analyze.attention.shown].tolist()):
                shown = replace(by_key[trial.key], gallery=gallery)
                drawing = attention_maps(shown, plan.class_names, place)
                if drawing is not None:
                    name = f"attention-{trial.key}-{number + 1}"
                    drawings.append(replace(drawing, name=name))
    return drawings


def _images(plan: Plan, trials: Sequence[_Trial], result: SweepResult) -> Found:
    courses = []
    for trial in trials:
        by_steps: dict[int, list[Gallery]] = {}
        for portraits in attacked_images(trial.job, trial.plan.test_ids):
            if (gallery := read_gallery(plan.storage, portraits)) is not None:
                by_steps.setdefault(gallery.steps, []).append(gallery)
        whole = tuple(joined(galleries) for galleries in by_steps.values())
        courses.append(Course(model=trial.name, key=trial.key, galleries=whole))
    columns = "model key image steps label target clean_prediction prediction linf_255"
    return Found(
        title="Attacked images, step by step",
        drawings=[attack_images(courses, plan.class_names, plan.experiment.analyze.images.shown)],
        files={"attack_images.csv": _csv(columns, image_rows(courses))},
    )


def _natural(plan: Plan, trials: Sequence[_Trial], result: SweepResult) -> Found:
    settings, tables = plan.experiment.analyze.natural, _tables(plan, trials, Analysis.natural)
    models = []
    for trial, table in tables:
        answers = Answers(
            confidence_N=values(table, "confidence"),
            correct_N=values(table, "prediction") == values(table, "label"),
            ids_N=values(table, "image_id"),
        )
        seed = trial.job.evaluate.seed
        models.append(calibrated(trial.name, trial.key, answers, settings.bootstrap, seed))
    bars, curves = (draw(models, settings.name) for draw in (calibration_bars, response_curves))
    return Found(
        title=f"Accuracy and calibration on {settings.name}",
        drawings=[bars, curves],
        files={
            "calibration.csv": _csv(
                "model key measure value low high images", calibration_rows(models)
            ),
            **_stored("natural", tables),
        },
    )


def _race(plan: Plan, trials: Sequence[_Trial], result: SweepResult) -> Found:
    by_key, points = {trial.key: trial for trial in result.trials}, []
    attack = attack_of(trials[0].job, plan.experiment.analyze.race.attack)
    for trial in trials:
        own = attack_of(trial.job, plan.experiment.analyze.race.attack)
        summary = summarise(by_key[trial.key])
        model, size = trial.job.model, trial.plan.image_size
        points += race_points(summary, model, own, size, trial.job.classes)
    columns = "model key unroll steps defender_macs attacker_macs top1 low high images"
    return Found(
        title="The computational race",
        drawings=[race_figure(points, attack_title(attack.name), result.images)],
        files={"race.csv": _csv(columns, race_rows(points))},
    )
