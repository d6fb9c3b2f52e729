"""Intervals for proportions, when enough images were seen, and comparisons of two models.

Imports no torch. N images seen, R readings.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""
STOP_MINIMUM = 1000
STOP_EVERY = 100
"""Images between two looks at whether an evaluation may stop."""


def wilson(successes: int, total: int, population: int | None = None) -> tuple[float, float]:
    """The Wilson 95 % interval of a proportion, as (low, high) in [0, 1]; (0, 1) without data.

    population: how many there are, if `total` of them were drawn at random and their share is
    asked for: then n counts as n (N - 1) / (N - n), and all N leave no doubt.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"{successes} successes of {total}: expected 0 <= successes <= total")
    if population is not None and total > population:
        raise ValueError(f"{total} of a population of {population}: expected total <= population")
    if total == 0:
        return 0.0, 1.0
    share, per_n = successes / total, _one_over_n(total, population)
    centre = (share + Z_95**2 * per_n / 2) / (1 + Z_95**2 * per_n)
    half = float(_halfwidth(np.asarray(share), np.asarray(per_n)))
    # At the ends the formula's exact value is 0 or 1; rounding must not leave the unit interval.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == total else centre + half
    return low, high


def stopping_point(
    correct_NR: npt.NDArray[np.bool_],
    population: int,
    halfwidth: float,
    minimum: int = STOP_MINIMUM,
    every: int = STOP_EVERY,
) -> int | None:
    """The fewest images after which every reading's interval is at most `halfwidth` to each side.

    The rows must be the contiguous finished beginning of a seeded permutation of the population:
    only then are they a random sample. Looked at are multiples of `every`, and the whole
    population, from `minimum` on. None if no such point is among these rows.
    """
    seen = len(correct_NR)
    if seen > population:
        raise ValueError(f"{seen} rows of a population of {population}: expected at most as many")
    looks = [n for n in range(every, seen + 1, every) if n >= minimum]
    if seen == population and seen >= minimum and seen % every:
        looks.append(seen)
    if not looks:
        return None
    at_L = np.array(looks)
    shares_LR = np.cumsum(correct_NR, axis=0, dtype=np.int64)[at_L - 1] / at_L[:, None]
    per_n_L = np.array([_one_over_n(n, population) for n in looks])
    good_L = (_halfwidth(shares_LR, per_n_L[:, None]) <= halfwidth).all(axis=1)
    return looks[int(good_L.argmax())] if good_L.any() else None


def mcnemar(b: int, c: int) -> float:
    """The exact two-sided p-value of McNemar's test for b and c discordant pairs.

    Twice the tail of the binomial distribution of n = b + c fair coins, at most 1.
    """
    if b < 0 or c < 0:
        raise ValueError(f"{b} and {c} discordant pairs: expected counts of at least 0")
    n, k = b + c, min(b, c)
    # The tail as its last term times a falling series, so that nothing overflows on the way.
    series, term = 1.0, 1.0
    for i in range(k, 0, -1):
        term *= i / (n - i + 1)
        series += term
        if term < 1e-18:
            break
    return min(1.0, 2 * (math.comb(n, k) / (1 << n)) * series)


def paired_difference(b: int, c: int, n: int) -> tuple[float, float]:
    """The difference of two shares over the same n images, and its standard error.

    b images count only for the first, c only for the second: d = (b - c) / n.
    """
    if not (b >= 0 and c >= 0 and n >= 1 and b + c <= n):
        raise ValueError(f"{b} and {c} discordant pairs of {n}: expected b + c <= n, n at least 1")
    return (b - c) / n, math.sqrt(b + c - (b - c) ** 2 / n) / n


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several (Holm), in the same order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _one_over_n(total: int, population: int | None) -> float:
    """1 / n, with n as large as it counts among so many: 0 if they are all."""
    if population is None:
        return 1 / total
    return 0.0 if total == population else (population - total) / (total * (population - 1))


def _halfwidth(
    shares: npt.NDArray[np.float64], per_n: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Half the length of Wilson's interval; `per_n` is 1 / n."""
    root = np.sqrt(shares * (1 - shares) * per_n + (Z_95 * per_n / 2) ** 2)
    half: npt.NDArray[np.float64] = Z_95 * root / (1 + Z_95**2 * per_n)
    return half
