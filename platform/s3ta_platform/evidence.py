"""From the stored rows of an evaluation to what the masking verdict is made of. Imports no torch.

N images, S runs of an attack, R readings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from s3ta import masking
from s3ta.masking import Evidence
from s3ta.settings import AttackSettings
from s3ta_platform.evaluate import record_of
from s3ta_platform.jobs import EvaluateJob, Ids
from s3ta_platform.outcomes import Array, Course, Flags, courses, read_outcomes
from s3ta_platform.probe_rows import read_probes
from s3ta_platform.shards import plan_probes, plan_shards
from s3ta_platform.storage import Storage

WHITE_BOX = ("pgd_ce", "pgd_margin", "apgd_ce", "apgd_t", "wide")
BLACK_BOX = ("square", "spsa", "transfer", "random")


def _steps(attack: AttackSettings) -> int:
    return max(attack.readings)


BUDGETS: tuple[tuple[str, str, Callable[[AttackSettings], int]], ...] = (
    ("steps of PGD", "pgd_ce", _steps),
    ("steps of PGD", "pgd_margin", _steps),
    ("steps at epsilon 0.5", "wide", _steps),
    ("starts of PGD", "pgd_ce", lambda attack: attack.restarts),
    ("starts of margin-PGD", "pgd_margin", lambda attack: attack.restarts),
    ("steps of APGD", "apgd_ce", _steps),
    ("steps of APGD", "apgd_t", _steps),
    ("classes of APGD-T", "apgd_t", lambda attack: attack.targets),
    ("queries of Square", "square", _steps),
    ("pairs of SPSA", "spsa", lambda attack: attack.spsa_pairs),
    ("random signs", "random", _steps),
)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What there is to judge by."""

    evidence: Evidence
    images: int
    quarantined: int
    """Left out: who ended the workers is neither robust nor broken by an attack."""
    reduced: list[str]
    """In what the attacks are less than they are defined."""


def read_evidence(storage: Storage, job: EvaluateJob, ids: Ids) -> Seen:
    """UserError if rows are damaged; they must all be stored."""
    attacks, record = job.evaluate.attacks, record_of(job, ids, plan_shards(job, ids))
    found: dict[str, list[Course]] = {}
    for course in courses(record):
        found.setdefault(course.attack, []).append(course)
    reader = _Reader(storage, job, ids)
    made = {
        role: reader.read(found[attacks[role].name])
        for role in (*WHITE_BOX, *BLACK_BOX)
        if role in attacks
    }
    probed = read_probes(storage, plan_probes(job, ids)) if job.evaluate.probe else None
    keep_N = ~reader.quarantined_N
    parts: dict[str, Any] = {} if probed is None else _probed(probed, keep_N)
    parts |= {role: _only(made[role], keep_N) for role in WHITE_BOX if role in made}
    evidence = Evidence(
        clean_right_N=reader.clean_right_N[keep_N],
        sources=len(attacks["transfer"].sources) if "transfer" in attacks else 0,
        black_boxes={role: _only(made[role], keep_N) for role in BLACK_BOX if role in made},
        **parts,
    )
    counts = {"images": int(keep_N.sum()), **_budgets(attacks)}
    return Seen(
        evidence=evidence,
        images=int(keep_N.sum()),
        quarantined=int(reader.quarantined_N.sum()),
        reduced=masking.reductions(counts),
    )


class _Reader:
    """Reads attacks, and notes what they say of the clean images and of the quarantined ones."""

    def __init__(self, storage: Storage, job: EvaluateJob, ids: Ids) -> None:
        self.storage, self.images = storage, len(ids)
        self.record = record_of(job, ids, plan_shards(job, ids))
        self.clean_right_N: Flags = np.ones(self.images, bool)
        self.quarantined_N: Flags = np.zeros(self.images, bool)

    def read(self, runs: list[Course]) -> masking.Course:
        """All runs of one attack, in the order of their number."""
        runs = sorted(runs, key=lambda course: int(course.trajectory["restart"]))
        seen = [read_outcomes(self.storage, self.record, run, self.images) for run in runs]
        for outcomes in seen:
            self.clean_right_N &= outcomes.clean_right_N | outcomes.quarantined_N
            self.quarantined_N |= outcomes.quarantined_N
        return masking.Course(
            readings=runs[0].readings,
            right_SNR=np.stack([outcomes.correct_NR for outcomes in seen]),
            erred_SNR=np.stack([outcomes.any_error_NR for outcomes in seen]),
        )


def _only(course: masking.Course, keep_N: Flags) -> masking.Course:
    return masking.Course(
        readings=course.readings,
        right_SNR=course.right_SNR[:, keep_N],
        erred_SNR=course.erred_SNR[:, keep_N],
    )


def _probed(rows: Mapping[str, Array], keep_N: Flags) -> dict[str, Array]:
    names = ("zero_ce", "zero_margin", "rho", "alignment", "roughness")
    return {f"{name}_N": rows[name][keep_N] for name in names}


def _budgets(attacks: Mapping[str, AttackSettings]) -> dict[str, int]:
    """How much of what is defined was made, by the names of `masking.DEFINED`."""
    least: dict[str, int] = {}
    for name, role, count in BUDGETS:
        if role in attacks:
            made = count(attacks[role])
            least[name] = min(made, least.get(name, made))
    return least
