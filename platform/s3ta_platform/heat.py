"""The figure of a grid sweep: accuracy as a heat map over two axes, a panel for each attack."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.patches import Rectangle

from s3ta_platform.attack_names import attack_title
from s3ta_platform.drawing import FAINT, INK, STYLE, Drawing, Sheet, cut
from s3ta_platform.grid import Grid, axis_title, grids
from s3ta_platform.results import Array, TrialResult
from s3ta_platform.summaries import DASH, Share, Summary

CELL_WIDTH, CELL_HEIGHT = 0.88, 0.6
LEFT, GAP, BAR, BELOW = 0.8, 0.3, 0.72, 0.6
"""Room for the rows' names, between panels, for the colour bar, for the columns' names."""
SHEET = 10.5
"""Panels beyond this width go into another row."""
COLOURS = "YlGnBu"
"""Light for low, dark for high, by lightness too: safe for colour-blind readers, and in grey."""
LEAST_SPAN = 2.0
"""Percentage points that the colours span at least: noise is not to look like a difference."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One measure of all trials."""

    title: str
    shares: list[Share | None]
    """By the trials' places."""
    paper: list[float | None]
    """In percent."""
    worse_is_high: bool = False


def heat_maps(trials: Sequence[TrialResult], summaries: Sequence[Summary]) -> list[Drawing]:
    """One figure for each grid that the trials make; none without two varied axes."""
    found = grids(trials)
    panels = _panels(summaries)
    return [_drawing(grid, panels, number, len(found)) for number, grid in enumerate(found, 1)]


def _panels(summaries: Sequence[Summary]) -> list[Panel]:
    """Clean accuracy, then each attack at its last reading."""
    found = [
        Panel(
            title="clean",
            shares=[summary.nominal for summary in summaries],
            paper=[summary.published.nominal for summary in summaries],
        )
    ]
    for attack in sorted({r.attack for s in summaries for r in s.readings}):
        last = max(r.steps for s in summaries for r in s.readings if r.attack == attack)
        readings = [summary.at(attack, last) for summary in summaries]
        papers = [summary.published.at(attack, last) for summary in summaries]
        known = any(r is not None and r.top1.total for r in readings)
        measure, place = ("top1", 0) if known else ("success", 1)
        words = "" if known else "success of "
        found.append(
            Panel(
                title=f"{words}{attack_title(attack)}, {last:,} steps",
                shares=[None if r is None else getattr(r, measure) for r in readings],
                paper=[paper[place] for paper in papers],
                worse_is_high=not known,
            )
        )
    return found


