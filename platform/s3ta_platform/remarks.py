"""What must be said beside the numbers: early stops, quarantined images, other measures."""

from collections.abc import Sequence

import pyarrow.compute as pc

from s3ta_platform.attack_names import KEEPS_BEST, TRANSFER
from s3ta_platform.results import TrialResult

AUTOATTACK = {"apgd_untargeted", "apgd_likeliest_dlr", "fab_likeliest", "square_untargeted"}
NAMED = 5
"""So many quarantined images are named."""


def remarks(trials: Sequence[TrialResult]) -> list[str]:
    """Sentences for every output of a sweep."""
    found = [text for trial in trials for text in (_stopped(trial), _quarantined(trial)) if text]
    return [*found, *_until_success(trials), *_worst_cases(trials), *_agreement(trials)]


def agreement(trial: TrialResult) -> float | None:
    """In how many readings the copy that led the attack answers as the model itself does."""
    rows = trial.rows.filter(pc.equal(trial.rows["quarantined"], ""))
    led = pc.starts_with(rows["attack"], TRANSFER)  # by another model, which need not agree
    rows = rows.filter(pc.invert(led))
    if not len(rows):
        return None
    return float(pc.mean(pc.equal(rows["prediction"], rows["attack_prediction"])).as_py())


def _stopped(trial: TrialResult) -> str:
    if trial.halfwidth is None:
        return ""
    n = pc.count_distinct(trial.rows["image_id"]).as_py()
    return (
        f"{trial.name} was stopped early, after {n:,} of {trial.planned:,} images, as "
        "evaluate.stop_when asks: every 95 % interval of top-1 under attack and of targeted "
        f"success is at most {100 * trial.halfwidth:g} points to each side, for the "
        f"{trial.planned:,} images as a whole."
    )


def _quarantined(trial: TrialResult) -> str:
    lost = trial.rows.filter(pc.not_equal(trial.rows["quarantined"], ""))
    if not len(lost):
        return ""
    errors = dict(zip(lost["image_id"].to_pylist(), lost["quarantined"].to_pylist(), strict=True))
    named = "; ".join(f"{i}: {error}" for i, error in list(errors.items())[:NAMED])
    total = pc.count_distinct(trial.rows["image_id"]).as_py()
    return (
        f"{trial.name}: {len(errors)} of {total:,} images ended every worker that tried them and "
        f"count as not robust (images {named}). Were they robust, top-1 would be up to "
        f"{100 * len(errors) / total:.2f} points higher."
    )


def _until_success(trials: Sequence[TrialResult]) -> list[str]:
    attacks = {a for t in trials for a in pc.unique(t.rows["attack"]).to_pylist()}
    words = [
        "Until success: an image is left alone once the attack's own goal is met, so the number "
        "says what had happened at any step up to the reading."
    ]
    best = [
        "APGD, FAB and Square return their best point: their numbers say what had happened at any "
        "step."
    ]
    return [
        *(words if any("_until_success_" in attack for attack in attacks) else []),
        *(best if any(attack.startswith(KEEPS_BEST) for attack in attacks) else []),
    ]


def _worst_cases(trials: Sequence[TrialResult]) -> list[str]:
    """What the worst case is, and whether it may be called by the name of a suite."""
    groups: dict[str, set[str]] = {}
    for attack in {a for t in trials for a in pc.unique(t.rows["attack"]).to_pylist()}:
        name, _, epsilon = attack.rpartition("_eps")
        groups.setdefault(epsilon, set()).add(name)
    several = {e: names for e, names in groups.items() if len(names) > 1}
    found = [
        "Worst case: an image counts as right if it is right under each attack of that ε, at its "
        "last reading."
    ]
    found += [
        f"At ε = {epsilon}/255 APGD-CE, APGD-T, FAB-T and Square are among them: the attacks of "
        "AutoAttack's standard version, in this project's own implementation."
        for epsilon, names in sorted(several.items())
        if names >= AUTOATTACK
    ]
    return found if several else []


def _agreement(trials: Sequence[TrialResult]) -> list[str]:
    shares = [share for share in map(agreement, trials) if share is not None]
    if not shares:
        return []
    return [
        "Every answer is the model's own, in float32; the faster copy that led the attack agreed "
        f"in {100 * min(shares):.2f} % of readings or more."
    ]
