"""Analyses agree with the evaluation of the same model, and are made once, however they are cut."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import evaluate_job, model, train_job

from s3ta.errors import UserError
from s3ta.evaluation import AttackRun
from s3ta.settings import AttackSettings, Goal
from s3ta.tally import Tally
from s3ta_platform import shard_worker
from s3ta_platform.analysis_plan import (
    attacked_images,
    check_analyses,
    maps_drawn,
    natural_images,
    pieces,
    plan_analyses,
)
from s3ta_platform.analyze import analyze
from s3ta_platform.cluster import local_cluster
from s3ta_platform.evaluate import evaluate
from s3ta_platform.executors import run_inline, run_on_ray
from s3ta_platform.gallery import joined, read_gallery
from s3ta_platform.jobs import EvaluateJob, Ids, open_images
from s3ta_platform.models import load_model
from s3ta_platform.pieces import NaturalTask
from s3ta_platform.results import Gallery
from s3ta_platform.rows import merge_rows
from s3ta_platform.schema_analyze import (
    Analysis,
    AnalyzeSettings,
    ImagesSettings,
    LandscapeSettings,
    MapsSettings,
    NaturalSettings,
)
from s3ta_platform.schema_cluster import ClusterSettings
from s3ta_platform.shards import DoWork, Work, evaluation_ids, plan_shards
from s3ta_platform.snapshots import Snapshots
from s3ta_platform.storage import open_storage
from s3ta_platform.study_files import read_pieces, values
from s3ta_platform.train import train
from s3ta_platform.verify_analyses import check_studies

ATTACK = {"untargeted": AttackSettings(goal=Goal.untargeted, epsilon_255=25.5, readings=[5, 20])}
IMAGES = 12
CLASSES = [8, 1, 5]


def _settings(*do: Analysis, **changes: Any) -> AnalyzeSettings:
    return AnalyzeSettings(
        do=list(do),
        landscape=LandscapeSettings(images=3, points=7, reach=1.5),
        attention=MapsSettings(images=IMAGES, object_above=0.1),
        images=ImagesSettings(images=12),
        **changes,
    )


EVERY = (Analysis.landscape, Analysis.attention, Analysis.images)


def _job(root: str, *do: Analysis, shard_images: int = 16, **more: Any) -> EvaluateJob:
    settings = more.pop("settings", None) or _settings(*(do or EVERY))
    job = evaluate_job(root, shard_images, images=IMAGES, attacks=ATTACK, **more)
    return replace(job, analyze=settings)


def _ids(job: EvaluateJob) -> Ids:
    return evaluation_ids(open_images(job.data.test, job.data, job.model).ids_N, job.evaluate)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Results with a trained model, evaluated and analysed."""
    folder = str(tmp_path_factory.mktemp("trained"))
    train(train_job(folder, epochs=1))
    evaluate(_job(folder), run_inline)
    analyze(_job(folder), run_inline)
    return folder


@pytest.fixture
def fresh(root: str, tmp_path: Path) -> str:
    """The same model, without any result."""
    (tmp_path / "trials").symlink_to(Path(root) / "trials")
    return str(tmp_path)


def _table(job: EvaluateJob, analysis: Analysis) -> dict[str, np.ndarray]:
    table = read_pieces(open_storage(job.root), pieces(job, _ids(job), analysis))
    return {name: values(table, name) for name in table.column_names}


@pytest.fixture(scope="module")
def rows(root: str) -> dict[str, np.ndarray]:
    """The evaluation's rows, in the order of the permutation."""
    job = _job(root)
    shards = plan_shards(job, _ids(job))
    table: pa.Table = merge_rows(open_storage(root), ((s.attack, s.name) for s in shards))
    return {name: table[name].to_numpy() for name in table.column_names}


def _by_image(rows: dict[str, np.ndarray], column: str, step: int) -> dict[int, Any]:
    at = rows["step"] == step
    return dict(zip(rows["image_id"][at].tolist(), rows[column][at].tolist(), strict=True))


def test_the_landscape_meets_the_evaluation_at_the_attacked_image(
    root: str, rows: dict[str, np.ndarray]
) -> None:
    found = _table(_job(root, Analysis.landscape), Analysis.landscape)
    assert len(found["margin"]) == 3 * 7 * 7
    at_attack = np.isclose(found["u_255"], 25.5) & np.isclose(found["v_255"], 0)
    margins = _by_image(rows, "margin", 20)
    expected = [margins[i] for i in found["image_id"][at_attack].tolist()]
    assert found["margin"][at_attack] == pytest.approx(expected, abs=1e-3)
    centre = np.isclose(found["u_255"], 0) & np.isclose(found["v_255"], 0)
    clean = _by_image(rows, "clean_prediction", 20)
    right = [clean[i] for i in found["image_id"][centre].tolist()] == found["label"][centre]
    assert ((found["margin"][centre] > 0) == right).all()


