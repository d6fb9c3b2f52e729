"""What a sweep leaves in MLflow. Everything is read from the storage, so it can be said again.

Robust accuracy is a series whose step is the number of attack steps: overlaying runs in MLflow's
compare view is then the paper's Figure 3, and attack success its Figure 5.
"""

from pathlib import Path
from typing import Any

from s3ta.settings import Objective, TrainSettings
from s3ta_platform.asha import rung_points
from s3ta_platform.collect import collect_trial
from s3ta_platform.measures import accuracies
from s3ta_platform.plan import Plan, TrialPlan
from s3ta_platform.record import content_key, plain
from s3ta_platform.tracking import Point, RunId, Status, Tracker
from s3ta_platform.trials import checkpoint_references, read_history

TRAINING_SERIES = ("loss", "adversarial_top1", "learning_rate", "stage")


class Publisher:
    """Writes the runs of one sweep; every method may be called again and adds nothing twice."""

    def __init__(self, tracker: Tracker, plan: Plan) -> None:
        self.tracker, self.plan, self.storage = tracker, plan, plan.storage
        name = plan.experiment.name
        # Two results roots may use one tracking store: their sweeps of one name are two.
        self.sweep: RunId = tracker.sweep_run(
            name, {"s3ta.sweep_key": content_key(name=name, root=self.storage.root), "sweep": name}
        )
        self.run_ids: dict[str, RunId] = {}

    def start_trial(self, trial: TrialPlan) -> None:
        """The trial's one run: made, or found again."""
        self.run_ids[trial.key] = self.tracker.trial_run(
            self.storage,
            trial.key,
            parent=self.sweep,
            name=trial.name,
            tags={"sweep": self.plan.experiment.name, **_tags(trial), **self._ending(trial)},
            params=_params(trial),
        )

    def training(self, trial: TrialPlan) -> None:
        """The training curve up to the last checkpoint, with the times of its points.

        Checkpoints themselves are stored once, in the results; the run refers to them.
        """
        points = [
            Point(f"train/{name}", point[name], int(point["step"]), int(point["time"] * 1000))
            for point in read_history(self.storage, trial.key)
            for name in TRAINING_SERIES
            if name in point
        ]
        points += rung_points(self.storage, trial)
        self.tracker.log_series(self.run_ids[trial.key], points)
        if references := checkpoint_references(self.storage, trial.key):
            self.tracker.log_dict(self.run_ids[trial.key], references, "checkpoints.json")

    def evaluation(self, trial: TrialPlan) -> None:
        """Accuracies, if every shard is there."""
        result = collect_trial(self.storage, trial, None)
        if result is not None:
            points, scalars = accuracies(result)
            self.tracker.log_series(self.run_ids[trial.key], points)
            self.tracker.log_table_scalars(self.run_ids[trial.key], scalars)

    def _ending(self, trial: TrialPlan) -> dict[str, str]:
        """A tag that says of a trial whether successive halving has stopped it."""
        if trial.experiment.sweep.halving is None:
            return {}
        stopped = trial.stopped(self.storage)
        return {"stopped_early": stopped.words if stopped else "no"}

    def finish_trial(self, trial: TrialPlan, *, failed: bool) -> None:
        """Everything there is, and the true status: a trial that was stopped early is finished."""
        if trial.stopped(self.storage) is not None:
            self.start_trial(trial)  # brings its tags up to date
        self.training(trial)
        if not failed:
            self.evaluation(trial)
        run_id = self.run_ids[trial.key]
        self.tracker.log_dict(run_id, plain(trial.experiment), "config.yaml")
        self.tracker.finish(run_id, "FAILED" if failed else "FINISHED")

    def verdict(self, trial: TrialPlan, verdict: dict[str, Any]) -> None:
        """On gradient masking."""
        run_id = self.run_ids[trial.key]
        self.tracker.log_dict(run_id, verdict, "masking.json")
        gates = [c for c in verdict["checks"] if c["value"] is not None]
        self.tracker.log_table_scalars(run_id, {f"masking/{c['key']}": c["value"] for c in gates})

    def finish(self, report: Path | None, files: list[Path], status: Status) -> None:
        """The sweep's own run: the report, and the files of its folders."""
        if report is not None:
            self.tracker.log_artifact(self.sweep, report)
        for file in files:
            self.tracker.log_artifact(self.sweep, file, file.parent.name)
        self.tracker.finish(self.sweep, status)


def _tags(trial: TrialPlan) -> dict[str, str]:
    e = trial.experiment
    tags = {"model": trial.name, "config_key": trial.key}
    if trial.ready is None:
        tags["train_objective"] = e.train.objective.name
        tags["train_pgd_steps"] = str(_attack_steps(e.train))
    if e.model.attention is not None:
        tags["unroll"] = str(e.model.unroll)
    return tags


def _attack_steps(train: TrainSettings) -> int:
    return 0 if train.objective is Objective.plain else train.attack.steps


def _params(trial: TrialPlan) -> dict[str, object]:
    e = trial.experiment
    if trial.ready is not None:
        return {"model": trial.name, "factory": e.model.factory}
    return {
        "model": trial.name,
        "unroll": e.model.unroll,
        "train_objective": e.train.objective.name,
        "train_pgd_steps": _attack_steps(e.train),
        "train_epsilon_255": e.train.attack.epsilon_255,
        "epochs": e.train.epochs,
        "batch": e.train.batch,
        "learning_rate": e.train.learning_rate,
        "seed": e.train.seed,
    }
