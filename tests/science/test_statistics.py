"""Intervals, stopping and comparisons against published values, hand counts and exact sums."""

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from s3ta.statistics import Z_95, holm, mcnemar, paired_difference, stopping_point, wilson


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (1, 10, 0.0179, 0.4042),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),  # the same
        (0, 20, 0.0, 0.1611),  # the same
        (1, 29, 0.0061, 0.1718),  # the same
    ],
)
def test_wilson_gives_the_published_interval(
    successes: int, total: int, low: float, high: float
) -> None:
    assert wilson(successes, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_without_data_says_nothing() -> None:
    assert wilson(0, 0) == wilson(0, 0, 10) == (0.0, 1.0)


@pytest.mark.parametrize("total", [1, 3, 7, 512, 50_000])
@pytest.mark.parametrize("population", [None, 50_000, 70_000])
def test_wilson_contains_the_share_and_stays_in_the_unit_interval(
    total: int, population: int | None
) -> None:
    for successes in {0, 1, total // 2, total - 1, total}:
        low, high = wilson(successes, total, population)
        assert 0 <= low <= successes / total <= high <= 1


@pytest.mark.parametrize(("successes", "total"), [(-1, 5), (6, 5), (1, 0)])
def test_impossible_counts_are_refused(successes: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes of {total}"):
        wilson(successes, total)


def test_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="5 of a population of 4"):
        wilson(1, 5, 4)


def test_a_finite_population_counts_as_a_larger_sample() -> None:
    """100 of 199 count as 100 * 198 / 99 = 200."""
    assert wilson(30, 100, 199) == pytest.approx(wilson(60, 200), abs=1e-15)
    assert wilson(30, 100, 10**15) == pytest.approx(wilson(30, 100), abs=1e-12)


@pytest.mark.parametrize("total", [1, 3, 1000])
def test_nothing_is_uncertain_once_all_were_seen(total: int) -> None:
    for successes in {0, total // 3, total}:
        assert wilson(successes, total, total) == (successes / total, successes / total)


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (3, 0, 2 / 8),
        (10, 2, 2 * (1 + 12 + 66) / 2**12),
        (4, 6, 2 * (1 + 10 + 45 + 120 + 210) / 2**10),
        (5, 5, 1.0),
        (7, 8, 1.0),
    ],
)
def test_mcnemar_gives_the_p_value_computed_by_hand(b: int, c: int, p: float) -> None:
    assert mcnemar(b, c) == pytest.approx(p, rel=1e-14)
    assert mcnemar(c, b) == mcnemar(b, c)


@pytest.mark.parametrize(("b", "c"), [(40, 80), (431, 522), (900, 950), (1200, 300)])
def test_mcnemar_equals_the_sum_in_whole_numbers(b: int, c: int) -> None:
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
    assert mcnemar(b, c) == pytest.approx(float(Fraction(2 * tail, 2 ** (b + c))), rel=1e-13)


def test_mcnemar_neither_overflows_nor_drifts_for_large_counts() -> None:
    b, c = 25_200, 24_800
    normal = math.erfc((b - c - 1) / math.sqrt(b + c) / math.sqrt(2))
    assert mcnemar(b, c) == pytest.approx(normal, rel=1e-3)
    assert mcnemar(50_000, 0) == 0.0


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="-1 and 2"):
        mcnemar(-1, 2)


def test_the_paired_difference_is_that_of_the_two_columns() -> None:
    """Its standard error is that of a mean of +1, -1 and 0, computed from these numbers."""
    differences = np.repeat([1, -1, 0], [9, 4, 37])
    d, se = paired_difference(9, 4, 50)
    assert d == pytest.approx(differences.mean())
    assert se == pytest.approx(differences.std() / math.sqrt(50))
    assert (d, se) == (0.1, math.sqrt(13 - 25 / 50) / 50)


def test_the_difference_changes_its_sign_with_the_sides() -> None:
    d, se = paired_difference(9, 4, 50)
    assert d > 0, "the first is right more often"
    assert paired_difference(4, 9, 50) == (-d, se)
    assert paired_difference(0, 0, 50) == (0.0, 0.0)
    assert paired_difference(50, 0, 50) == (1.0, 0.0)


@pytest.mark.parametrize(("b", "c", "n"), [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_impossible_pairs_are_refused(b: int, c: int, n: int) -> None:
    with pytest.raises(ValueError, match="discordant pairs"):
        paired_difference(b, c, n)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([], []),
        ([0.04], [0.04]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
    ],
)
def test_holm_gives_the_values_computed_by_hand(
    p_values: list[float], adjusted: list[float]
) -> None:
    assert holm(p_values) == pytest.approx(adjusted)


def column(successes: int, total: int) -> npt.NDArray[np.bool_]:
    """(total, 1) with the successes spread evenly."""
    places = np.arange(1, total + 1) * successes // total
    return (np.diff(places, prepend=0) > 0)[:, None]


def half_of(successes: int, total: int, population: int) -> float:
    low, high = wilson(successes, total, population)
    return (high - low) / 2


def test_it_stops_at_the_first_look_that_is_narrow_enough() -> None:
    rows, population = column(2500, 5000), 5000
    found = stopping_point(rows, population, 0.02)
    assert found is not None
    at = {n: half_of(int(rows[:n].sum()), n, population) for n in (found - 100, found)}
    assert at[found] <= 0.02 < at[found - 100]
    assert found % 100 == 0
    # z^2 p (1 - p) / h^2 = 2401 images of infinitely many count as 1623 of 5000
    assert found == 1700


def test_it_waits_for_the_widest_reading() -> None:
    narrow, wide = column(50, 5000), column(2500, 5000)
    assert stopping_point(narrow, 5000, 0.02) == 1000, "never before the minimum"
    assert stopping_point(np.hstack([narrow, wide]), 5000, 0.02) == 1700


def test_it_looks_at_no_more_rows_than_are_given() -> None:
    rows = column(2500, 5000)
    assert stopping_point(rows[:1699], 5000, 0.02) is None
    assert stopping_point(rows[:1700], 5000, 0.02) == 1700
    assert stopping_point(rows[:0], 5000, 0.02) is None


def test_all_images_are_enough_however_many_they_are() -> None:
    rows = column(520, 1040)
    assert stopping_point(rows, 1040, 1e-9) == 1040
    assert stopping_point(rows[:1000], 1040, 1e-9) is None
    assert stopping_point(column(250, 500), 500, 0.4) is None, "fewer than the minimum"
    with pytest.raises(ValueError, match="1040 rows of a population of 1000"):
        stopping_point(rows, 1000, 0.1)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_stopping_leaves_the_intervals_their_coverage(share: float) -> None:
    population, runs = 10_000, 2000
    rng = np.random.default_rng(7)
    truth = column(round(share * population), population)
    covered, stops = 0, []
    for _ in range(runs):
        rows = rng.permutation(truth)
        stop = stopping_point(rows, population, 0.02)
        assert stop is not None
        low, high = wilson(int(rows[:stop].sum()), stop, population)
        covered += low <= share <= high
        stops.append(stop)
    assert 0.935 <= covered / runs <= 0.97
    needed = Z_95**2 * share * (1 - share) / 0.02**2
    expected = max(1000, needed / (1 + needed / population))
    assert np.mean(stops) == pytest.approx(expected, rel=0.06)
