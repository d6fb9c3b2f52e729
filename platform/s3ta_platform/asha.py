"""Successive halving (ASHA, Li et al.): which trials end early, decided from what is stored.

At a rung, an epoch, a trial goes on if its value is among the best 1 / factor of those of the
trials that were there before. Values are read from the storage, so that a driver that starts again
knows the rungs of all trials; that a trial was stopped is stored too, and stays so.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from s3ta.errors import UserError
from s3ta_platform.collect import collect_trial
from s3ta_platform.legs import rungs_of
from s3ta_platform.measures import accuracies
from s3ta_platform.plan import TrialPlan
from s3ta_platform.rungs import needs_attack, rung_plan
from s3ta_platform.schema_sweep import AshaSettings, Best
from s3ta_platform.storage import Storage
from s3ta_platform.tracking_memory import Point
from s3ta_platform.trials import Stopped, read_history, stopped_name

log = logging.getLogger("ray.s3ta")


@dataclass(frozen=True)
class Verdict:
    """What was decided, and its numbers."""

    goes_on: bool
    cutoff: float | None
    """None for the first trial at a rung, which goes on."""
    others: int


def verdict(settings: AshaSettings, value: float, others: Iterable[float]) -> Verdict:
    """Whether a trial with this value goes on, after these other trials at the same rung.

    The cutoff is a percentile, between two values if need be, as in Ray Tune's own scheduler. A
    value that is not finite is worse than all others.
    """
    sign = 1 if settings.best is Best.max else -1
    known = [sign * other for other in others if np.isfinite(other)]
    if not known:
        return Verdict(True, None, 0)
    cutoff = float(np.percentile(known, 100 * (1 - 1 / settings.reduction_factor)))
    goes_on = bool(np.isfinite(value) and sign * value >= cutoff)
    return Verdict(goes_on, sign * cutoff, len(known))


class Asha:
    """The rungs of one sweep, as its driver knows them."""

    def __init__(self, settings: AshaSettings, storage: Storage) -> None:
        self.settings, self.storage = settings, storage
        self.values: dict[int, dict[str, float]] = {}
        """By rung and trial."""

    def recall(self, plans: Iterable[TrialPlan]) -> None:
        """Enter what earlier runs have stored, of finished and stopped trials too."""
        for plan in (p for p in plans if p.ready is None):
            for rung in rungs_of(self.settings, plan.experiment.train.epochs):
                if (value := rung_value(self.storage, plan, rung)) is not None:
                    self.values.setdefault(rung, {})[plan.key] = value

    def goes_on(self, plan: TrialPlan, rung: int) -> bool:
        """Decide, and store it if the trial ends here. One without a value goes on."""
        try:
            value = rung_value(self.storage, plan, rung)
        except UserError as error:  # a damaged file: one trial's trouble ends no sweep
            log.warning("trial %s goes on, without a value at epoch %d: %s", plan.key, rung, error)
            return True
        if value is None:
            return True
        known = self.values.setdefault(rung, {})
        found = verdict(self.settings, value, [v for key, v in known.items() if key != plan.key])
        known[plan.key] = value
        log.info(
            "trial %s, epoch %d: %s is %g, %s after %d others with a cutoff of %s",
            plan.key,
            rung,
            self.settings.metric,
            value,
            "goes on" if found.goes_on else "ends",
            found.others,
            found.cutoff,
        )
        if not found.goes_on:
            stopped = Stopped(
                epoch=rung,
                metric=self.settings.metric,
                value=value,
                cutoff=found.cutoff,
                others=found.others,
            )
            content = json.dumps(asdict(stopped)).encode()
            self.storage.put_new(stopped_name(plan.key, plan.asha_key), content)
        return found.goes_on


def rung_value(storage: Storage, plan: TrialPlan, rung: int) -> float | None:
    """What a trial had reached at a rung; None if it was not there, or not attacked there."""
    asha = plan.experiment.sweep.halving
    assert asha is not None
    group, _, name = asha.metric.partition("/")
    if group == "train":
        return _of_epoch(read_history(storage, plan.key), name, rung, plan.epoch_steps)
    result = collect_trial(storage, rung_plan(plan, rung), None)
    return None if result is None else accuracies(result)[1].get(asha.metric)


def rung_points(storage: Storage, plan: TrialPlan) -> list[Point]:
    """Robust accuracy at the rungs, over training's steps; what training tells is a series anyway.

    Its time is that of the checkpoint.
    """
    asha = plan.experiment.sweep.halving
    if asha is None or not needs_attack(asha) or plan.ready is not None:
        return []
    times = {int(point["step"]): point["time"] for point in read_history(storage, plan.key)}
    points = []
    for rung in rungs_of(asha, plan.experiment.train.epochs):
        value, step = rung_value(storage, plan, rung), rung * plan.epoch_steps
        if value is not None and step in times:
            points.append(Point(f"rung/{asha.metric}", value, step, int(times[step] * 1000)))
    return points


def _of_epoch(
    history: list[dict[str, float]], name: str, epochs: int, epoch_steps: int
) -> float | None:
    """The mean over the last of so many epochs."""
    end = epochs * epoch_steps
    if not history or history[-1]["step"] < end:
        return None
    values = [point[name] for point in history if end - epoch_steps < point["step"] <= end]
    return float(np.mean(values)) if values else None
