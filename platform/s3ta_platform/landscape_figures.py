"""Loss landscapes as filled contours, seen from above (Figure 6).

P points per axis; rows of a landscape go along v, columns along u.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from s3ta.landscape import linearity
from s3ta_platform.drawing import INK, STYLE, Drawing, Sheet, cut
from s3ta_platform.results import Array

LOSSES = {"cross_entropy": "Cross-entropy", "margin": "Margin"}
MAPS = {"cross_entropy": "viridis", "margin": "PuOr"}
LEVELS = 24
PANEL, GAP, LEFT, TOP, ROW = 1.75, 0.22, 1.62, 1.0, 2.1


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """Both losses around the same images, for one model."""

    model: str
    key: str
    epsilon_255: float
    at_P: Array
    """Offsets along each axis, in units of 1/255."""
    losses: Mapping[str, Mapping[int, Array]]
    """By name and image id, (P, P)."""

    @property
    def places(self) -> tuple[int, int]:
        """Where the axes have 0 and, nearly, epsilon."""
        return len(self.at_P) // 2, int(np.abs(self.at_P - self.epsilon_255).argmin())

    def r2(self, loss: str, image_id: int) -> float:
        """How linear it is within the diamond."""
        return linearity(self.losses[loss][image_id], self.at_P, self.epsilon_255)


def chosen_images(landscapes: Sequence[Landscape], shown: int) -> list[int]:
    """Images that most models classify right, and of these such that fall to the attack first."""
    ids = list(landscapes[0].losses["margin"])
    points = [(one.losses["margin"], *one.places) for one in landscapes]
    right = [sum(m[i][centre, centre] > 0 for m, centre, _ in points) for i in ids]
    fallen = [sum(m[i][centre, at_a] < 0 for m, centre, at_a in points) for i in ids]
    order = np.lexsort((-np.array(fallen), -np.array(right)))
    return [ids[place] for place in order[:shown]]


@mpl.rc_context(STYLE)
def landscape_figure(
    landscapes: Sequence[Landscape],
    loss: str,
    images: Mapping[int, tuple[Array, str]],
    attack: str,
) -> Drawing:
    """One loss: a row per image, a column per model; `images` are pixels and labels by id."""
    columns = len(landscapes)
    sheet = Sheet(LEFT + columns * (PANEL + GAP) + 0.75, TOP + ROW * len(images) + 0.1)
    words = LOSSES[loss]
    sheet.heading(f"Loss landscapes: {words.lower()}", f"a: {attack}")
    for column, landscape in enumerate(landscapes):
        centre = LEFT + column * (PANEL + GAP) + PANEL / 2
        name = cut(landscape.model, 24)
        sheet.text(centre, TOP - 0.36, name, ha="center", fontweight="bold")
    for row, (image_id, (pixels, label)) in enumerate(images.items()):
        top = TOP + ROW * row
        sheet.text(0.12, top, cut(label, 14), fontsize=7.5)
        _thumbnail(sheet, (0.12, top + 0.17), pixels)
        _row(sheet, top, landscapes, loss, image_id, last=row == len(images) - 1)
    return sheet.drawing(f"landscape-{loss}", f"Loss landscapes: {words.lower()}", _caption(loss))


def _thumbnail(sheet: Sheet, corner: tuple[float, float], pixels: Array) -> None:
    axes = sheet.axes(*corner, 0.8, 0.8)
    axes.imshow(pixels, vmin=0, vmax=1, cmap="gray")
    axes.set_axis_off()


def _row(
    sheet: Sheet,
    top: float,
    landscapes: Sequence[Landscape],
    loss: str,
    image_id: int,
    *,
    last: bool,
) -> None:
    grids = [landscape.losses[loss][image_id] for landscape in landscapes]
    low, high = min(g.min() for g in grids), max(g.max() for g in grids)
    if loss == "margin":  # white is the border between right and wrong
        low, high = -max(-low, high), max(-low, high)
    levels = np.linspace(low, high, LEVELS + 1)
    for column, (landscape, grid) in enumerate(zip(landscapes, grids, strict=True)):
        axes = sheet.axes(LEFT + column * (PANEL + GAP), top, PANEL, PANEL)
        _panel(axes, landscape, loss, grid, levels)
        r2 = f"R² = {landscape.r2(loss, image_id):.3f}"
        box: Any = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
        axes.text(0.03, 0.97, r2, transform=axes.transAxes, va="top", fontsize=7, bbox=box)
        axes.tick_params(labelsize=7, length=2)
        if column:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("v (1/255), random signs", fontsize=7.5, labelpad=1)
        if last:
            axes.set_xlabel("u (1/255), along a", fontsize=7.5, labelpad=2)
        else:
            axes.set_xticklabels([])
    place = LEFT + len(grids) * (PANEL + GAP) - GAP + 0.1
    bar = sheet.axes(place, top, 0.09, PANEL)
    colours = ScalarMappable(Normalize(low, high), MAPS[loss])
    scale = sheet.figure.colorbar(colours, cax=bar)
    scale.ax.tick_params(labelsize=7, length=2)
    scale.outline.set_visible(False)


def _panel(axes: Axes, landscape: Landscape, loss: str, grid: Array, levels: Array) -> None:
    at, epsilon = landscape.at_P, landscape.epsilon_255
    axes.contourf(at, at, grid, levels=levels, cmap=MAPS[loss])
    lines: Any = {"colors": "white" if loss != "margin" else "#777777", "linewidths": 0.35}
    axes.contour(at, at, grid, levels=levels[::2], alpha=0.7, linestyles="solid", **lines)
    if loss == "margin" and grid.min() < 0 < grid.max():
        axes.contour(at, at, grid, levels=[0.0], colors=INK, linewidths=1.2)
    corners = epsilon * np.array([(1, 0), (0, 1), (-1, 0), (0, -1), (1, 0)])
    around, inner = ("white", INK) if loss != "margin" else ("white", "#B00000")
    axes.plot(*corners.T, color=around, linewidth=2.6)
    axes.plot(*corners.T, color=inner, linewidth=1.2)
    axes.plot([0], [0], "+", color=inner, markersize=6, markeredgewidth=1.2)
    axes.plot([epsilon], [0], "o", color=inner, markersize=3.5, markeredgecolor="white")
    axes.spines[:].set_visible(False)
    ticks = [-epsilon, 0, epsilon]
    names = [f"{t:g}".replace("-", "\N{MINUS SIGN}") for t in ticks]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    axes.set_aspect("equal")


def _caption(loss: str) -> str:
    measure = {
        "cross_entropy": "Cross-entropy of the true class (low where the model is right)",
        "margin": "Margin, the true class's logit less the largest other one (the model is wrong "
        "where it is negative; black line: 0)",
    }[loss]
    return (
        f"{measure} at x + u a + v r around test images (rows) for each model (columns). "
        "a is the worst perturbation that the attack found, over ε; r are random signs, the same "
        "for all models. + is the image, the dot the attacked image. The diamond |u| + |v| ≤ ε "
        "lies in the L∞ ball around the image; the image range [0, 1] is ignored on this plane. "
        "Colours are shared within a row. R²: the share of the variance within the diamond that "
        "the best plane explains; information, not a test, for a saturated model looks smoothest "
        "of all. Images that all models classify right, those first that the attack turns: "
        "examples, not a measurement."
    )


def linearity_rows(landscapes: Sequence[Landscape]) -> list[list[Any]]:
    """One line per model, loss and image: model, key, loss, image, loss at x, at a, and R^2."""
    rows = []
    for one in landscapes:
        middle, at_a = one.places
        for loss, grids in one.losses.items():
            for image_id, grid in grids.items():
                ends = (float(grid[middle, middle]), float(grid[middle, at_a]))
                rows.append([one.model, one.key, loss, image_id, *ends, one.r2(loss, image_id)])
    return rows
