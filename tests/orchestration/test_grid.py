"""A sweep over two axes as a heat map: each number in its cell, and the curriculum's stages."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_report import ATTACK, by_hand, rows_of, small, sweep_of, trial_of

from s3ta.settings import ModelSettings, StageSettings, TrainAttackSettings, TrainSettings
from s3ta_platform.curves import learning_curves
from s3ta_platform.drawing import Sheet
from s3ta_platform.grid import grids, points, varied_axes
from s3ta_platform.heat import heat_maps
from s3ta_platform.report import write_report
from s3ta_platform.results import StageSpan, TrialResult
from s3ta_platform.stages import stage_spans
from s3ta_platform.summaries import summarise

UNROLL, STEPS = "model.unroll", "train.attack.steps"


def trial_at(point: dict[str, Any], right: int = 2, **changes: Any) -> TrialResult:
    """A trial of four images, so many of them right after the attack."""
    outcomes = [(0, 1, 0, 0 if i < right else 1) for i in range(4)]
    return replace(by_hand(), point=point, rows=rows_of(ATTACK, 100, outcomes), **changes)


def grid_of(axes: dict[str, list[Any]]) -> list[TrialResult]:
    found: list[dict[str, Any]] = [{}]
    for key, values in axes.items():
        found = [{**point, key: value} for point in found for value in values]
    return [trial_at(point) for point in found]


def test_rows_and_columns_are_the_two_axes_whatever_their_order_and_numbers_rise() -> None:
    trials = grid_of({UNROLL: [16, 2, 4], STEPS: [30, 10]})
    (grid,) = grids(trials)
    assert (grid.row_axis, grid.column_axis) == (STEPS, UNROLL)
    assert (grid.rows, grid.columns) == (["10", "30"], ["2", "4", "16"])
    for (row, column), place in grid.cells.items():
        assert trials[place].point == {UNROLL: int(column), STEPS: int(row)}
    assert len(grid.cells) == 6


def test_any_two_axes_make_a_grid_and_a_third_one_a_grid_for_each_of_its_values() -> None:
    axes: dict[str, list[Any]] = {
        "train.epochs": [5, 10],
        "train.learning_rate": [0.1, 0.25],
        "train.seed": [0, 1],
    }
    found = grids(grid_of(axes))
    assert [(g.row_axis, g.column_axis) for g in found] == 2 * [
        ("train.epochs", "train.learning_rate")
    ]
    assert [g.words for g in found] == ["Training seed 0", "Training seed 1"]
    assert found[0].columns == ["0.1", "0.25"]
    assert all(len(g.cells) == 4 for g in found)


def test_a_failed_trial_leaves_its_cell_empty_and_a_list_of_points_is_no_grid() -> None:
    trials = grid_of({UNROLL: [2, 4], STEPS: [10, 30]})
    (grid,) = grids(trials[:3])
    assert ("30", "4") not in grid.cells
    assert grids([trials[0], trials[3]]) == []
    assert grids(trials[:2]) == [], "one axis"
    assert grids([trial_at({"model": "a"}), trial_at({"model": "b", UNROLL: 2})]) == []
    assert grids([]) == []


def test_what_only_describes_a_trial_is_no_axis_and_sections_are_flattened() -> None:
    trials = [
        trial_at({"train": {"epochs": n}, "about.published": f"S3TA-{n}", STEPS: 10})
        for n in (2, 4)
    ]
    assert varied_axes(trials) == ["train.epochs"]
    assert points(trials) == [{"train.epochs": "2"}, {"train.epochs": "4"}]


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[Sheet]:
    """The sheets drawn on, so that a test can ask what stands where."""
    drawn: list[Sheet] = []
    png = Sheet.png

    def keep(sheet: Sheet) -> bytes:
        drawn.append(sheet)
        return png(sheet)

    monkeypatch.setattr(Sheet, "png", keep)
    return drawn


def four_trials() -> list[TrialResult]:
    trials = grid_of({UNROLL: [2, 4], STEPS: [10, 30]})
    return [trial_at(trial.point, right) for right, trial in enumerate(trials, 1)]


def test_each_number_stands_in_its_cell_and_the_better_the_darker(sheets: list[Sheet]) -> None:
    trials = four_trials()  # right: unroll 2 -> 1 and 2, unroll 4 -> 3 and 4 of four images
    (drawing,) = heat_maps(trials, [summarise(trial) for trial in trials])
    assert drawing.name == "heat_map"
    clean, _, attacked, _ = sheets[0].figure.axes
    said = {t.get_text(): t.get_position() for t in attacked.texts if "–" not in t.get_text()}  # noqa: RUF001
    places = {words: (round(x), round(y)) for words, (x, y) in said.items()}
    assert places == {"25.0": (0, 0), "50.0": (0, 1), "75.0": (1, 0), "100.0": (1, 1)}
    assert {t.get_text() for t in clean.texts} >= {"100.0"}
    assert (attacked.get_xlabel(), attacked.get_ylabel().replace("\n", " ")) == (
        "Unroll (glances)",
        "Attack steps in training",
    )
    assert [tick.get_text() for tick in attacked.get_xticklabels()] == ["2", "4"]
    assert [tick.get_text() for tick in attacked.get_yticklabels()] == ["10", "30"]
    faces: list[Any] = [patch.get_facecolor() for patch in attacked.patches]
    shades = [sum(face[:3]) for face in faces]
    # by rows: 25 % (10 steps, unroll 2), 75 %, 50 %, 100 %
    assert shades[0] > shades[2] > shades[1] > shades[3]


def test_noise_does_not_look_like_a_difference_and_the_papers_number_stands_beside_ours(
    sheets: list[Sheet],
) -> None:
    trials = grid_of({UNROLL: [2, 16], STEPS: [10, 30]})
    trials[3] = replace(trials[3], published="S3TA-16-30")
    heat_maps(trials, [summarise(trial) for trial in trials])
    clean, bar, _, _ = sheets[0].figure.axes
    assert len({patch.get_facecolor() for patch in clean.patches}) == 1
    assert [tick.get_text() for tick in bar.get_yticklabels()] == ["99.0 %", "101.0 %"]
    paper = [t for t in clean.texts if "paper" in t.get_text()]
    assert [t.get_text() for t in paper] == ["paper 64.55"]
    assert [round(v) for v in paper[0].get_position()] == [1, 1]


def test_the_report_of_a_grid_shows_it_and_sorts_by_full_numbers(tmp_path: Path) -> None:
    trials = [
        replace(trial, key=f"{n:016x}", name=f"S3TA {n}") for n, trial in enumerate(four_trials())
    ]
    page = write_report(sweep_of(trials, images=4), tmp_path).read_text()
    assert (tmp_path / "figures" / "heat_map.png").is_file()
    assert page.index("The grid at a glance") < page.index("Step by step")
    (table,) = re.findall(r'<table class="sortable">(.*?)</table>', page, re.DOTALL)
    values = re.findall(r'<td class="number" data-value="([\d.]+)"', table)
    assert [float(v) for v in values[1::3]] == [0.25, 0.5, 0.75, 1.0]


def test_with_many_readings_a_sortable_table_has_each_models_last_ones(tmp_path: Path) -> None:
    trial = trial_of("S3TA-16", 16, 1, gallery=None, history=[], published="S3TA-16")
    page = write_report(sweep_of([trial], failed={"S3TA-8": "boom"}), tmp_path).read_text()
    (table,) = re.findall(r'<table class="sortable">(.*?)</table>', page, re.DOTALL)
    assert "Top-1, 100 steps" in table
    assert "10 steps" not in table
    assert "paper 72.54" in table, "clean; this attack is none of the paper's"
    assert re.search(r'S3TA-8</th><td class="failed" colspan="4">', table)


def test_a_stages_words_are_what_differs_from_the_other_stages() -> None:
    train = TrainSettings(
        epochs=12,
        decay_epochs=[],
        attack=TrainAttackSettings(steps=7, epsilon_255=16),
        curriculum=[
            StageSettings(from_epoch=0, unroll=4),
            StageSettings(from_epoch=5, unroll=8, epsilon_255=8),
            StageSettings(from_epoch=9),
        ],
    )
    assert stage_spans(train, tiny.model()) == [
        StageSpan(first=0, end=5, words="unroll 4, ε 16/255"),
        StageSpan(first=5, end=9, words="unroll 8, ε 8/255"),
        StageSpan(first=9, end=12, words="unroll 2, ε 16/255"),
    ]
    assert stage_spans(TrainSettings(), ModelSettings()) == []


STAGES = [StageSpan(first=0, end=3, words="unroll 4"), StageSpan(first=3, end=4, words="unroll 8")]


def test_the_stages_are_shaded_from_their_first_epoch_to_the_next(sheets: list[Sheet]) -> None:
    trial = trial_of("S3TA-8", 8, 1, stages=STAGES)
    drawing = learning_curves([trial, trial])
    assert drawing is not None
    assert "from epoch 0 unroll 4; from epoch 3 unroll 8" in drawing.caption
    for axes in sheets[0].figure.axes:
        bands = [
            patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches
        ]
        assert [(round(b.x0, 6), round(b.x1, 6)) for b in bands] == [(0, 3), (3, 4)]
        assert [t.get_text() for t in axes.texts][:2] == ["unroll 4", "unroll 8"]


def test_stages_of_the_same_epochs_are_shaded_with_the_words_that_agree(
    sheets: list[Sheet],
) -> None:
    others = [STAGES[0], replace(STAGES[1], words="unroll 16")]
    trials = [trial_of("S3TA-8", 8, 1, stages=STAGES), trial_of("S3TA-16", 16, 2, stages=others)]
    drawing = learning_curves(trials)
    assert drawing is not None
    assert "from epoch 0 unroll 4; from epoch 3." in drawing.caption
    assert all(len(axes.patches) == 2 for axes in sheets[0].figure.axes)


def test_trials_of_different_curricula_share_no_shading(sheets: list[Sheet]) -> None:
    shaded, other = trial_of("S3TA-8", 8, 1, stages=STAGES), trial_of("S3TA-4", 4, 2)
    drawing = learning_curves([shaded, other])
    assert drawing is not None
    assert "urriculum" not in drawing.caption
    assert all(not axes.patches for axes in sheets[0].figure.axes)
    assert learning_curves(small(sweep_of([shaded, other])).trials) is None
