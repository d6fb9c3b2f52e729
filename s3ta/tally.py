"""Per-example records, and counts of them that merge. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Rows = dict[str, Array]
"""Columns of per-example records, all of one length."""


@dataclass(frozen=True)
class Tally:
    """Counts of one trajectory's records; counts merge, averages don't."""

    images: int = 0
    clean_correct: int = 0
    correct: Mapping[int, int] = field(default_factory=dict)
    """Step -> images still classified rightly."""
    fooled: Mapping[int, int] = field(default_factory=dict)
    """Step -> images predicted as their target."""

    @classmethod
    def of(cls, rows: Mapping[str, Array]) -> "Tally":
        """Count; the rows are one restart of one trajectory: ValueError for more."""
        steps = rows["step"]
        if len({*rows["restart"].tolist()}) > 1:
            raise ValueError("rows of several restarts: an image would be counted more than once")
        counts = {
            name: {int(s): int(rows[name][steps == s].sum()) for s in np.unique(steps)}
            for name in ("correct", "fooled")
        }
        first = steps == steps.min()
        clean = (rows["clean_prediction"] == rows["label"])[first]
        return cls(int(first.sum()), int(clean.sum()), counts["correct"], counts["fooled"])

    def __add__(self, other: "Tally") -> "Tally":
        """Of other images under the same trajectory: ValueError if the steps differ."""
        if self.images and other.images and {*self.correct} != {*other.correct}:
            raise ValueError(f"steps {[*self.correct]} and {[*other.correct]} can't be added up")

        def merged(a: Mapping[int, int], b: Mapping[int, int]) -> dict[int, int]:
            return {s: a.get(s, 0) + b.get(s, 0) for s in sorted({*a, *b})}

        return Tally(
            self.images + other.images,
            self.clean_correct + other.clean_correct,
            merged(self.correct, other.correct),
            merged(self.fooled, other.fooled),
        )
