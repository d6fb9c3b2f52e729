"""The figure of training: loss and accuracy by epoch, the curriculum's stages shaded."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from s3ta_platform.drawing import FAINT, STYLE, Drawing, Sheet, look
from s3ta_platform.figures import label_lines, room_for
from s3ta_platform.results import Array, StageSpan, TrialResult


@mpl.rc_context(STYLE)
def learning_curves(
    trials: Sequence[TrialResult], *, name: str = "learning_curves", first_look: int = 0
) -> Drawing | None:
    """Training loss and top-1 on the attacked training images; None if nothing was recorded."""
    if not any(len(_curve(trial, "loss", 1)[0]) for trial in trials):
        return None
    names = [trial.name for trial in trials]
    panels, height = (("loss", "Training loss", 1), ("adversarial_top1", "Top-1 (%)", 100)), 2.5
    height = max(height, 0.19 * len(names))
    sheet = Sheet(0.65 + 3.1 + 0.7 + 3.1 + room_for(names), 0.7 + height + 0.6)
    stages = _shared_stages(trials)
    shaded = "; shaded: the stages of the curriculum" if stages else ""
    sheet.heading("Learning curves", f"on adversarial training images, while training{shaded}")
    for panel, (column, words, unit) in enumerate(panels):
        axes = sheet.axes(0.65 + 3.8 * panel, 0.7, 3.1, height)
        axes.grid(axis="y")
        curves = [_curve(trial, column, unit) for trial in trials]
        for index, (xs, ys) in enumerate(curves):
            few: Any = {} if len(xs) <= 12 else {"marker": None}
            axes.plot(xs, ys, **(look(first_look + index) | few))
        axes.set(xlabel="Epoch", ylabel=words)
        axes.set_xlim(left=0)
        _shade(axes, stages)
    ends = [(xs[-1], ys[-1]) if len(xs) else None for xs, ys in curves]
    label_lines(axes, names, ends, first_look)
    caption = (
        "Loss and share classified right (top-1) on the attacked training images, as the model "
        "saw them; not a measure on test images."
    )
    if stages:
        told = [f"from epoch {s.first:g}{f' {s.words}' if s.words else ''}" for s in stages]
        caption += f" Stages of the curriculum: {'; '.join(told)}."
    return Drawing(name=name, title="Learning curves", caption=caption, png=sheet.png())


def _shared_stages(trials: Sequence[TrialResult]) -> Sequence[StageSpan]:
    """The stages, where all trials have them in the same epochs; with words where they agree."""
    found = []
    for together in zip_longest(*(trial.stages for trial in trials)):
        stages = [stage for stage in together if stage is not None]
        same = len({(stage.first, stage.end) for stage in stages}) == 1
        if not same or len(stages) < len(trials):
            return []
        agreed = len({stage.words for stage in stages}) == 1
        found.append(stages[0] if agreed else replace(stages[0], words=""))
    return found


def _shade(axes: Axes, stages: Sequence[StageSpan]) -> None:
    """Bands of two faint greys, each with its words at the top."""
    for number, stage in enumerate(stages):
        face = ("#f1f4f8", "#dfe6ee")[number % 2]
        axes.axvspan(stage.first, stage.end, facecolor=face, edgecolor="none", zorder=0)
        place: Any = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
        middle = (stage.first + stage.end) / 2
        axes.text(middle, 1.01, stage.words, fontsize=6.8, color=FAINT, **place)
    if stages:
        axes.set_xlim(stages[0].first, stages[-1].end)


def _curve(trial: TrialResult, column: str, unit: float) -> tuple[Array, Array]:
    """Epochs and values, points of the same epoch averaged, long curves smoothed a little."""
    missing = float("nan")
    points = [(row.get("epoch", missing), row.get(column, missing)) for row in trial.history]
    points_N2 = np.array(points, dtype=float).reshape(-1, 2)
    points_N2 = points_N2[np.isfinite(points_N2).all(axis=1)]
    epochs, where = np.unique(points_N2[:, 0], return_inverse=True)
    values = unit * np.bincount(where, points_N2[:, 1]) / np.bincount(where)
    window = len(epochs) // 30
    if window < 2:
        return epochs, values
    kernel = np.ones(window) / window
    return np.convolve(epochs, kernel, "valid"), np.convolve(values, kernel, "valid")
