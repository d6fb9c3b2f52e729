"""The numbers behind the figures of analyses, by hand."""

import numpy as np
import pytest

from s3ta.calibration import Answers
from s3ta.cost import multiply_adds
from s3ta.settings import AttackSettings, AttentionSettings, Goal, ModelSettings, Through
from s3ta_platform.attack_images import Course, attack_images, image_rows, telling_places
from s3ta_platform.calibration_figures import calibrated, calibration_rows
from s3ta_platform.distraction_figures import Distraction, distraction_figure, distraction_rows
from s3ta_platform.landscape_figures import Landscape, chosen_images, linearity_rows
from s3ta_platform.race import race_figure, race_points, race_rows
from s3ta_platform.results import Gallery
from s3ta_platform.summaries import Reading, Share, Summary

MODEL = ModelSettings(attention=AttentionSettings(), unroll=4)


def _summary(attack: AttackSettings) -> Summary:
    readings = [
        Reading(
            attack=attack.name,
            steps=steps,
            targeted=False,
            top1=Share(50 - place, 100),
            success=Share(place, 100),
        )
        for place, steps in enumerate(attack.readings)
    ]
    return Summary(
        key="k",
        name="S3TA-4",
        parameters=1,
        unroll=4,
        nominal=Share(90, 100),
        readings=tuple(readings),
    )


@pytest.mark.parametrize(
    ("attack", "passes"),
    [
        ({}, {10: 20, 100: 200}),  # a step is a pass and a gradient
        ({"restarts": 3}, {10: 60, 100: 600}),
        ({"through": Through.held_maps}, {10: 30, 100: 300}),
    ],
)
def test_the_attacker_pays_for_its_passes_and_the_defender_for_one(
    attack: dict[str, object], passes: dict[int, int]
) -> None:
    settings = AttackSettings(goal=Goal.untargeted, readings=[10, 100], **attack)  # type: ignore[arg-type]
    points = race_points(_summary(settings), MODEL, settings, 64, 10)
    forward = multiply_adds(MODEL, 64, 10)
    assert {p.steps: p.attacker for p in points} == {n: p * forward for n, p in passes.items()}
    assert {p.defender for p in points} == {forward}
    assert [p.top1.successes for p in points] == [50, 49]
    assert race_rows(points)[1][:5] == ["S3TA-4", "k", 4, 100, forward]


def test_an_attack_through_more_glances_pays_for_them() -> None:
    settings = AttackSettings(goal=Goal.untargeted, readings=[20], unroll=16)
    (point,) = race_points(_summary(settings), MODEL, settings, 64, 10)
    longer = ModelSettings(attention=AttentionSettings(), unroll=16)
    assert point.attacker == 40 * multiply_adds(longer, 64, 10)
    assert point.defender == multiply_adds(MODEL, 64, 10) < multiply_adds(longer, 64, 10)


def test_the_race_is_drawn_without_a_recurrent_model_too() -> None:
    settings = AttackSettings(readings=[10, 100])
    points = race_points(_summary(settings), ModelSettings(), settings, 64, 10)
    assert {p.unroll for p in points} == {0}
    assert race_figure(points, "PGD", 100).png.startswith(b"\x89PNG")


def _distraction() -> Distraction:
    """Four images, of which the first two fell; one glance, two heads."""
    moved = np.array([[[0.5, 0.3]], [[0.3, 0.1]], [[0.1, 0.1]], [[0.0, 0.0]]])
    right = {
        "attacked": [0, 0, 1, 1],
        "attacked_clean_maps": [1, 0, 1, 1],
        "clean_attacked_maps": [1, 1, 1, 1],
        "clean_random_maps": [1, 1, 1, 1],
        "held_clean_maps": [0, 1, 1, 1],
        "held": [0, 1, 1, 0],
    }
    return Distraction(
        model="S3TA-1",
        key="k",
        fell_N=np.array([True, True, False, False]),
        answers={name: np.array(flags, bool) for name, flags in right.items()},
        shifts={"moved_attacked": moved, "moved_random": moved / 10},
    )


