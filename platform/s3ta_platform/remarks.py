"""What must be said beside the numbers: early stops, quarantined images, other measures."""

from collections.abc import Sequence

import pyarrow.compute as pc

from s3ta_platform.results import TrialResult

NAMED = 5
"""So many quarantined images are named."""


def remarks(trials: Sequence[TrialResult]) -> list[str]:
    """Sentences for every output of a sweep."""
    found = [text for trial in trials for text in (_stopped(trial), _quarantined(trial)) if text]
    return [*found, *_until_success(trials), *_agreement(trials)]


def agreement(trial: TrialResult) -> float | None:
    """In how many readings the copy that led the attack answers as the model itself does."""
    rows = trial.rows.filter(pc.equal(trial.rows["quarantined"], ""))
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
    if not any("_until_success_" in attack for attack in attacks):
        return []
    return [
        "Until success: an image is left alone once the attack's own goal is met, so the number "
        "says what had happened at any step up to the reading."
    ]


def _agreement(trials: Sequence[TrialResult]) -> list[str]:
    shares = [share for share in map(agreement, trials) if share is not None]
    if not shares:
        return []
    return [
        "Every answer is the model's own, in float32; the faster copy that led the attack agreed "
        f"in {100 * min(shares):.2f} % of readings or more."
    ]