def test_the_attention_study_answers_as_the_evaluation_does(
    root: str, rows: dict[str, np.ndarray]
) -> None:
    found = _table(_job(root, Analysis.attention), Analysis.attention)
    ids = found["image_id"].tolist()
    for column, step_column in (("clean", "clean_prediction"), ("attacked", "prediction")):
        expected = _by_image(rows, step_column, 20)
        assert found[column].tolist() == [expected[i] for i in ids]
    assert found["moved_attacked"].shape == (IMAGES, 2 * 2)  # glances x heads
    assert ((found["moved_attacked"] >= 0) & (found["moved_attacked"] <= 1)).all()
    assert (found["away_attacked"] <= found["moved_attacked"] + 1e-6).all()  # m_p is at most 1


def _galleries(job: EvaluateJob) -> dict[int, Gallery]:
    """By steps."""
    found: dict[int, list[Gallery]] = {}
    for portraits in attacked_images(job, _ids(job)):
        gallery = read_gallery(open_storage(job.root), portraits)
        assert gallery is not None
        found.setdefault(gallery.steps, []).append(gallery)
    return {steps: joined(galleries) for steps, galleries in found.items()}


def test_attacked_images_are_those_of_each_reading(root: str, rows: dict[str, np.ndarray]) -> None:
    found = _galleries(_job(root, Analysis.images))
    assert list(found) == [5, 20]
    for steps, gallery in found.items():
        expected = _by_image(rows, "prediction", steps)
        ids = gallery.image_ids_B.tolist()
        assert gallery.predictions_B.tolist() == [expected[i] for i in ids]
        assert np.abs(gallery.attacked_BCHW - gallery.clean_BCHW).max() <= 0.1 * (1 + 1e-6)


def test_natural_images_are_answered_among_the_chosen_classes(fresh: str) -> None:
    settings = _settings(Analysis.natural, natural=NaturalSettings())
    job = _job(fresh, settings=settings)
    piece = next(pieces(job, _ids(job)))
    chosen = piece.image_ids[:20]
    assert isinstance(piece.task, NaturalTask)
    task = replace(piece.task, classes=tuple(CLASSES))
    part = replace(piece, image_ids=chosen, task=task)
    shard_worker.build_worker(job, "me")(part)
    table = read_pieces(open_storage(fresh), [part])
    pixels, labels = natural_images(job).read(chosen)
    with torch.no_grad():
        logits = load_model(job, open_storage(fresh))(torch.from_numpy(pixels).float() / 255)
    shares = logits[:, CLASSES].double().softmax(dim=1)
    assert values(table, "prediction").tolist() == shares.argmax(dim=1).tolist()
    assert values(table, "confidence") == pytest.approx(shares.amax(dim=1).numpy(), abs=1e-6)
    assert values(table, "label").tolist() == labels.tolist()


def _backwards(
    build: Callable[[], DoWork], jobs: Iterable[Work], **watch: Any
) -> Iterator[tuple[Work, Tally]]:
    return run_inline(build, reversed(list(jobs)), **watch)


def test_what_is_found_does_not_depend_on_how_it_is_cut(root: str, fresh: str) -> None:
    small = _job(fresh, shard_images=8)
    # A landscape; the attention in two pieces; images after 5 steps, and in two pieces after 20,
    # of which the first are those whose maps are drawn.
    assert analyze(small, _backwards) == 1 + 2 + 1 + 2
    for analysis in (Analysis.landscape, Analysis.attention):
        once, again = _table(_job(root), analysis), _table(small, analysis)
        assert once.keys() == again.keys()
        for name in once:
            assert once[name].tobytes() == again[name].tobytes(), name
    _assert_same_galleries(_job(root), small)


def _assert_same_galleries(a: EvaluateJob, b: EvaluateJob) -> None:
    once, again = _galleries(a), _galleries(b)
    assert once.keys() == again.keys()
    for steps in once:
        assert once[steps].attacked_BCHW.tobytes() == again[steps].attacked_BCHW.tobytes()
        assert once[steps].image_ids_B.tolist() == again[steps].image_ids_B.tolist()


def test_what_is_stored_is_never_computed_again(root: str) -> None:
    job = _job(root)
    assert analyze(job, run_inline) == 0
    finer = _settings(*EVERY)
    finer.landscape = replace(finer.landscape, points=9)
    assert analyze(_job(root, settings=finer), run_inline) == 1
    shown = _settings(*EVERY)
    shown.attention = replace(shown.attention, shown=1)
    shown.images = replace(shown.images, shown=1)
    assert analyze(_job(root, settings=shown), run_inline) == 0  # what is drawn changes nothing


