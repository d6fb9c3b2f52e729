"""What a run would do: trials with their keys, shards, and what is done already. Starts nothing.

A run executes exactly its plan. Imports no torch unless a device other than the CPU is asked for,
or a model of one's own, which has to be built to be known.
"""

from dataclasses import dataclass, field
from typing import Any

from s3ta.errors import UserError
from s3ta_platform.analysis_plan import check_analyses, missing_analyses, plan_analyses
from s3ta_platform.compose import Composed, Trial
from s3ta_platform.devices import device_class, device_of
from s3ta_platform.jobs import EvaluateJob, Ids, SourceModel, TrainJob
from s3ta_platform.legs import Leg, legs_of
from s3ta_platform.places import tracking_address
from s3ta_platform.plan_data import ExperimentData
from s3ta_platform.plan_model import plan_model
from s3ta_platform.record import content_key, plain
from s3ta_platform.roles import check_roles
from s3ta_platform.schema import Experiment
from s3ta_platform.shards import evaluation_ids, plan_portraits, plan_probes, plan_shards
from s3ta_platform.sources import with_sources
from s3ta_platform.storage import Storage, open_storage
from s3ta_platform.stored_shards import enough_images
from s3ta_platform.tracking_ui import absolute
from s3ta_platform.trial_names import trial_names
from s3ta_platform.trials import (
    Stopped,
    Trained,
    checkpoint_steps,
    read_stopped,
    read_trained,
    verify_checkpoint,
)


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """One trial: its settings and its two jobs, or one if its model needs no training."""

    key: str
    name: str
    """What a reader calls it: unique within the sweep."""
    point: dict[str, Any]
    experiment: Experiment
    train: TrainJob
    steps: int
    """Updates of the whole training."""
    test_ids: Ids
    test_digest: str
    device_class: str
    image_size: int
    """Side of the test images in pixels."""
    train_images: int
    """0 for a model of one's own."""
    parts: dict[str, Any] = field(default_factory=dict)
    """All that the key is a digest of."""
    ready: Trained | None = None
    """A model of one's own, which is not trained here."""
    sources: tuple[SourceModel, ...] = ()
    """The models that its transfer attacks name by their digests."""

    @property
    def epoch_steps(self) -> int:
        return self.steps // self.experiment.train.epochs

    @property
    def legs(self) -> tuple[Leg, ...]:
        """Of the training; none for a model of one's own."""
        e = self.experiment
        return () if self.ready else legs_of(e.train, e.cluster, e.sweep.halving)

    @property
    def asha_key(self) -> str:
        """Names what successive halving decides by: a trial that it stops is stopped there only."""
        return content_key(sweep=self.experiment.name, asha=self.experiment.sweep.halving)

    def stopped(self, storage: Storage) -> Stopped | None:
        """Whether successive halving has ended this trial before its last epoch."""
        if self.experiment.sweep.halving is None or self.trained(storage) is not None:
            return None
        return read_stopped(storage, self.key, self.asha_key)

    def trained(self, storage: Storage) -> Trained | None:
        """The model to be attacked, or None as long as it is not trained."""
        return self.ready or read_trained(storage, self.key)

    @property
    def shown_settings(self) -> dict[str, Any]:
        """The settings that a report lists: only those that played a part."""
        e = self.experiment
        shown = {"model": plain(e.model), "data": plain(e.data), "evaluate": plain(e.evaluate)}
        if self.ready is None:
            return {**shown, "train": plain(e.train)}
        own = ("factory", "input_range", "mean", "std")
        return {**shown, "model": {name: shown["model"][name] for name in own}}

    def evaluation(self, trained: Trained) -> EvaluateJob:
        """The evaluation of this trial's model, once it is trained."""
        return EvaluateJob(
            trial=self.key,
            name=self.name,
            model=self.train.model,
            model_digest=trained.model_digest,
            checkpoint_step=trained.step,
            data=self.train.data,
            test_digest=self.test_digest,
            classes=self.train.classes,
            evaluate=self.experiment.evaluate,
            analyze=self.experiment.analyze,
            root=self.train.root,
            threads=self.train.threads,
            device=self.train.device,
            device_class=self.device_class,
            cluster=self.experiment.cluster,
            sources=self.sources,
        )


_UNKNOWN = Trained(step=0, model_digest="", parameters=0)
"""In place of a model that is not trained yet: it has as many shards, under other keys."""


