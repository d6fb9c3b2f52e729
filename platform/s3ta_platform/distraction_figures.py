"""What the attack does to the attention, in numbers: moved maps, and whether they are the cause.

N images, T glances, Q heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from s3ta.statistics import Z_95
from s3ta_platform.drawing import COLOURS, DASHES, FAINT, MARKERS, STYLE, Drawing, Sheet, cut
from s3ta_platform.results import Array
from s3ta_platform.summaries import Share

PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, BETWEEN = 2.3, 1.8, 0.75, 1.12, 0.85
GROUPS = ("fell", "withstood", "random signs")
MEASURES = {
    "moved": "Attention moved (share)",
    "away": "Left the object (share)",
}


@dataclass(frozen=True, kw_only=True)
class Distraction:
    """One model's images that are right when clean; the others say nothing of the attack."""

    model: str
    key: str
    fell_N: Array
    """Whether the attack reached its goal."""
    answers: dict[str, Array]
    """Whether the answer is right, (N,), by s3ta.distraction's ANSWERS."""
    shifts: dict[str, Array]
    """`moved_attacked` and so on, (N, T, Q)."""

    def group(self, name: str) -> tuple[Array, str]:
        """Which images, and which version of them."""
        if name == "random signs":
            return np.ones_like(self.fell_N), "random"
        return (self.fell_N if name == "fell" else ~self.fell_N), "attacked"

    def shift(self, measure: str, group: str) -> Array | None:
        """(N of the group, T, Q); None where it was not measured."""
        chosen_N, version = self.group(group)
        found = self.shifts.get(f"{measure}_{version}")
        return None if found is None else found[chosen_N]

    @property
    def tests(self) -> dict[str, tuple[Share, Share]]:
        """The causal tests: for fallen and for other images, how many answers are right."""
        named = {
            "attacked image": "attacked",
            "attacked image, clean maps": "attacked_clean_maps",
            "clean image, attacked maps": "clean_attacked_maps",
            "clean image, random-sign maps": "clean_random_maps",
            "held-maps attack, clean maps": "held_clean_maps",
            "held-maps attack, as deployed": "held",
        }
        return {words: self._right(self.answers[name]) for words, name in named.items()}

    def _right(self, right_N: Array) -> tuple[Share, Share]:
        both = (right_N[self.fell_N], right_N[~self.fell_N])
        fell, rest = (Share(int(part.sum()), len(part)) for part in both)
        return fell, rest


@mpl.rc_context(STYLE)
def distraction_figure(models: Sequence[Distraction], attack: str) -> Drawing:
    """A row per model: how far maps move per glance, and the causal tests."""
    measures = [m for m in MEASURES if any(one.shift(m, "fell") is not None for one in models)]
    tests_left = LEFT + len(measures) * (PANEL_WIDTH + BETWEEN) + 1.45
    row = PANEL_HEIGHT + 0.78
    sheet = Sheet(tests_left + 2.2 + 0.3, TOP + row * len(models) + 0.1)
    title = "Does the attack move the attention, and does that matter?"
    sheet.heading(title, f"{attack}; images that are right when clean; fell: its goal was reached")
    for place, one in enumerate(models):
        top = TOP + row * place
        counts = f"{int(one.fell_N.sum()):,} fell, {int((~one.fell_N).sum()):,} withstood"
        sheet.text(0.12, top - 0.36, cut(one.model, 40), fontweight="bold")
        sheet.text(0.12, top - 0.2, counts, fontsize=7, color=FAINT)
        tests = sheet.axes(tests_left, top, 2.2, PANEL_HEIGHT)
        for column, measure in enumerate(measures):
            left = LEFT + column * (PANEL_WIDTH + BETWEEN)
            axes = sheet.axes(left, top, PANEL_WIDTH, PANEL_HEIGHT)
            _shifts(axes, one, measure)
            if place == column == 0:
                handles, words = axes.get_legend_handles_labels()
                place_of: Any = {"loc": "lower left", "bbox_to_anchor": (-0.72, 1.02), "ncols": 3}
                tests.legend(handles, words, frameon=False, fontsize=7.5, **place_of)
        _tests(tests, one)
    return sheet.drawing("distraction", title, _caption("away" in measures))


