"""What a sweep spends, in device hours: refused where it can't suffice, ended when it is spent.

Counted is the time of the workers at work, added up, as far as the driver hears of it: from a
trial's first news of training or attacks to its last. Earlier runs of the same sweep below the same
results root count, too. Without a budget nothing is counted.
"""

import json
import math
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from s3ta.errors import UserError
from s3ta_platform.attack_names import any_step
from s3ta_platform.events import Event, Phase
from s3ta_platform.forecast import forecast
from s3ta_platform.hardware import parse_hardware
from s3ta_platform.packing import Node, room
from s3ta_platform.plan import Plan, TrialPlan, trial_state
from s3ta_platform.schema_cluster import ClusterSettings, Executor
from s3ta_platform.storage import NotStored, Storage
from s3ta_platform.work import planned_work

HOUR = 3600.0
STOP_MINIMUM = 1000
"""Images without which no evaluation ends early."""


@dataclass
class Meter:
    """Adds up the seconds of workers. Pure: the times are given."""

    most: float = math.inf
    """Devices that there are: trials together use no more."""
    spent_s: float = 0.0
    at_work: dict[str, float] = field(default_factory=dict)
    """Devices of each trial that was heard of last."""
    last: float = 0.0

    def heard(self, trial: str, devices: float, now: float) -> None:
        """From now on so many devices are at work on a trial; 0: none."""
        self.spent_s += (now - self.last) * min(self.most, sum(self.at_work.values()))
        self.last = now
        self.at_work[trial] = devices


class Budget:
    """The budget of a run. May be told of events by any thread."""

    def __init__(
        self, plan: Plan, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        e = plan.experiment
        self.limit_s = math.inf if e.budget.gpu_hours is None else e.budget.gpu_hours * HOUR
        self.earlier_s = 0.0
        self.exceeded = False
        self._storage, self._say, self._clock = plan.storage, say, clock
        self._prefix, self._id, self._notes = f"spent/{e.name}/", uuid.uuid4().hex[:12], 0
        if self.limit_s < math.inf:
            self.earlier_s = spent_before(self._storage, self._prefix)
        self._trials = {trial.key: trial for trial in plan.trials}
        self._meter = Meter(most=_devices(e.cluster), last=clock())
        self._changing = threading.Lock()

    @property
    def spent_s(self) -> float:
        """Of this run and those before."""
        return self.earlier_s + self._meter.spent_s

    def heard(self, event: Event) -> None:
        """Count; where the budget is spent, end the run as Ctrl-C would."""
        if self.limit_s == math.inf:
            return
        with self._changing:
            over = event.done >= event.total
            devices = 0.0 if over else devices_of(self._trials[event.trial], event.phase)
            self._meter.heard(event.trial, devices, self._clock())
            if event.durable:
                self.note()
            if self.spent_s < self.limit_s or self.exceeded:
                return
            self.exceeded = True
        self._say(
            f"The budget of {self.limit_s / HOUR:g} device hours is spent "
            f"({self.spent_s / HOUR:.3g}): the run ends here. Raise budget.gpu_hours (or "
            "--max-gpu-hours) and start it again: it goes on from what is stored."
        )
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)

    def note(self) -> None:
        """Store what this run has spent so far, for those that come after."""
        if self.limit_s < math.inf:
            self._notes += 1
            name = f"{self._prefix}{self._id}-{self._notes:06d}.json"
            self._storage.put_new(name, json.dumps({"seconds": self._meter.spent_s}).encode())


def spent_before(storage: Storage, prefix: str) -> float:
    """Seconds that earlier runs have noted: of each its last note. A damaged one counts nothing."""
    last = {name.rpartition("-")[0]: name for name in storage.list(prefix)}
    total = 0.0
    for name in last.values():
        try:
            total += float(json.loads(storage.get(name))["seconds"])
        except (ValueError, KeyError, TypeError, NotStored):
            continue
    return total


def devices_of(trial: TrialPlan, phase: Phase) -> float:
    """GPUs that work on a trial in this phase; workers, where they have none."""
    c = trial.experiment.cluster
    each = c.gpus or 1.0
    if c.executor is Executor.inline:
        return each
    if phase is Phase.train:
        return each * max((leg.workers for leg in trial.legs), default=c.train_workers)
    return each * c.evaluate_workers


def _devices(c: ClusterSettings) -> float:
    """Of this machine; of a cluster that is joined only Ray knows."""
    if c.executor is Executor.inline:
        return c.gpus or 1.0
    if c.address != "local" or c.gpus:
        return math.inf
    return float(room([Node(c.cpus or os.cpu_count() or 1)], c))


def require_budget(plan: Plan, todo: Sequence[TrialPlan]) -> None:
    """UserError if the trials need more than is left, even in the best case."""
    budget = plan.experiment.budget
    if budget.gpu_hours is None:
        return
    spent = spent_before(plan.storage, f"spent/{plan.experiment.name}/") / HOUR
    needed, hardware = least_hours(plan, todo), _hardware(plan)
    if todo and spent + needed > budget.gpu_hours:
        raise UserError(
            f"budget.gpu_hours is {budget.gpu_hours:g}, but {plan.experiment.name} needs at least "
            f"{needed:.3g} device hours (on {hardware}) and has spent {spent:.3g}: nothing was "
            "started. Raise the budget, do less (train.epochs, evaluate.images), or name faster "
            "hardware in budget.hardware. `s3ta plan FILE --hardware NAME` shows the numbers."
        )


def least_hours(plan: Plan, todo: Sequence[TrialPlan]) -> float:
    """Device hours that what is left takes in the best case."""
    hardware, total = parse_hardware(_hardware(plan)), 0.0
    for trial in todo:
        work = planned_work(plan, trial)
        if work is None:
            continue
        found, state = forecast([work], hardware).trials[0], trial_state(plan.storage, trial)
        e = trial.experiment
        left = 0.0 if state.trained else 1 - state.step / trial.steps
        if e.sweep.halving is not None:  # it may end at the first rung, and not be attacked
            least = e.sweep.halving.grace_epochs / e.train.epochs
            total += found.training.low * max(0.0, left - (1 - least))
            continue
        total += found.training.low * left
        if not any(any_step(attack.name) for attack in e.evaluate.attacks.values()):
            to_do = 1 - state.shards_done / state.shards
            if e.evaluate.stop_when.halfwidth is not None:
                to_do = min(to_do, STOP_MINIMUM / work.test_images)
            total += found.attacks.low * to_do
    threads = 1 if plan.experiment.cluster.gpus else plan.experiment.cluster.threads
    return total / threads / HOUR


def _hardware(plan: Plan) -> str:
    e = plan.experiment
    return e.budget.hardware or ("h100" if e.cluster.gpus else "cpu")
