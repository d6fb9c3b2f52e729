"""The masking verdict: every number counted by hand, every threshold at its edge."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from s3ta.masking import (
    Check,
    Course,
    Evidence,
    Status,
    closing_words,
    fails,
    reductions,
)
from s3ta.masking_checks import checks, goals_agree, never_rises, rise

N = 1000
PASS, WARN, FAIL = Status.passed, Status.warn, Status.fail
INCONCLUSIVE = Status.inconclusive


def some(*images: int | range) -> np.ndarray:
    """Flags (N,) of these images."""
    flags_N = np.zeros(N, bool)
    for which in images:
        flags_N[which if isinstance(which, int) else list(which)] = True
    return flags_N


def course(*starts: np.ndarray, readings: Sequence[int] = (200,)) -> Course:
    """An attack whose starts break these images, by the first reading and for good."""
    broken_SN = np.stack(starts)
    erred_SNR = np.repeat(broken_SN[:, :, None], len(readings), axis=2)
    return Course(readings=readings, right_SNR=~erred_SNR, erred_SNR=erred_SNR)


def evidence(**changes: Any) -> Evidence:
    """900 of 1000 right; every attack breaks images 0 to 399 of these; all else is in order."""
    all_of_w = some(range(400))
    usual = course(all_of_w, readings=(50, 100, 200))
    sound: dict[str, Any] = {
        "clean_right_N": some(range(900)),
        "pgd_ce": usual,
        "pgd_margin": course(*[all_of_w] * 10, readings=(50, 100, 200)),
        "apgd_ce": course(all_of_w),
        "apgd_t": course(all_of_w),
        "wide": course(some(range(N))),
        "black_boxes": dict.fromkeys(("square", "spsa", "transfer", "random"), course(all_of_w)),
        "sources": 2,
        "zero_ce_N": some(),
        "zero_margin_N": some(),
        "rho_N": np.full(N, 0.9),
        "alignment_N": np.full(N, 0.5),
        "roughness_N": np.full(N, 0.25),
    }
    return Evidence(**{**sound, **changes})


def found(key: str, **changes: Any) -> Check:
    return next(check for check in checks(evidence(**changes)) if check.key == key)


def black_box(name: str, flags_N: np.ndarray) -> dict[str, Any]:
    boxes = dict(evidence().black_boxes)
    return {"black_boxes": {**boxes, name: course(flags_N)}}


def test_all_in_order_is_no_masking_found_by_these_checks() -> None:
    all_of_them = checks(evidence())
    gates = [check for check in all_of_them if check.status is not Status.info]
    assert {check.status for check in gates} == {PASS}
    assert len(gates) == 13
    assert closing_words(all_of_them, []) == "No masking found by these checks."
    assert not fails(all_of_them)


# Images 400 to 899 are right and withstand W.


@pytest.mark.parametrize("name", ["square", "spsa", "transfer", "random"])
@pytest.mark.parametrize(
    ("more", "status"), [(2, PASS), (3, WARN), (10, WARN), (11, FAIL), (500, FAIL)]
)
def test_what_breaks_images_that_w_does_not_is_counted_among_all_images(
    name: str, more: int, status: Status
) -> None:
    broken = black_box(name, some(range(400 + more)))
    for key in (name, "black_box"):
        check = found(key, **broken)
        assert (check.status, check.value) == (status, more / 10)
    assert found(name, **broken).note == f"{more} of 500 images"


def test_all_black_boxes_together_count_an_image_once() -> None:
    boxes = {
        "square": course(some(range(408))),
        "spsa": course(some(range(408))),
        "transfer": course(some(range(400), range(500, 504))),
        "random": course(some(range(400))),
    }
    check = found("black_box", black_boxes=boxes)
    assert (check.value, check.status) == (1.2, FAIL)
    assert found("square", black_boxes=boxes).status is WARN


def test_images_that_were_wrong_from_the_start_are_neither_robust_nor_broken() -> None:
    broken = black_box("random", some(range(400), range(900, N)))
    assert found("random", **broken).value == 0


def test_w_is_the_worst_per_image_of_its_four_attacks_and_of_five_starts() -> None:
    starts = [some(i) for i in range(100, 110)]
    e = evidence(
        pgd_ce=course(some(0)),
        pgd_margin=course(*starts),
        apgd_ce=course(some(1)),
        apgd_t=course(*[some(200 + i) for i in range(9)]),
    )
    broken = some(range(900)) & ~np.asarray(e.w_robust)
    assert np.flatnonzero(broken).tolist() == [0, 1, *range(100, 105), *range(200, 209)]
    assert evidence(apgd_t=None).w_robust is None
    for key in ("square", "black_box"):
        assert found(key, apgd_t=None).status is INCONCLUSIVE


@pytest.mark.parametrize(("broken", "status"), [(100, PASS), (99, INCONCLUSIVE), (0, INCONCLUSIVE)])
@pytest.mark.parametrize("name", ["square", "spsa"])
def test_a_search_that_achieves_under_a_quarter_of_ws_drop_says_nothing(
    name: str, broken: int, status: Status
) -> None:
    # W takes 40 points.
    weak = black_box(name, some(range(broken)))
    assert found(name, **weak).status is status
    assert found("black_box", **weak).status is status


def test_a_weak_search_that_breaks_what_w_does_not_has_found_something_all_the_same() -> None:
    weak = black_box("square", some(range(400, 411)))
    assert found("square", **weak).status is FAIL
    barely = black_box("square", some(range(400, 405)))
    assert found("square", **barely).status is INCONCLUSIVE


def test_random_signs_and_transfer_need_no_such_power() -> None:
    for name in ("transfer", "random"):
        assert found(name, **black_box(name, some())).status is PASS


def test_a_transfer_needs_two_sources_and_none_is_a_remedy() -> None:
    assert found("transfer", sources=1).status is INCONCLUSIVE
    boxes = {k: v for k, v in evidence().black_boxes.items() if k != "transfer"}
    check = found("transfer", black_boxes=boxes)
    assert (check.status, check.value) == (INCONCLUSIVE, None)
    assert "masking.sources=[A,B]" in check.note
    assert found("black_box", black_boxes=boxes).status is INCONCLUSIVE


@pytest.mark.parametrize(("rho", "status"), [(0.8, PASS), (0.79, INCONCLUSIVE)])
def test_spsa_counts_where_its_gradients_are_good(rho: float, status: Status) -> None:
    assert found("spsa", rho_N=np.full(N, rho)).status is status
    assert found("spsa", rho_N=None).status is INCONCLUSIVE


@pytest.mark.parametrize(
    ("fewer", "status"), [(20, PASS), (21, WARN), (50, WARN), (51, FAIL), (-51, FAIL)]
)
def test_cross_entropy_and_margin_should_find_the_same(fewer: int, status: Status) -> None:
    check = found("goals", pgd_ce=course(some(range(400 - fewer))))
    assert (check.status, check.value) == (status, abs(fewer) / 10)
    assert check.note == f"{50 + fewer / 10:.1f} % and 50.0 %"


def test_five_starts_of_each_are_compared() -> None:
    late = [*[some(range(400))] * 5, *[some(range(500))] * 5]
    assert goals_agree(evidence(pgd_margin=course(*late))).value == 0


@pytest.mark.parametrize(("left", "status"), [(10, PASS), (11, WARN), (50, WARN), (51, FAIL)])
def test_at_epsilon_one_half_next_to_nothing_may_be_left(left: int, status: Status) -> None:
    check = found("wide", wide=course(some(range(left, N))))
    assert (check.status, check.value) == (status, left / 10)


@pytest.mark.parametrize(("zero", "status"), [(0, PASS), (1, WARN), (10, WARN), (11, FAIL)])
def test_zero_gradients_of_the_margin_fail_and_of_the_cross_entropy_warn(
    zero: int, status: Status
) -> None:
    check = found("zero_margin", zero_margin_N=some(range(zero)))
    assert (check.status, check.value) == (status, zero / 10)
    saturated = found("zero_ce", zero_ce_N=some(range(zero)))
    assert saturated.status is (WARN if zero else PASS)
    assert found("zero_ce", zero_ce_N=some(range(N))).status is WARN


@pytest.mark.parametrize(
    ("rho", "status"), [(0.8, PASS), (0.79, WARN), (0.5, WARN), (0.49, FAIL), (-0.9, FAIL)]
)
def test_the_median_of_rho_decides(rho: float, status: Status) -> None:
    rho_N = np.full(N, rho)
    rho_N[:499] = 1 if rho < 0 else -1
    check = found("rho", rho_N=rho_N)
    assert (check.status, check.value) == (status, rho)


@pytest.mark.parametrize(("gain", "status"), [(10, PASS), (11, WARN), (400, WARN)])
def test_ten_starts_over_one_never_fail(gain: int, status: Status) -> None:
    starts = [some(range(400 - gain)), *[some(range(400))] * 9]
    check = found("starts", pgd_margin=course(*starts))
    assert (check.status, check.value) == (status, gain / 10)
    assert check.note == f"{50 + gain / 10:.1f} % and 50.0 %"
    assert check.title == "gain of 10 starts"


@pytest.mark.parametrize(("more", "status"), [(10, PASS), (11, INCONCLUSIVE)])
def test_a_drop_in_the_last_doubling_is_not_converged(more: int, status: Status) -> None:
    early, late = some(range(400 - more)), some(range(400))
    erred_SNR = np.stack([early, early, late], axis=1)[None]
    ends_late = Course(readings=(50, 100, 200), right_SNR=~erred_SNR, erred_SNR=erred_SNR)
    for role in ("pgd_ce", "pgd_margin"):
        check = found("converged", **{role: ends_late})
        assert (check.status, check.value) == (status, more / 10)
    unread = replace(ends_late, readings=(50, 90, 200))
    assert found("converged", pgd_ce=unread, pgd_margin=unread).status is INCONCLUSIVE


def test_a_rise_is_allowed_half_a_point_or_two_standard_errors() -> None:
    before_N = some(range(600))
    # 5 up and 1 down: 0.4 points net; sqrt(6) images twice are 0.49 points.
    after_N = (before_N & ~some(0)) | some(range(600, 605))
    assert rise(before_N, after_N) == (0.4, 0.5)
    # 36 up and 13 down: 2.3 points net; sqrt(49) images twice are 1.4 points.
    after_N = (before_N & ~some(range(13))) | some(range(600, 636))
    assert rise(before_N, after_N) == (2.3, 1.4)
    assert rise(after_N, before_N) == (-2.3, 1.4)


def test_the_rise_of_the_first_start_between_any_two_readings_is_looked_at() -> None:
    right_NR = np.stack([some(range(500)), some(range(480)), some(range(500))], axis=1)
    rising = Course(readings=(50, 100, 200), right_SNR=right_NR[None], erred_SNR=~right_NR[None])
    check = never_rises(evidence(pgd_ce=rising))
    assert (check.status, check.value) == (WARN, 2.0)  # sqrt(20) twice are 0.89 points
    falling = replace(rising, right_SNR=right_NR[None, :, ::-1][:, :, [0, 1, 1]])
    assert never_rises(evidence(pgd_ce=falling)).status is PASS
    steady = course(some(range(400)), readings=(50, 100, 200)).right_SNR
    second = replace(rising, right_SNR=np.concatenate([steady, right_NR[None]]))
    assert never_rises(evidence(pgd_ce=second)).status is PASS


def test_roughness_and_alignment_decide_nothing() -> None:
    for name, key in (("roughness_N", "roughness"), ("alignment_N", "alignment")):
        check = found(key, **{name: np.full(N, 1e6)})
        assert (check.status, check.value) == (Status.info, 1e6)


def test_what_was_not_made_is_never_a_pass() -> None:
    nothing = checks(Evidence(clean_right_N=some(range(900))))
    assert {check.status for check in nothing} == {INCONCLUSIVE}
    assert {check.value for check in nothing} == {None}


def test_the_verdict_names_what_failed_warned_and_what_it_lacks() -> None:
    found = checks(evidence(zero_margin_N=some(range(50)), zero_ce_N=some(0), sources=0))
    words = closing_words(found, reductions({"images": 999, "queries of Square": 5000}))
    assert words.startswith("Signs of gradient masking: zero gradients, margin.")
    assert "Warnings: zero gradients, cross-entropy." in words
    assert "Inconclusive: W-robust, broken by transfer;" in words
    assert words.endswith("Indicative only: images: 999 instead of 1,000.")
    assert fails(found)
    assert reductions({"images": 1000, "random signs": 1000}) == []
