"""The gradient-masking verdict: does an attack that sees gradients miss what others find?

After Athalye et al. 2018 and Carlini et al. 2019. All is untargeted and any-step but where said: an
image is *robust* to an attack if the model is right about the clean image and at every look of it.
W is the white-box attack, the worst per image of PGD-CE and margin-PGD (5 starts each), APGD-CE and
APGD-T. Imports no torch. N images, S starts, R readings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]

STARTS, MORE_STARTS = 5, 10
"""Of W's two PGDs, and of the one that tells what more of them gain."""
ENOUGH_IMAGES = 1000


class Status(Enum):
    """What a check says; the values are its words."""

    passed = "pass"
    warn = "warn"
    fail = "fail"
    inconclusive = "inconclusive"
    info = "info"
    """No gate: it is told, and decides nothing."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the verdict."""

    key: str
    title: str
    status: Status
    value: float | None
    """None where there is nothing to count."""
    unit: str = "pt"
    """`pt` (points: percent of all images), `%` (of all images) or none."""
    passes: str = ""
    """The threshold of a pass, in words; empty for what is no gate."""
    fails: str = ""
    """That of a fail, or what comes instead of one."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Course:
    """One attack from S starts, read at R steps."""

    readings: Sequence[int]
    right_SNR: Flags
    """At that step."""
    erred_SNR: Flags
    """At that step or before."""

    def broken(self, starts: int | None = None, reading: int = -1) -> Flags:
        """By any of the first starts, up to a reading, by default the last."""
        broken_N: Flags = np.any(self.erred_SNR[:starts, :, reading], axis=0)
        return broken_N


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was seen of each image. An attack that was not made is None."""

    clean_right_N: Flags
    pgd_ce: Course | None = None
    pgd_margin: Course | None = None
    apgd_ce: Course | None = None
    apgd_t: Course | None = None
    wide: Course | None = None
    """Epsilon 0.5: anything can become anything."""
    black_boxes: Mapping[str, Course] = field(default_factory=dict)
    sources: int = 0
    """Models that the transfer attack came from."""
    zero_ce_N: Flags | None = None
    zero_margin_N: Flags | None = None
    rho_N: Floats | None = None
    alignment_N: Floats | None = None
    roughness_N: Floats | None = None

    def robust(self, *broken: Flags) -> Flags:
        """Right on the clean image, and in none of these broken."""
        robust_N: Flags = self.clean_right_N & ~np.logical_or.reduce(broken, axis=0)
        return robust_N

    @property
    def w_robust(self) -> Flags | None:
        """Robust to W; None unless all of it was made."""
        pgds, apgds = (self.pgd_ce, self.pgd_margin), (self.apgd_ce, self.apgd_t)
        broken = [c.broken(STARTS) for c in pgds if c] + [c.broken() for c in apgds if c]
        return self.robust(*broken) if len(broken) == 4 else None


def percent(count: int, flags_N: Flags) -> float:
    """So many of all images; a difference is one of counts, so that no threshold meets rounding."""
    return 100 * count / len(flags_N)


def share(flags_N: Flags) -> float:
    """In percent of all images."""
    return percent(int(flags_N.sum()), flags_N)


def loss_of(before_N: Flags, after_N: Flags) -> float:
    """How many points less are right after than before."""
    return percent(int(before_N.sum()) - int(after_N.sum()), before_N)


DEFINED = {
    "images": ENOUGH_IMAGES,
    "steps of PGD": 200,
    "steps at epsilon 0.5": 100,
    "starts of PGD": STARTS,
    "starts of margin-PGD": MORE_STARTS,
    "steps of APGD": 100,
    "classes of APGD-T": 9,
    "queries of Square": 5000,
    "pairs of SPSA": 2048,
    "random signs": 1000,
}
"""What a verdict rests on at least; one that rests on less is indicative."""


def reductions(made: Mapping[str, int]) -> list[str]:
    """In what the attacks were less than is defined, of what is named here."""
    less = {name: n for name, n in made.items() if n < DEFINED[name]}
    return [f"{name}: {n:,} instead of {DEFINED[name]:,}" for name, n in less.items()]


def closing_words(found: Sequence[Check], reduced: Sequence[str]) -> str:
    """The verdict; `reduced` says in what the attacks are less than they are defined."""
    by = {s: [c.title for c in found if c.status is s] for s in Status}
    words = "No masking found by these checks."
    if by[Status.fail]:
        words = f"Signs of gradient masking: {'; '.join(by[Status.fail])}."
    for status, said in ((Status.warn, "Warnings"), (Status.inconclusive, "Inconclusive")):
        if by[status]:
            words += f" {said}: {'; '.join(by[status])}."
    if reduced:
        words += f" Indicative only: {'; '.join(reduced)}."
    return words


def fails(found: Sequence[Check]) -> bool:
    return any(check.status is Status.fail for check in found)