@dataclass(frozen=True, kw_only=True)
class TrialState:
    """How much of a trial is stored."""

    trained: Trained | None
    step: int
    """Of the last checkpoint."""
    shards: int
    shards_done: int
    """0 as long as the model is not trained: the model's digest is part of a shard's key."""
    gallery_done: bool
    probes: int = 0
    """Looks at gradients, for the verdict."""
    probes_done: int = 0
    pieces: int = 0
    """Of analyses."""
    pieces_done: int = 0
    stopped: Stopped | None = None
    """By successive halving: nothing more is to be done."""

    @property
    def over(self) -> bool:
        """Nothing is left to do."""
        return self.complete or self.stopped is not None

    @property
    def complete(self) -> bool:
        attacked = self.shards == self.shards_done and self.gallery_done
        looked_at = (self.probes, self.pieces) == (self.probes_done, self.pieces_done)
        return self.trained is not None and attacked and looked_at


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One experiment file, checked against its data."""

    experiment: Experiment
    class_names: tuple[str, ...]
    trials: list[TrialPlan]

    @property
    def storage(self) -> Storage:
        return open_storage(self.experiment.results)


def make_plan(composed: Composed) -> Plan:
    """Check everything that can be checked beforehand; UserError for what is wrong."""
    trials: dict[str, TrialPlan] = {}
    data = ExperimentData()
    for trial, name in zip(composed.trials, trial_names(composed.trials), strict=True):
        planned = _plan_trial(trial, name, data)
        trials.setdefault(planned.key, planned)
    first = composed.trials[0].experiment
    plan = Plan(
        experiment=composed.experiment,
        class_names=data.manifest(first, first.data.test).class_names,
        trials=list(trials.values()),
    )
    check_analyses([trial.evaluation(trial.ready or _UNKNOWN) for trial in plan.trials])
    return plan


def trial_state(storage: Storage, plan: TrialPlan) -> TrialState:
    """What the storage holds of a trial."""
    trained = plan.trained(storage)
    job = plan.evaluation(trained or _UNKNOWN)
    shards, portraits = plan_shards(job, plan.test_ids), plan_portraits(job, plan.test_ids)
    pieces, probes = len(plan_analyses(job, plan.test_ids)), plan_probes(job, plan.test_ids)
    if trained is None:
        step = max(checkpoint_steps(storage, plan.key), default=0)
        return TrialState(
            trained=None,
            step=step,
            shards=len(shards),
            shards_done=0,
            gallery_done=False,
            probes=len(probes),
            pieces=pieces,
            stopped=plan.stopped(storage),
        )
    stored = set(storage.list("evaluations/"))
    enough = enough_images(job, storage, plan.test_ids, shards, stored)
    if enough is not None:
        shards = [s for s in shards if s.first < enough]
    return TrialState(
        trained=trained,
        step=trained.step,
        shards=len(shards),
        shards_done=sum(s.name in stored for s in shards),
        gallery_done=portraits is None or storage.exists(portraits.name),
        probes=len(probes),
        probes_done=len({p.name for p in probes} & {*storage.list("probes/")}),
        pieces=pieces,
        pieces_done=pieces - len(missing_analyses(storage, job, plan.test_ids)),
    )


def check_checkpoints(plan: Plan) -> None:
    """UserError if work still to be done would start from a damaged or foreign checkpoint."""
    for trial in plan.trials:
        state = trial_state(plan.storage, trial)
        if state.step and not state.over:
            verify_checkpoint(plan.storage, trial.key, state.step)


def _plan_trial(trial: Trial, name: str, data: ExperimentData) -> TrialPlan:
    e = trial.experiment
    if not e.evaluate.attacks:
        raise UserError(
            "evaluate.attacks is empty: a trial is judged by at least one attack. "
            "Add '- attack@evaluate.attacks.pgd: pgd_targeted' to the defaults list."
        )
    device = device_of(e.cluster)
    _check_tracking(e)
    model, test = plan_model(e, data), data.manifest(e, e.data.test)
    shape_CHW = data.images(e, e.data.test).shape_CHW
    e, sources = with_sources(e, shape_CHW, len(test.class_names))
    check_roles(e)
    if any(source.digest == model.digest for source in sources):
        raise UserError(
            "attack.sources (masking.sources) names the attacked model itself: a transfer comes "
            "from another one. Name others."
        )
    return TrialPlan(
        key=model.key,
        name=name,
        point=trial.point,
        experiment=e,
        train=TrainJob(
            key=model.key,
            model=e.model,
            train=e.train,
            data=e.data,
            classes=len(test.class_names),
            root=open_storage(e.results).root,
            threads=e.cluster.threads,
            device=device,
            cluster=e.cluster,
        ),
        steps=model.steps,
        parts=model.parts,
        test_ids=evaluation_ids(data.images(e, e.data.test).ids_N, e.evaluate),
        test_digest=test.digest,
        device_class=device_class(device, e.cluster.threads),
        image_size=shape_CHW[1],
        train_images=model.train_images,
        ready=model.ready,
        sources=sources,
    )


def _check_tracking(e: Experiment) -> None:
    if e.tracking.store != "none":
        absolute(tracking_address(e.tracking.store, e.results))