def test_distraction_compares_fallen_images_with_those_that_withstood() -> None:
    lines = {(row[2], row[3], row[4], row[5]): row[6] for row in distraction_rows([_distraction()])}
    assert lines["moved", "fell", 0, 0] == pytest.approx(0.3)
    assert lines["moved", "withstood", 0, 0] == pytest.approx(0.05)
    assert lines["moved", "fell", 1, 2] == pytest.approx(0.2)
    assert lines["moved", "random signs", 1, 1] == pytest.approx(0.0225)
    assert lines["right: attacked image, clean maps", "fell", 0, 0] == 0.5  # one has come back
    assert lines["right: held-maps attack, as deployed", "withstood", 0, 0] == 0.5
    assert not any(measure == "away" for measure, *_ in lines)


def test_distraction_is_drawn_where_no_image_fell() -> None:
    found = _distraction()
    none = Distraction(**{**vars(found), "fell_N": np.zeros(4, bool)})
    assert distraction_figure([none], "PGD").png.startswith(b"\x89PNG")


def _landscape(model: str, heights: dict[int, tuple[float, float]]) -> Landscape:
    """Margins that fall from the first number at the image to the second at the attacked one."""
    at = np.array([-15.0, -10, -5, 0, 5, 10, 15])
    grids = {i: np.tile(a + (b - a) * at / 10, (7, 1)) for i, (a, b) in heights.items()}
    losses = {"margin": grids, "cross_entropy": {i: -grid for i, grid in grids.items()}}
    return Landscape(model=model, key="k", epsilon_255=10, at_P=at, losses=losses)


def test_shown_are_images_that_are_right_and_fall_to_the_attack_first() -> None:
    a = _landscape("a", {1: (-1, -2), 2: (3, 1), 3: (2, -1), 4: (2, 1)})
    b = _landscape("b", {1: (1, -2), 2: (3, 1), 3: (2, -1), 4: (2, -1)})
    assert chosen_images([a, b], 3) == [3, 4, 2]
    row = next(r for r in linearity_rows([a]) if r[2:4] == ["margin", 3])
    assert row[4:] == pytest.approx([2, -1, 1.0])  # a plane is linear


def test_calibration_rows_hold_each_measure_with_its_interval() -> None:
    answers = Answers(
        confidence_N=np.linspace(0.1, 1, 250),
        correct_N=np.arange(250) % 2 == 0,
        ids_N=np.arange(250),
    )
    found = calibrated("m", "k", answers, times=50, seed=1)
    rows = {row[2]: row[3:] for row in calibration_rows([found])}
    assert rows["Top-1"][0] == 0.5
    assert len(rows) == 4
    for value, low, high, images in rows.values():
        assert 0 <= low <= high <= 1
        assert (0 <= value <= 1, images) == (True, 250)


def _course(model: str, fooled: list[bool]) -> Course:
    """Three images, right when clean; at the last reading some are predicted as the target 1."""
    end = np.where(fooled, 1, 0)
    clean = np.full((3, 1, 4, 4), 0.5, np.float32)

    def gallery(steps: int, predictions: np.ndarray, by: float) -> Gallery:
        return Gallery(
            attack="pgd_targeted_eps16",
            steps=steps,
            image_ids_B=np.arange(3),
            labels_B=np.zeros(3, int),
            targets_B=np.ones(3, int),
            clean_predictions_B=np.zeros(3, int),
            predictions_B=predictions,
            clean_BCHW=clean,
            attacked_BCHW=clean + np.float32(by),
        )

    galleries = (gallery(10, np.zeros(3, int), 0.02), gallery(100, end, 0.04))
    return Course(model=model, key="k", galleries=galleries)


def test_shown_are_images_that_fool_most_models_in_the_end() -> None:
    courses = [_course("a", [False, True, True]), _course("b", [False, False, True])]
    assert telling_places(courses, 2) == [2, 1]
    rows = image_rows(courses)
    assert len(rows) == 2 * 2 * 3
    assert rows[3 + 2] == ["a", "k", 2, 100, 0, 1, 0, 1, pytest.approx(0.04 * 255, abs=1e-3)]
    assert attack_images(courses, ["bag", "boot"], 2).png.startswith(b"\x89PNG")
