"""The computational race (S3TA sec. 5.1): robust accuracy against what each side computes.

Both sides are counted in multiply-adds per image: the defender's one forward pass, and the
attacker's passes, a gradient counted as one more. Nothing is computed anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from s3ta.cost import multiply_adds
from s3ta.settings import AttackSettings, ModelSettings
from s3ta.trajectory import trajectories
from s3ta_platform.costs import in_words
from s3ta_platform.drawing import STYLE, Drawing, Sheet, cut, look
from s3ta_platform.summaries import Share, Summary

WIDTH, HEIGHT = 3.1, 2.6


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model after so many attack steps; multiply-adds per image."""

    model: str
    key: str
    unroll: int
    steps: int
    defender: int
    attacker: int
    top1: Share


def race_points(
    summary: Summary, model: ModelSettings, attack: AttackSettings, size: int, classes: int
) -> list[Point]:
    """All readings of one attack on one model. A reading of a longer run costs its own steps."""
    forward = multiply_adds(model, size, classes)
    through = replace(model, unroll=max(attack.unroll or 1, model.unroll))
    seen, points = multiply_adds(through, size, classes), []
    for steps in attack.readings:
        reading = summary.at(attack.name, steps)
        if reading is None or not reading.top1.total:
            continue
        runs = [run for run in trajectories(attack) if steps in run.readings]
        passes = sum(steps * run.passes_per_step for run in runs)
        points.append(
            Point(
                model=summary.name,
                key=summary.key,
                unroll=0 if model.attention is None else model.unroll,
                steps=steps,
                defender=forward,
                attacker=passes * seen,
                top1=reading.top1,
            )
        )
    return points


@mpl.rc_context(STYLE)
def race_figure(points: Sequence[Point], attack: str, images: int) -> Drawing:
    """Accuracy against the attacker's multiply-adds, a line per model; and against the defender's,
    a line per number of steps."""
    keys, steps = list(dict.fromkeys(p.key for p in points)), sorted({p.steps for p in points})
    sheet = Sheet(0.75 + 2 * WIDTH + 1.75 + 1.15, 0.78 + HEIGHT + 0.55)
    title = "The computational race"
    sheet.heading(title, f"{attack}; {images:,} test images; bars: 95 % intervals")
    left = sheet.axes(0.75, 0.78, WIDTH, HEIGHT)
    for place, key in enumerate(keys):
        own = [p for p in points if p.key == key]
        _line(left, [p.attacker for p in own], own, look(place), cut(own[0].model, 22))
    left.set_xscale("log")
    _finish(left, "Attacker: multiply-adds per image", "Model")
    few = max(p.attacker for p in points) < 100 * min(p.attacker for p in points)
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_ylabel("Top-1 accuracy (%)")
    right = sheet.axes(0.75 + WIDTH + 1.75, 0.78, WIDTH, HEIGHT)
    spread = 0.007 * (max(p.defender for p in points) - min(p.defender for p in points))
    for place, step in enumerate(steps):
        own = sorted((p for p in points if p.steps == step), key=lambda p: p.defender)
        style = look(place) | {"color": mpl.colormaps["viridis"](0.85 * place / len(steps))}
        beside = spread * (place - (len(steps) - 1) / 2)  # bars beside one another
        recurrent = [p for p in own if p.unroll]
        for some in (recurrent, [p for p in own if not p.unroll]):  # no line joins the two
            words = f"{step:,} steps" if some is recurrent or not recurrent else ""
            _line(right, [p.defender + beside for p in some], some, style, words)
    _finish(right, "Defender: multiply-adds per image", "Attack")
    right.xaxis.set_major_locator(MaxNLocator(5))
    right.xaxis.set_minor_locator(NullLocator())
    _name_unrolls(right, points)
    return sheet.drawing("race", title, _caption(any(not p.unroll for p in points)))


def _line(
    axes: Axes, xs: Sequence[float], points: Sequence[Point], style: dict[str, Any], words: str
) -> None:
    if not points:
        return
    values = [100 * p.top1.value for p in points]
    low, high = zip(*([100 * end for end in p.top1.interval] for p in points), strict=True)
    errors = abs(np.array([low, high]) - values)
    bars: Any = {"ecolor": style["color"], "elinewidth": 0.8, "alpha": 0.55}
    axes.errorbar(xs, values, yerr=errors, fmt="none", **bars)
    axes.plot(xs, values, label=words or None, **(style | {"markersize": 4.5}))


def _finish(axes: Axes, words: str, legend: str) -> None:
    axes.grid()
    axes.set_xlabel(words)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: in_words(int(count))))
    handles, labels = axes.get_legend_handles_labels()
    named = [(h, w) for h, w in zip(handles, labels, strict=True) if not w.startswith("_")]
    axes.legend(
        *zip(*named, strict=True),
        title=legend,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1.02, 1.02),
        fontsize=7.5,
        title_fontsize=7.5,
        alignment="left",
    )


def _name_unrolls(axes: Axes, points: Sequence[Point]) -> None:
    """Which model stands where on the defender's axis."""
    at = {p.defender: str(p.unroll) if p.unroll else "ResNet" for p in points}
    for defender, words in at.items():
        place: Any = {"transform": axes.get_xaxis_transform(), "ha": "center", "fontsize": 7}
        axes.text(defender, 1.01, words, color="#4d4d4d", **place)


def _caption(with_resnet: bool) -> str:
    plain = " and of a model without attention" if with_resnet else ""
    return (
        "Top-1 accuracy under attack. Left: against what the attacker computes for an image, "
        "steps times passes, a gradient counted as a second pass. Right: against what the defender "
        f"computes, one forward pass; above the axes the number of glances{plain}. "
        "Multiply-adds of convolutions, linear layers and matrix products, counted from the "
        "settings. Each model is trained with its own number of glances; bars: Wilson's 95 % "
        "intervals."
    )


def race_rows(points: Sequence[Point]) -> list[list[Any]]:
    """Lines of model, key, unroll, steps, defender, attacker, top1, low, high, images."""
    rows: list[list[Any]] = []
    for p in points:
        counts = (p.unroll, p.steps, p.defender, p.attacker)
        rows.append([p.model, p.key, *counts, p.top1.value, *p.top1.interval, p.top1.total])
    return rows
