"""Ray Tune moves trials from leg to leg: 4 glances, then 8, then 16, each with its own workers.

A trial is paused where a leg ends: its fit has returned and given its workers back, its last
checkpoint is ours and durable, so nothing of Ray's has to be saved. Then it starts anew with the
next leg in its config. Meanwhile other trials use the CPUs. Tune decides when a leg runs and with
what; what it computes is a function of the step (s3ta/schedules.py).
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from s3ta_platform.asha import Asha
from s3ta_platform.legs import Leg
from s3ta_platform.plan import TrialPlan
from s3ta_platform.storage import Storage
from s3ta_platform.trial import to_do


class Legs(FIFOScheduler):
    """One leg after the other, and at a rung only the better trials go on.

    Trials that have not begun go before those that are paused.
    """

    def __init__(
        self, plans: Mapping[str, TrialPlan], storage: Storage, asha: Asha | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.plans, self.storage, self.asha = plans, storage, asha

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """The first leg is the one that the last checkpoint is in."""
        legs = to_do(self.plans[trial.config["key"]], self.storage)
        trial.set_config(with_leg(trial.config, legs[0] if legs else None))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """A result with `stage_done` is the end of a leg; others are the end of a trial."""
        if "stage_done" not in result:
            return TrialScheduler.CONTINUE
        plan = self.plans[trial.config["key"]]
        leg = Leg(**trial.config["leg"])
        if leg.rung and self.asha is not None and not self.asha.goes_on(plan, leg.until):
            return TrialScheduler.STOP
        following = next(other for other in plan.legs if other.until > leg.until)
        trial.set_config(with_leg(trial.config, following))
        return TrialScheduler.PAUSE


def with_leg(config: dict[str, Any], leg: Leg | None) -> dict[str, Any]:
    """A trial's config for a leg; None: it is trained, and only to be attacked."""
    return {**config, "leg": asdict(leg) if leg else None}