def _shifts(axes: Axes, one: Distraction, measure: str) -> None:
    steps = np.arange(1, 2)
    for place, group in enumerate(GROUPS):
        found = one.shift(measure, group)
        if found is None or not len(found):
            continue
        per_image_NT = found.mean(axis=2)
        mean_T = per_image_NT.mean(axis=0)
        error_T = (
            Z_95 * per_image_NT.std(axis=0, ddof=1) / len(found) ** 0.5 if len(found) > 1 else 0
        )
        steps = np.arange(1, len(mean_T) + 1)
        style: Any = {"color": COLOURS[place], "marker": MARKERS[place], "markersize": 4}
        axes.plot(steps, mean_T, linestyle=DASHES[place % 3], label=group, **style)
        axes.fill_between(
            steps, mean_T - error_T, mean_T + error_T, color=COLOURS[place], alpha=0.2, lw=0
        )
    axes.grid(axis="y")
    axes.axhline(0, color="#8c8c8c", linewidth=0.7)
    axes.set_xticks(steps if len(steps) <= 8 else [1, *range(4, len(steps) + 1, 4)])
    axes.set_xlabel("Glance", labelpad=2)
    axes.set_ylabel(MEASURES[measure])
    if measure == "moved":
        axes.set_ylim(bottom=0)


def _tests(axes: Axes, one: Distraction) -> None:
    names = list(one.tests)
    for place, pair in enumerate(one.tests.values()):
        for offset, share, colour, marker in zip(
            (-0.16, 0.16), pair, COLOURS, MARKERS, strict=False
        ):
            if not share.total:
                continue
            low, high = (100 * end for end in share.interval)
            value, y = 100 * share.value, place + offset
            axes.plot([low, high], [y, y], color=colour, linewidth=1.2)
            axes.plot([value], [y], marker, color=colour, markersize=4.5)
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-2, 102)
    axes.grid(axis="x")
    axes.set_xlabel("Answered right (%)", labelpad=2)


def _caption(with_object: bool) -> str:
    away = (
        " Left the object: Σ m (A_clean - A_attacked) over the grid, with m the object's share of "
        "each place."
        if with_object
        else ""
    )
    return (
        "Left: how much of the attention has moved, half of Σ |A_attacked - A_clean| over the "
        "grid, by glance, the mean over heads; for images that fell to the attack, for those that "
        "withstood it, and for random signs of the same ε; bands: 95 % intervals of the mean over "
        f"images.{away} Right: answers with other maps, for images that fell (circles) and that "
        "withstood (squares), with Wilson's 95 % intervals: the attacked image read where the "
        "model looks on the clean one, the clean image read where it looks on the attacked one "
        "(or on one with random signs), and an attack that takes the maps for fixed, judged with "
        "maps held and as deployed. Were the moved attention why images fall, clean maps would "
        "bring them back, and attacked maps alone would make them fall."
    )


def distraction_rows(models: Sequence[Distraction]) -> list[list[Any]]:
    """Lines of model, key, measure, group, step, head, value, low, high, images; steps and heads
    from 1, 0 for all."""
    rows: list[list[Any]] = []
    for one in models:
        for words, pair in one.tests.items():
            for group, share in zip(GROUPS, pair, strict=False):
                if share.total:
                    numbers = (share.value, *share.interval, share.total)
                    rows.append([one.model, one.key, f"right: {words}", group, 0, 0, *numbers])
        for measure in MEASURES:
            for group in GROUPS:
                rows += _shift_rows(one, measure, group)
    return rows


def _shift_rows(one: Distraction, measure: str, group: str) -> list[list[Any]]:
    found = one.shift(measure, group)
    if found is None or len(found) < 2:
        return []
    rows = []
    columns = {(0, 0): found.mean(axis=(1, 2))}
    columns |= {
        (t + 1, q + 1): found[:, t, q] for t in range(found.shape[1]) for q in range(found.shape[2])
    }
    for (step, head), values_N in columns.items():
        mean, half = values_N.mean(), Z_95 * values_N.std(ddof=1) / len(values_N) ** 0.5
        numbers = (float(mean), float(mean - half), float(mean + half), len(values_N))
        rows.append([one.model, one.key, measure, group, step, head, *numbers])
    return rows