@mpl.rc_context(STYLE)
def _drawing(grid: Grid, panels: Sequence[Panel], number: int, of: int) -> Drawing:
    width, height = CELL_WIDTH * len(grid.columns), CELL_HEIGHT * len(grid.rows)
    step = LEFT + width + BAR + GAP
    across = max(1, min(len(panels), int((SHEET + GAP) // step)))
    down = -(-len(panels) // across)
    block = 0.42 + height + BELOW
    sheet = Sheet(max(across * step - GAP + 0.1, 5.2), 0.6 + down * block)
    axes = f"{axis_title(grid.row_axis)} × {axis_title(grid.column_axis)}"  # noqa: RUF001
    title = f"Top-1 accuracy: {axes}" + (f", {grid.words}" if grid.words else "")
    sheet.heading(title, "in percent, with 95 % intervals; each panel has colours of its own")
    for place, panel in enumerate(panels):
        row, column = divmod(place, across)
        _panel(sheet, (LEFT + column * step, 0.95 + row * block), grid, panel)
    known = any(paper is not None for panel in panels for paper in panel.paper)
    name = "heat_map" + (f"-{number}" if of > 1 else "")
    return Drawing(name=name, title=title, caption=_caption(grid, known), png=sheet.png())


def _panel(sheet: Sheet, corner: tuple[float, float], grid: Grid, panel: Panel) -> None:
    width, height = CELL_WIDTH * len(grid.columns), CELL_HEIGHT * len(grid.rows)
    room = int((LEFT + width + BAR) / 0.078)
    sheet.text(corner[0], corner[1] - 0.24, cut(panel.title, room), fontweight="bold")
    axes: Any = sheet.axes(*corner, width, height)
    low, high = _span([s for s in panel.shares if s is not None and s.total])
    colours = mpl.colormaps[COLOURS + ("_r" if panel.worse_is_high else "")]
    for row, row_value in enumerate(grid.rows):
        for column, column_value in enumerate(grid.columns):
            place = grid.cells.get((row_value, column_value))
            share = None if place is None else panel.shares[place]
            if share is None or not share.total:
                _empty_cell(axes, column, row)
                continue
            level = (100 * share.value - low) / (high - low)
            paper = panel.paper[place] if place is not None else None
            _cell(axes, (column, row), share, paper, colours(0.05 + 0.75 * level))
    axes.set(xlim=(-0.5, len(grid.columns) - 0.5), ylim=(len(grid.rows) - 0.5, -0.5))
    axes.set_xticks(range(len(grid.columns)), [cut(words, 14) for words in grid.columns])
    axes.set_yticks(range(len(grid.rows)), [cut(words, 12) for words in grid.rows])
    axes.set_xlabel(axis_title(grid.column_axis), fontsize=8)
    axes.set_ylabel(_wrapped(axis_title(grid.row_axis), height), fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _colour_bar(sheet, (corner[0] + width + 0.12, corner[1], height), (low, high), colours)


def _wrapped(words: str, inches: float) -> str:
    """In two lines where one would be longer than the panel is high."""
    if len(words) * 0.07 <= inches or " " not in words:
        return words
    spaces = [place for place, letter in enumerate(words) if letter == " "]
    middle = min(spaces, key=lambda place: abs(place - len(words) / 2))
    return f"{words[:middle]}\n{words[middle + 1 :]}"


def _span(shares: Sequence[Share]) -> tuple[float, float]:
    """Lowest and highest value in percent, at least LEAST_SPAN apart."""
    values = [100 * share.value for share in shares] or [0.0]
    low, high = min(values), max(values)
    more = max(0.0, LEAST_SPAN - (high - low)) / 2
    return low - more, high + more


def _cell(
    axes: Any, at: tuple[int, int], share: Share, paper: float | None, colour: tuple[float, ...]
) -> None:
    column, row = at
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fc=colour, ec="white", lw=2))
    ink = "white" if _luminance(colour) < 0.36 else INK
    middle: Any = {"ha": "center", "va": "center", "color": ink}
    lift = 0.24 if paper is not None else 0.13
    axes.text(column, row - lift, share.percent, fontsize=10.5, fontweight="bold", **middle)
    axes.text(column, row - lift + 0.33, share.range, fontsize=6.8, **middle)
    if paper is not None:
        axes.text(column, row + 0.34, f"paper {paper:g}", fontsize=6.8, style="italic", **middle)


def _empty_cell(axes: Any, column: int, row: int) -> None:
    box = Rectangle((column - 0.5, row - 0.5), 1, 1, fc="#f4f4f2", ec="white", lw=2)
    axes.add_patch(box)
    axes.text(column, row, DASH, ha="center", va="center", color=FAINT)


def _luminance(colour: Sequence[float]) -> float:
    """Relative luminance (WCAG) of an sRGB colour."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _colour_bar(
    sheet: Sheet, place: tuple[float, float, float], span: tuple[float, float], colours: Any
) -> None:
    left, top, height = place
    axes = sheet.axes(left, top, 0.1, height)
    ramp: Array = colours(0.05 + 0.75 * np.linspace(1, 0, 64))[:, None]
    axes.imshow(ramp, aspect="auto", extent=(0, 1, *span))
    axes.yaxis.tick_right()
    axes.set_xticks([])
    axes.set_yticks(span, [f"{value:.1f} %" for value in span], fontsize=7)
    axes.tick_params(length=2)
    axes.spines[:].set_visible(False)


def _caption(grid: Grid, known: bool) -> str:
    lost = len(grid.rows) * len(grid.columns) - len(grid.cells)
    return (
        "Share of test images classified right, without an attack (clean) and after the last step "
        f"of each attack, by {axis_title(grid.row_axis).lower()} (rows) and "
        f"{axis_title(grid.column_axis).lower()} (columns), with Wilson's 95 % intervals: a "
        "difference within them may be chance."
        + (" “Paper” is what the paper publishes for this system." if known else "")
        + (f" {DASH} stands for the {lost} that have no result." if lost else "")
    )
