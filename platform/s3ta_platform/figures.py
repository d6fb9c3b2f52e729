"""Figures of numbers: accuracy and success against attack steps.

Each function returns a finished `Drawing`: a PNG with its title and caption.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from s3ta_platform.attack_names import any_step, attack_title, has_own_step_size
from s3ta_platform.drawing import RULE, STYLE, Drawing, Sheet, cut, look
from s3ta_platform.results import Array
from s3ta_platform.summaries import Reading, Share, Summary

LEADERS = 8
"""With more lines than this, lines from their ends to their names would only cross one another."""


def accuracy_against_steps(summaries: Sequence[Summary], attack: str) -> Drawing:
    """Top-1 at each reading of one attack, clean accuracy at the left (Figures 3 and 4)."""
    still = "right at every step so far" if any_step(attack) else "still classified right"
    return _against_steps(
        summaries,
        attack,
        measure=lambda reading: reading.top1,
        start=lambda summary: summary.nominal,
        name="accuracy_against_steps",
        words=("Accuracy against attack steps", "Top-1 accuracy (%)"),
        caption=f"Share of images {still} (top-1), by the number of attack steps; “clean” is "
        " the accuracy without an attack.",
    )


def success_against_steps(summaries: Sequence[Summary], attack: str) -> Drawing:
    """Attack success at each reading of one attack (Figure 5)."""
    targeted = any(r.targeted for s in summaries for r in s.readings if r.attack == attack)
    return _against_steps(
        summaries,
        attack,
        measure=lambda reading: reading.success,
        start=None,
        name="success_against_steps",
        words=("Attack success against attack steps", "Attack success (%)"),
        caption="Share of images predicted as the class that the attacker chose, by the number of "
        "attack steps; lower is better."
        if targeted
        else "Share of images classified right before the attack and wrong after it, by the "
        "number of attack steps; lower is better.",
    )


@mpl.rc_context(STYLE)
def _against_steps(
    summaries: Sequence[Summary],
    attack: str,
    *,
    measure: Callable[[Reading], Share],
    start: Callable[[Summary], Share] | None,
    name: str,
    words: tuple[str, str],
    caption: str,
) -> Drawing:
    readings = [[r for r in s.readings if r.attack == attack and r.steps > 0] for s in summaries]
    steps = sorted({r.steps for of_one in readings for r in of_one})
    totals = sorted({max(r.top1.total, r.success.total) for of_one in readings for r in of_one})
    sheet, axes = _line_sheet([s.name for s in summaries])
    hollow = [n for n in steps if has_own_step_size(attack, n)]
    subtitle = f"{attack_title(attack)}; {_images(totals)}; bars: 95 % intervals"
    sheet.heading(words[0], subtitle + ("; hollow: run of its own, larger steps" if hollow else ""))
    clean_at, nudges = _step_axis(axes, steps, len(summaries), with_clean=start is not None)
    ends = []
    for index, (summary, of_one) in enumerate(zip(summaries, readings, strict=True)):
        if start is not None and of_one:
            _points(axes, [clean_at * nudges[index]], [start(summary)], [False], index)
        xs = [r.steps * nudges[index] for r in of_one]
        own = [has_own_step_size(attack, r.steps) for r in of_one]
        ends.append(_points(axes, xs, [measure(r) for r in of_one], own, index))
    axes.set_ylabel(words[1])
    _percent_limits(axes, floor_at_zero=start is None)
    label_lines(axes, [s.name for s in summaries], ends)
    caption = f"{caption} Bars are Wilson's 95 % intervals over {_images(totals)}."
    caption += _hollow_words(hollow) if hollow else ""
    return Drawing(name=f"{name}-{attack}", title=words[0], caption=caption, png=sheet.png())


def _images(totals: Sequence[int]) -> str:
    return " to ".join(f"{n:,}" for n in dict.fromkeys((totals[0], totals[-1]))) + " test images"


def _hollow_words(steps: Sequence[int]) -> str:
    return (
        f" Hollow markers ({', '.join(map(str, steps))} steps) come from a run of their own: the "
        "step size is ε · max(1/16, 1/n), so an attack of fewer than 16 steps takes larger ones."
    )


def _line_sheet(names: Sequence[str]) -> tuple[Sheet, Axes]:
    """A sheet with one pair of axes and room for the names at the right."""
    height = max(3.0, 0.19 * len(names))
    sheet = Sheet(0.75 + 4.6 + room_for(names), 0.7 + height + 0.6)
    axes = sheet.axes(0.75, 0.7, 4.6, height)
    axes.grid(axis="y")
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
    return sheet, axes


def room_for(names: Sequence[str]) -> float:
    """Inches at the right of a figure for the lines' names."""
    return 0.75 + 0.075 * max((len(cut(name, 30)) for name in names), default=0)


