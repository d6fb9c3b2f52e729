"""What benchmarks share: rounds in which all candidates run once, and intervals of what they took.

Ratios are taken within a round; their median comes with the 95 % interval of the sign test.
"""

import math
import statistics
import time
from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def seconds_now() -> float:
    """With one thread the processor's, so that other programs count little."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def rotated(names: list[T], by: int) -> list[T]:
    """The order of round `by`."""
    by %= len(names)
    return names[by:] + names[:by]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and its 95 % interval by the sign test (below 6 rounds: the range)."""
    n, ordered = len(values), sorted(values)
    tails = [2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n for k in range(n)]
    cut = max((k for k in range(n) if tails[k] <= 0.05), default=0)
    return statistics.median(values), ordered[cut], ordered[n - 1 - cut]