class _Lost(Exception):  # noqa: N818 - the worker is gone
    pass


def test_a_lost_analysis_goes_on_from_its_saved_state(
    root: str, fresh: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _job(fresh, Analysis.landscape, cluster=ClusterSettings(snapshot_steps=4))
    (piece,) = pieces(job, _ids(job))
    keep, steps = shard_worker._Keeper.__call__, 0

    def dies(self: Any, run: AttackRun) -> None:
        nonlocal steps
        keep(self, run)
        steps += 1
        if steps == 9:
            raise _Lost

    monkeypatch.setattr(shard_worker._Keeper, "__call__", dies)
    do = shard_worker.build_worker(job, "me")
    with pytest.raises(_Lost):
        do(piece)
    assert Snapshots(open_storage(fresh), 0).steps(f"{piece.key}-0") == [3 * 8]
    do(piece)
    assert steps == 9 + 13  # from step 8 to 20, and the last look
    assert not Snapshots(open_storage(fresh), 0).keys()
    once, again = (_table(_job(r), Analysis.landscape) for r in (root, fresh))
    assert all(once[name].tobytes() == again[name].tobytes() for name in once)


def test_a_damaged_piece_is_refused_with_the_remedy(root: str, tmp_path: Path) -> None:
    job = _job(root, Analysis.landscape)
    (piece,) = pieces(job, _ids(job))
    content, whole = (Path(root) / piece.name).read_bytes(), _table(job, Analysis.landscape)
    refused = 0
    for place in range(0, len(content), len(content) // 60):
        damaged = bytearray(content)
        damaged[place] ^= 1
        (tmp_path / "analyses").mkdir(exist_ok=True)
        (tmp_path / piece.name).write_bytes(damaged)
        try:
            table = read_pieces(open_storage(str(tmp_path)), [piece])
        except UserError as error:
            refused += "Delete it and run again" in str(error)
        else:  # a byte that plays no part
            assert all(np.array_equal(values(table, name), whole[name]) for name in whole)
    assert refused > 30


def test_verify_tells_a_piece_that_was_renamed_or_damaged(root: str, tmp_path: Path) -> None:
    storage, ticks = open_storage(str(tmp_path)), []
    (piece,) = pieces(job := _job(root, Analysis.landscape), _ids(job))
    content = (Path(root) / piece.name).read_bytes()
    storage.put_new(piece.name, content)
    assert check_studies(storage, lambda: ticks.append(1)).doubts == []
    assert len(ticks) == 1
    storage.put_new("analyses/0123456789abcdef.parquet", content)
    storage.put_new("analyses/damaged.parquet", content[:-9])
    doubts = " ".join(check_studies(storage, lambda: None).doubts)
    assert f"it says that its key is {piece.key}, its name says 0123456789abcdef" in doubts
    assert "damaged.parquet is not a whole file of results" in doubts


def test_a_model_without_a_controller_has_no_maps_to_analyse(root: str) -> None:
    job = _job(root)
    plain = replace(job, model=replace(model(), attention=None, unroll=1))
    assert not maps_drawn(plain, _ids(job))
    kinds = {getattr(work, "analysis", None) for work in plan_analyses(plain, _ids(job))}
    assert Analysis.attention not in kinds
    check_analyses([job, plain])
    with pytest.raises(UserError, match="no model of this file has a controller"):
        check_analyses([plain])


def test_classes_that_the_model_lacks_are_refused(root: str) -> None:
    natural = NaturalSettings(classes=[3, 10])
    job = _job(root, settings=_settings(Analysis.natural, natural=natural))
    with pytest.raises(UserError, match=r"classes has 10: the model's classes are 0 to 9"):
        check_analyses([job])


@pytest.mark.slow
def test_on_ray_the_same_is_found(root: str, fresh: str, tmp_path: Path) -> None:
    job = _job(fresh, shard_images=8)
    with local_cluster(cpus=2, log_file=tmp_path / "log"):

        def fan_out(
            build: Callable[[], DoWork], jobs: Iterable[Work], **watch: Any
        ) -> Iterator[tuple[Work, Tally]]:
            return run_on_ray(build, jobs, workers=2, **watch)

        analyze(job, fan_out)
    for analysis in (Analysis.landscape, Analysis.attention):
        once, again = _table(_job(root), analysis), _table(job, analysis)
        assert all(once[name].tobytes() == again[name].tobytes() for name in once)
    _assert_same_galleries(_job(root), job)