def _points(
    axes: Axes, xs: Sequence[float], shares: Sequence[Share], own: Sequence[bool], index: int
) -> tuple[float, float] | None:
    """Draw one trial's line; returns where it ends, in data coordinates."""
    style = look(index)
    values = [100 * share.value for share in shares]
    intervals = 100 * np.array([share.interval for share in shares]).reshape(-1, 2)
    errors = np.abs(intervals.T - values)
    errorbar: Any = {"ecolor": style["color"], "elinewidth": 1.0, "capsize": 2.0, "alpha": 0.75}
    axes.errorbar(xs, values, yerr=errors, fmt="none", **errorbar)
    for place in range(len(xs) - 1):
        segment = slice(place, place + 2)
        faint = 0.45 if any(own[segment]) else 1.0
        line = style | {"marker": None, "alpha": faint}
        axes.plot(xs[segment], values[segment], **line)
    for x, value, hollow in zip(xs, values, own, strict=True):
        dot = style | {"linestyle": "", "markeredgewidth": 1.3}
        face = "white" if hollow else style["color"]
        axes.plot([x], [value], **dot, markerfacecolor=face, zorder=3)
    return (xs[-1], values[-1]) if xs else None


def _step_axis(
    axes: Axes, steps: Sequence[int], trials: int, *, with_clean: bool
) -> tuple[float, Array]:
    """A log axis with the readings as ticks.

    Returns where `clean` stands, left of all steps, and for each trial a factor around 1 that sets
    its bars beside those of the others.
    """
    gap = min((b / a for a, b in pairwise(steps)), default=4.0)
    away = max(gap**0.3, (steps[-1] / steps[0]) ** 0.1)
    clean = steps[0] / away**2
    ticks = [clean, *steps] if with_clean else list(steps)
    labels = ["clean", *(f"{n:,}" for n in steps)] if with_clean else [f"{n:,}" for n in steps]
    left, right = ticks[0] / away, ticks[-1] * away
    axes.set(xscale="log", xlim=(left, right), xlabel="Attack steps (log scale)")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter(labels))
    axes.xaxis.set_minor_locator(NullLocator())
    if with_clean:
        axes.axvline(steps[0] / away, color=RULE, linewidth=0.8, linestyle=(0, (2, 2)))
    # A marker's width from one trial to the next, unless that would reach the next reading.
    width = min(0.018 * (trials - 1) * np.log(right / left), 0.42 * np.log(gap))
    return clean, np.exp(np.linspace(-width / 2, width / 2, trials) if trials > 1 else np.zeros(1))


def _percent_limits(axes: Axes, *, floor_at_zero: bool) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(0 if floor_at_zero else max(0, 5 * np.floor(low / 5)), min(100.5, high))


def label_lines(
    axes: Axes,
    names: Sequence[str],
    ends: Sequence[tuple[float, float] | None],
    first_look: int = 0,
) -> None:
    """Write each line's name at the right of it, with its marker, and never over another name."""
    drawn = [index for index, end in enumerate(ends) if end is not None]
    axes.autoscale_view()  # Limits are settled late; the places below depend on them.
    to_axes = axes.transScale + axes.transLimits
    starts = [to_axes.transform(end) for end in ends if end is not None]
    leaders = len(drawn) <= LEADERS
    height_inches = axes.get_window_extent().height / axes.figure.dpi
    heights = spread([y for _, y in starts], 0.185 / height_inches, 0.02, 0.98)
    for index, start, y in zip(drawn, starts, heights, strict=True):
        style = look(first_look + index)
        place = {"transform": axes.transAxes, "clip_on": False}
        leader: Any = place | {"color": style["color"], "linewidth": 0.7, "alpha": 0.6}
        if leaders:
            axes.add_line(Line2D([start[0] + 0.015, 1.02, 1.05], [start[1], y, y], **leader))
        key: Any = style | place | {"linewidth": 1.6, "markersize": 5.0, "markevery": [1]}
        axes.add_line(Line2D([1.05, 1.08, 1.11], [y, y, y], **key))
        axes.text(1.13, y, cut(names[index], 30), transform=axes.transAxes, va="center")


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places in [low, high], at least `gap` apart, in the wanted order and as near as can be."""
    order = np.argsort(wanted, kind="stable")
    # Less the room of those below, it is isotonic regression: neighbours that clash are pooled.
    pools: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        pools.append((wanted[index] - rank * gap, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n)]
    flat = np.repeat([place for place, _ in pools], [count for _, count in pools])
    ranks = np.arange(len(order))
    places = np.clip(flat, low, high - gap * max(len(order) - 1, 0)) + ranks * gap
    return [float(place) for place in places[np.argsort(order, kind="stable")]]
