"""Which settings a sweep varies, and the grid that its trials make of two of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s3ta_platform.results import TrialResult
from s3ta_platform.summaries import DASH

TITLES = {
    "model.unroll": "Unroll (glances)",
    "model": "Model",
    "train.attack.steps": "Attack steps in training",
    "train.attack.epsilon_255": "ε in training (of 255)",
    "train.epochs": "Epochs",
    "train.seed": "Training seed",
    "train.objective": "Training objective",
    "train.learning_rate": "Learning rate",
}
"""What a reader calls an axis; others go by their key."""
FIRST = ("train.attack.steps", "model.unroll")
"""Where both are varied they are the axes: rows and columns."""
APART = ("about.",)
"""Settings that only describe."""

Cells = dict[tuple[str, str], int]
"""By the words of row and column: a trial's place among all."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The trials that agree in all but two axes."""

    row_axis: str
    column_axis: str
    rows: list[str]
    columns: list[str]
    cells: Cells
    """Where a trial failed or was not planned, there is none."""
    fixed: dict[str, str]
    """The other axes that are varied, here at one value."""

    @property
    def words(self) -> str:
        """Of what is fixed: `training seed 1`; empty if nothing else is varied."""
        return ", ".join(f"{axis_title(axis)} {value}" for axis, value in self.fixed.items())


def axis_title(axis: str) -> str:
    return TITLES.get(axis, axis)


def points(trials: Sequence[TrialResult]) -> list[dict[str, str]]:
    """The settings that differ between the trials, by their full keys, in words."""
    flat = [dict(_flat(trial.point)) for trial in trials]
    keys = dict.fromkeys(key for point in flat for key in point if not key.startswith(APART))
    varied = [key for key in keys if len({repr(point.get(key)) for point in flat}) > 1]
    return [{key: _words(point.get(key)) for key in varied} for point in flat]


def varied_axes(trials: Sequence[TrialResult]) -> list[str]:
    """The keys of `points`, in the order of the sweep's file."""
    return list(next(iter(points(trials)), {}))


def grids(trials: Sequence[TrialResult]) -> list[Grid]:
    """One for each combination of the axes beyond two; none unless most of its cells are there."""
    found = points(trials)
    axes = [axis for axis in varied_axes(trials) if DASH not in {point[axis] for point in found}]
    if len(axes) < 2:
        return []
    row_axis, column_axis = FIRST if set(FIRST) <= set(axes) else axes[:2]
    others = [axis for axis in axes if axis not in (row_axis, column_axis)]
    by_fixed: dict[tuple[str, ...], Cells] = {}
    for place, point in enumerate(found):
        cells = by_fixed.setdefault(tuple(point[axis] for axis in others), {})
        at = (point[row_axis], point[column_axis])
        if at in cells:  # the two axes do not tell the trials apart
            return []
        cells[at] = place
    made = [
        Grid(
            row_axis=row_axis,
            column_axis=column_axis,
            rows=_sorted(row for row, _ in cells),
            columns=_sorted(column for _, column in cells),
            cells=cells,
            fixed=dict(zip(others, fixed, strict=True)),
        )
        for fixed, cells in by_fixed.items()
    ]
    return [grid for grid in made if _is_dense(grid)]


def _is_dense(grid: Grid) -> bool:
    """A list of points that only visits a few cells is no grid."""
    size = len(grid.rows) * len(grid.columns)
    return min(len(grid.rows), len(grid.columns)) > 1 and 2 * len(grid.cells) > size


def _flat(point: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in point.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", value


def _words(value: Any) -> str:
    return DASH if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _sorted(values: Any) -> list[str]:
    """Numbers by size, words as they came."""
    distinct = list(dict.fromkeys(values))
    try:
        return sorted(distinct, key=float)
    except ValueError:
        return distinct
