"""The checks of the gradient-masking verdict, each with its number and its thresholds.

N images. Numbers in points or percent are of all N images.
"""

from dataclasses import replace
from itertools import combinations

import numpy as np

from s3ta.masking import (
    MORE_STARTS,
    STARTS,
    Check,
    Course,
    Evidence,
    Flags,
    Floats,
    Status,
    loss_of,
    share,
)

SOURCES = 2
"""So many models a transfer attack comes from, at least."""
BLACK_BOXES = {
    "square": "W-robust, broken by Square",
    "spsa": "W-robust, broken by SPSA",
    "transfer": "W-robust, broken by transfer",
    "random": "W-robust, broken by random signs",
}
NEED_POWER = ("square", "spsa")
"""Attacks whose failure says nothing if they achieve less than this share of W's drop:"""
POWER = 0.25
SPSA_RHO = 0.8
"""From this median rho on, an SPSA attack goes where the loss falls."""


def checks(e: Evidence) -> list[Check]:
    """All of them, in the order of the table."""
    return [
        *black_box_checks(e),
        goals_agree(e),
        wide_ball(e),
        zero_gradients("zero_margin", "margin", e.zero_margin_N),
        zero_gradients("zero_ce", "cross-entropy", e.zero_ce_N),
        estimates_agree(e),
        starts_gain(e),
        converged(e),
        never_rises(e),
        *information(e),
    ]


def graded(value: float, passes: float, fails: float) -> Status:
    """For a number that should be low: a warning between the two thresholds."""
    if value <= passes:
        return Status.passed
    return Status.fail if value > fails else Status.warn


def missing(key: str, title: str, note: str, unit: str = "pt") -> Check:
    """What could not be looked at."""
    return Check(key=key, title=title, status=Status.inconclusive, value=None, unit=unit, note=note)


def black_box_checks(e: Evidence) -> list[Check]:
    """One per attack, and one for all together."""
    key, title, w_N = "black_box", "W-robust, broken by any of these", e.w_robust
    if w_N is None or not e.black_boxes:
        note = "W, or what is to be compared with it, was not made as a whole"
        titles = {**BLACK_BOXES, key: title}
        return [missing(name, words, note) for name, words in titles.items()]
    single = [_black_box(e, w_N, name) for name in BLACK_BOXES]
    found = [course.broken() for course in e.black_boxes.values()]
    together = _broken(key, title, w_N, np.logical_or.reduce(found, axis=0))
    unsure = [c.key for c in single if c.status is Status.inconclusive]
    if unsure and together.status is not Status.fail:
        note = f"{together.note}; {' and '.join(unsure)} inconclusive"
        together = replace(together, status=Status.inconclusive, note=note)
    return [*single, together]


def _black_box(e: Evidence, w_N: Flags, name: str) -> Check:
    course = e.black_boxes.get(name)
    if course is None:
        remedy = "name two other models: masking.sources=[A,B]"
        return missing(name, BLACK_BOXES[name], remedy if name == "transfer" else "not made")
    found = _broken(name, BLACK_BOXES[name], w_N, course.broken())
    weak = _weakness(e, w_N, name, course)
    # What it breaks is broken, however weak it is: weakness only takes the pass away.
    if weak and found.status is not Status.fail:
        return replace(found, status=Status.inconclusive, note=weak)
    return found


def _broken(key: str, title: str, w_N: Flags, broken_N: Flags) -> Check:
    value = share(w_N & broken_N)
    return Check(
        key=key,
        title=title,
        status=graded(value, 0.2, 1.0),
        value=value,
        passes="<= 0.2",
        fails="> 1",
        note=f"{int((w_N & broken_N).sum()):,} of {int(w_N.sum()):,} images",
    )


def _weakness(e: Evidence, w_N: Flags, name: str, course: Course) -> str:
    """Why an attack that breaks nothing would say nothing; empty if it would say something."""
    if name == "transfer" and e.sources < SOURCES:
        return f"from {e.sources} other model: {SOURCES} are needed"
    if name == "spsa" and e.rho_N is None:
        return "rho was not measured"
    if name == "spsa" and e.rho_N is not None and (rho := median(e.rho_N)) < SPSA_RHO:
        return f"its gradients are off: rho is {rho:.2f}, {SPSA_RHO} is needed"
    own = loss_of(e.clean_right_N, e.robust(course.broken()))
    of_w = loss_of(e.clean_right_N, w_N)
    if name in NEED_POWER and own < POWER * of_w:
        return f"its drop of {own:.1f} pt is under a quarter of W's {of_w:.1f} pt"
    return ""


def goals_agree(e: Evidence) -> Check:
    """PGD on cross-entropy and on the margin should find the same."""
    key, title = "goals", "PGD-CE against margin-PGD"
    if e.pgd_ce is None or e.pgd_margin is None:
        return missing(key, title, "not made")
    ce_N, margin_N = (e.robust(c.broken(STARTS)) for c in (e.pgd_ce, e.pgd_margin))
    value = abs(loss_of(ce_N, margin_N))
    note = f"{share(ce_N):.1f} % and {share(margin_N):.1f} %"
    return Check(
        key=key,
        title=title,
        status=graded(value, 2, 5),
        value=value,
        passes="<= 2",
        fails="> 5",
        note=note,
    )


