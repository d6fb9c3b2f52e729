"""Calibration error and AURRA on cases computed by hand."""

import numpy as np
import pytest

from s3ta.calibration import (
    Answers,
    aurra,
    bootstrap,
    response_rate_accuracy,
    rms_calibration,
    rms_calibration_published,
    top1,
)


def _answers(confidence: list[float], correct: list[int], ids: list[int] | None = None) -> Answers:
    return Answers(
        confidence_N=np.array(confidence),
        correct_N=np.array(correct, dtype=bool),
        ids_N=np.arange(len(correct)) if ids is None else np.array(ids),
    )


def _bins() -> Answers:
    """100 answers at 0.5, of which 30 are right, and 150 at 0.9, of which 120 are: in disorder."""
    confidence, correct = [0.5] * 100 + [0.9] * 150, [1] * 30 + [0] * 70 + [1] * 120 + [0] * 30
    order = np.random.default_rng(0).permutation(250)
    return _answers(np.array(confidence)[order].tolist(), np.array(correct)[order].tolist())


def test_the_calibration_error_is_that_of_bins_of_100_with_the_rest_in_the_last() -> None:
    # Gaps of 0.2 and 0.1, with weights 100/250 and 150/250.
    expected = np.sqrt(0.4 * 0.2**2 + 0.6 * 0.1**2)
    assert rms_calibration(_bins()) == pytest.approx(expected, rel=1e-12)


def test_the_published_error_lacks_the_most_confident_bin_and_keeps_n() -> None:
    assert rms_calibration_published(_bins()) == pytest.approx(np.sqrt(0.4 * 0.2**2), rel=1e-12)


def test_equal_confidences_are_binned_by_id() -> None:
    ids = [*range(100, 200), *range(100)]  # the right answers have the higher ids
    answers = _answers([0.5] * 200, [1] * 100 + [0] * 100, ids)
    # Two bins, one all wrong and one all right: both 0.5 away. In one heap the gap would be 0.
    assert rms_calibration(answers) == pytest.approx(0.5)
    assert rms_calibration_published(answers) == pytest.approx(np.sqrt(0.5 * 0.5**2))


def test_fewer_than_200_images_are_refused() -> None:
    with pytest.raises(ValueError, match="199 images: a calibration error needs 200"):
        rms_calibration(_answers([0.5] * 199, [1] * 199))


def test_aurra_is_the_mean_accuracy_of_the_k_most_confident() -> None:
    # Sorted: right, wrong, right, wrong -> 1, 1/2, 2/3, 1/2.
    answers = _answers([0.2, 0.9, 0.5, 0.7], [0, 1, 1, 0])
    assert response_rate_accuracy(answers) == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
    assert aurra(answers) == pytest.approx((1 + 1 / 2 + 2 / 3 + 1 / 2) / 4)
    assert top1(answers) == 0.5


def test_aurra_takes_the_lower_id_first_among_equals() -> None:
    assert aurra(_answers([0.5, 0.5], [1, 0], [7, 3])) == pytest.approx((0 + 1 / 2) / 2)


def test_confident_mistakes_lower_aurra() -> None:
    good, bad = _answers([0.9, 0.1], [1, 0]), _answers([0.9, 0.1], [0, 1])
    assert aurra(good) > aurra(bad)


def test_the_bootstrap_has_the_spread_of_a_share() -> None:
    answers = _answers([0.5] * 400, [1] * 100 + [0] * 300)
    low, high = bootstrap(answers, top1, 2000, seed=1)
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)  # the normal approximation
    assert (low, high) == pytest.approx((0.25 - half, 0.25 + half), abs=0.006)
    assert bootstrap(answers, top1, 50, seed=1) == bootstrap(answers, top1, 50, seed=1)
