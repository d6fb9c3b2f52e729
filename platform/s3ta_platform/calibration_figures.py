"""Accuracy, calibration and AURRA on images as they are, as bars (Figure 7)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np

from s3ta.calibration import (
    Answers,
    aurra,
    bootstrap,
    response_rate_accuracy,
    rms_calibration,
    rms_calibration_published,
    top1,
)
from s3ta.statistics import wilson
from s3ta_platform.drawing import STYLE, Drawing, Sheet, cut, look

MEASURES: dict[str, Callable[[Answers], float]] = {
    "Top-1": top1,
    "RMS calibration error": rms_calibration,
    "Same, last bin left out": rms_calibration_published,
    "AURRA": aurra,
}
PANEL, GAP, BAR = 1.7, 0.32, 0.34


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """One model's answers, and its measures with their 95 % intervals, as shares."""

    model: str
    key: str
    answers: Answers
    measures: dict[str, tuple[float, float, float]]


def calibrated(model: str, key: str, answers: Answers, times: int, seed: int) -> Calibrated:
    """Measure; intervals by bootstrap over images, Wilson's for top-1."""
    measures = {}
    for name, measure in MEASURES.items():
        right = int(answers.correct_N.sum())
        interval = (
            wilson(right, len(answers))
            if measure is top1
            else bootstrap(answers, measure, times, seed)
        )
        measures[name] = (measure(answers), *interval)
    return Calibrated(model=model, key=key, answers=answers, measures=measures)


@mpl.rc_context(STYLE)
def calibration_bars(models: Sequence[Calibrated], images: str) -> Drawing:
    """A panel per measure, a bar per model."""
    left, height = 0.3 + 0.075 * max(len(cut(m.model, 30)) for m in models), BAR * len(models)
    sheet = Sheet(left + len(MEASURES) * (PANEL + GAP) + 0.2, 0.95 + height + 0.6)
    title = f"Accuracy and calibration on {images}"
    sheet.heading(title, f"{len(models[0].answers):,} images; lines: 95 % intervals")
    for panel, name in enumerate(MEASURES):
        axes = sheet.axes(left + panel * (PANEL + GAP), 0.95, PANEL, height)
        better = "higher is better" if name in ("Top-1", "AURRA") else "lower is better"
        for place, model in enumerate(models):
            value, low, high = (100 * number for number in model.measures[name])
            axes.barh(place, value, height=0.62, color=look(place)["color"], alpha=0.85)
            axes.plot([low, high], [place, place], color="#1a1a1a", linewidth=1.1)
            axes.text(high, place, f"  {value:.1f}", va="center", fontsize=7)
        axes.set_ylim(len(models) - 0.5, -0.5)
        names = [cut(m.model, 30) for m in models] if panel == 0 else []
        axes.set_yticks(range(len(models)) if panel == 0 else [], names)
        axes.set_xlim(0, 1.22 * max(100 * m.measures[name][2] for m in models))
        axes.set_title(name, fontsize=8, fontweight="bold", loc="left")
        axes.set_xlabel(f"% ({better})", fontsize=7.5)
        axes.grid(axis="x")
    return sheet.drawing("calibration", title, _caption())


def _caption() -> str:
    return (
        "Top-1 accuracy; RMS calibration error, the root of Σ n/N (confidence - accuracy)² over "
        "bins of 100 images sorted by confidence; the same in the form in which the data set's "
        "authors publish it, without the last, most confident bin; and AURRA, the accuracy among "
        "the k most confident answers, averaged over k. Confidence is the probability of the "
        "answer. Intervals: percentiles of a bootstrap over images, which lie high for calibration "
        "errors, as drawing images anew adds noise to every bin; Wilson's for top-1."
    )


@mpl.rc_context(STYLE)
def response_curves(models: Sequence[Calibrated], images: str) -> Drawing:
    """Accuracy of the most confident answers, whose mean is AURRA."""
    sheet = Sheet(6.2, 3.95)
    title = "Accuracy of the most confident answers"
    sheet.heading(title, f"on {images}; AURRA is the mean height of a curve")
    axes = sheet.axes(0.75, 0.7, 3.6, 2.6)
    for place, model in enumerate(models):
        curve = 100 * response_rate_accuracy(model.answers)
        rates = 100 * np.arange(1, len(curve) + 1) / len(curve)
        style: Any = {k: v for k, v in look(place).items() if k != "marker"}
        words = f"{cut(model.model, 22)} ({100 * model.measures['AURRA'][0]:.1f})"
        axes.plot(rates, curve, label=words, **style)
    axes.grid()
    axes.set(xlabel="Response rate (% of images answered)", ylabel="Accuracy of these (%)")
    axes.set_xlim(0, 100)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.02, 1.0), fontsize=7.5)
    caption = (
        "Accuracy among the most confident answers, if the model may abstain on all others, by the "
        "share of images answered. In brackets AURRA, the mean over all response rates, in percent."
    )
    return sheet.drawing("response_rate", title, caption)


def calibration_rows(models: Sequence[Calibrated]) -> list[list[Any]]:
    """Lines of model, key, measure, value, low, high, images."""
    return [
        [m.model, m.key, name, *numbers, len(m.answers)]
        for m in models
        for name, numbers in m.measures.items()
    ]