def wide_ball(e: Evidence) -> Check:
    """In a ball that holds a grey image, nothing is left to be right about."""
    key, title = "wide", "accuracy at epsilon 0.5"
    if e.wide is None:
        return missing(key, title, "not made", "%")
    value = share(e.robust(e.wide.broken()))
    return Check(
        key=key,
        title=title,
        status=graded(value, 1, 5),
        value=value,
        unit="%",
        passes="<= 1",
        fails="> 5",
    )


def zero_gradients(key: str, loss: str, zero_N: Flags | None) -> Check:
    """Where it is zero in every place, an attack that follows it stays where it is."""
    title = f"zero gradients, {loss}"
    if zero_N is None:
        return missing(key, title, "not made", "%")
    value, gate = share(zero_N), key == "zero_margin"
    status = graded(value, 0, 1) if gate else graded(value, 0, 100)
    return Check(
        key=key,
        title=title,
        status=status,
        value=value,
        unit="%",
        passes="0",
        fails="> 1" if gate else "warn only",
        note=f"{int(zero_N.sum()):,} of {len(zero_N):,} images",
    )


def estimates_agree(e: Evidence) -> Check:
    """The gradient is that of the loss itself, as differences of it show."""
    key, title = "rho", "rho (margin), median"
    if e.rho_N is None:
        return missing(key, title, "not made", "")
    value = median(e.rho_N)
    return Check(
        key=key,
        title=title,
        status=graded(-value, -0.8, -0.5),
        value=value,
        unit="",
        passes=">= 0.8",
        fails="< 0.5",
    )


def starts_gain(e: Evidence) -> Check:
    """Many starts find much more than one only where one gets stuck."""
    key, title = "starts", f"gain of {MORE_STARTS} starts"
    if e.pgd_margin is None or len(e.pgd_margin.right_SNR) < 2:
        return missing(key, title, "not made")
    made = min(MORE_STARTS, len(e.pgd_margin.right_SNR))
    one_N, many_N = (e.robust(e.pgd_margin.broken(starts)) for starts in (1, made))
    value = loss_of(one_N, many_N)
    return Check(
        key=key,
        title=title.replace(str(MORE_STARTS), str(made)),
        status=graded(value, 1, 100),
        value=value,
        passes="<= 1",
        fails="warn only",
        note=f"{share(one_N):.1f} % and {share(many_N):.1f} %",
    )


def converged(e: Evidence) -> Check:
    """The larger drop of PGD-CE and margin-PGD between half of the steps and all."""
    key, title = "converged", "drop in the last doubling of steps"
    drops = [d for c in (e.pgd_ce, e.pgd_margin) if c and (d := _last_doubling(e, c)) is not None]
    if not drops:
        return missing(key, title, "no reading at half of the steps")
    value = max(drops)
    return Check(
        key=key,
        title=title,
        status=Status.passed if value <= 1 else Status.inconclusive,
        value=value,
        passes="<= 1",
        fails="not converged",
        note="" if value <= 1 else "not converged: give W more steps",
    )


def _last_doubling(e: Evidence, course: Course) -> float | None:
    last = course.readings[-1]
    if last % 2 or last // 2 not in course.readings:
        return None
    half = list(course.readings).index(last // 2)
    return loss_of(*(e.robust(course.broken(STARTS, reading)) for reading in (half, -1)))


def never_rises(e: Evidence) -> Check:
    """Between any two readings of the first start, where it exceeds what chance allows the most."""
    key, title = "rise", "rise of accuracy with steps"
    found = [
        rise(course.right_SNR[0, :, early], course.right_SNR[0, :, late])
        for course in (e.pgd_ce, e.pgd_margin)
        if course is not None
        for early, late in combinations(range(len(course.readings)), 2)
    ]
    if not found:
        return missing(key, title, "fewer than two readings")
    value, allowed = max(found, key=lambda pair: pair[0] - pair[1])
    return Check(
        key=key,
        title=title,
        status=Status.passed if value <= allowed else Status.warn,
        value=value,
        passes=f"<= {allowed:.2g}",
        fails="warn only",
    )


def rise(before_N: Flags, after_N: Flags) -> tuple[float, float]:
    """In points, and what is allowed: max(0.5, 2 sqrt(b + c) / N), with b and c images changed."""
    up, down = int((after_N & ~before_N).sum()), int((before_N & ~after_N).sum())
    n = len(before_N)
    return 100 * (up - down) / n, max(0.5, 100 * 2 * float(np.sqrt(up + down)) / n)


def information(e: Evidence) -> list[Check]:
    """No gates: a saturated model looks smoothest of all."""
    told = (
        ("alignment", "alignment of gradients, median", e.alignment_N),
        ("roughness", "roughness of the margin, median", e.roughness_N),
    )
    return [
        Check(key=key, title=title, status=Status.info, value=median(values_N), unit="")
        for key, title, values_N in told
        if values_N is not None
    ]


def median(values_N: Floats) -> float:
    return float(np.median(values_N))
