"""What a run would do: trials with their keys, shards, and what is done already. Starts nothing.

A run executes exactly its plan. Imports no torch unless a device other than the CPU is asked for.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from s3ta.errors import UserError
from s3ta.trajectory import trajectories
from s3ta_platform.compose import Composed, Trial
from s3ta_platform.data import Manifest, read_manifest
from s3ta_platform.devices import device_class, resolve_device
from s3ta_platform.jobs import EvaluateJob, Ids, TrainJob, open_images
from s3ta_platform.places import tracking_address
from s3ta_platform.record import trial_key
from s3ta_platform.schema import ClusterSettings, Experiment
from s3ta_platform.shards import evaluation_ids, plan_portraits, plan_shards
from s3ta_platform.storage import Storage, open_storage
from s3ta_platform.tracking_ui import absolute
from s3ta_platform.trials import (
    Trained,
    checkpoint_steps,
    read_trained,
    verify_checkpoint,
)


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """One trial: its settings and its two jobs."""

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

    def evaluation(self, trained: Trained) -> EvaluateJob:
        """The evaluation of this trial's model, once it is trained."""
        return EvaluateJob(
            trial=self.key,
            model=self.train.model,
            model_digest=trained.model_digest,
            checkpoint_step=trained.step,
            data=self.train.data,
            test_digest=self.test_digest,
            classes=self.train.classes,
            evaluate=self.experiment.evaluate,
            root=self.train.root,
            threads=self.train.threads,
            device=self.train.device,
            device_class=self.device_class,
        )


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

    @property
    def complete(self) -> bool:
        return self.trained is not None and self.shards == self.shards_done and self.gallery_done


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
    names = _names(composed.trials)
    manifests: dict[Any, Manifest] = {}
    ids: dict[Any, Ids] = {}
    for trial, name in zip(composed.trials, names, strict=True):
        planned = _plan_trial(trial, name, manifests, ids)
        trials.setdefault(planned.key, planned)
    first = composed.trials[0].experiment.data
    return Plan(
        experiment=composed.experiment,
        class_names=manifests[first.test, first.classes].class_names,
        trials=list(trials.values()),
    )


def require_room(settings: ClusterSettings, cpus: int) -> None:
    """UserError if one trial's training workers can never fit into so many CPUs."""
    if settings.train_workers * settings.threads > cpus:
        raise UserError(
            f"cluster.train_workers is {settings.train_workers}, each with {settings.threads} "
            f"thread(s), but the cluster has {cpus} CPU(s): a trial would wait for ever. "
            "Lower cluster.train_workers or cluster.threads, or use a larger cluster."
        )


def trial_state(storage: Storage, plan: TrialPlan) -> TrialState:
    """What the storage holds of a trial."""
    trained = read_trained(storage, plan.key)
    steps = checkpoint_steps(storage, plan.key)
    if trained is None:
        pieces = -(-len(plan.test_ids) // plan.experiment.evaluate.shard_images)
        return TrialState(
            trained=None,
            step=max(steps, default=0),
            shards=pieces * _trajectory_count(plan),
            shards_done=0,
            gallery_done=False,
        )
    job = plan.evaluation(trained)
    shards, portraits = plan_shards(job, plan.test_ids), plan_portraits(job, plan.test_ids)
    stored = set(storage.list("evaluations/"))
    return TrialState(
        trained=trained,
        step=trained.step,
        shards=len(shards),
        shards_done=sum(s.name in stored for s in shards),
        gallery_done=portraits is None or storage.exists(portraits.name),
    )


def check_checkpoints(plan: Plan) -> None:
    """UserError if work still to be done would start from a damaged or foreign checkpoint."""
    for trial in plan.trials:
        state = trial_state(plan.storage, trial)
        if state.step and not state.complete:
            verify_checkpoint(plan.storage, trial.key, state.step)


def _trajectory_count(plan: TrialPlan) -> int:
    return sum(len(trajectories(a)) for a in plan.experiment.evaluate.attacks.values())


def _plan_trial(
    trial: Trial, name: str, manifests: dict[Any, Manifest], ids: dict[Any, Ids]
) -> TrialPlan:
    e = trial.experiment
    if not e.evaluate.attacks:
        raise UserError(
            "evaluate.attacks is empty: a trial is judged by at least one attack. "
            "Add '- attack@evaluate.attacks.pgd: pgd_targeted' to the defaults list."
        )
    device = resolve_device(e.cluster.device)
    for location in (e.data.train, e.data.test):
        if (location, e.data.classes) not in manifests:
            manifests[location, e.data.classes] = read_manifest(location, e.data.classes)
    train, test = (manifests[at, e.data.classes] for at in (e.data.train, e.data.test))
    _check_classes(e, train, test)
    steps = _check_images(e, train, test)
    _check_tracking(e)
    _ids(e, e.data.train, ids)  # opened here, so that no worker finds them unusable
    test_ids = _ids(e, e.data.test, ids)
    key = trial_key(e.model, e.train, e.data, train.digest)
    return TrialPlan(
        key=key,
        name=name,
        point=trial.point,
        experiment=e,
        train=TrainJob(
            key=key,
            model=e.model,
            train=e.train,
            data=e.data,
            classes=len(train.class_names),
            root=open_storage(e.results).root,
            threads=e.cluster.threads,
            device=device,
        ),
        steps=steps,
        test_ids=evaluation_ids(test_ids, e.evaluate),
        test_digest=test.digest,
        device_class=device_class(device, e.cluster.threads),
    )


def _ids(e: Experiment, location: str, known: dict[Any, Ids]) -> Ids:
    seen = (location, e.data.image_size, e.model.channels, e.data.classes)
    if seen not in known:
        known[seen] = open_images(location, e.data, e.model).ids_N
    return known[seen]


def _check_classes(e: Experiment, train: Manifest, test: Manifest) -> None:
    if train.class_names != test.class_names:
        raise UserError(
            f"{e.data.train} has {len(train.class_names)} classes and {e.data.test} has "
            f"{len(test.class_names)}: both must name the same ones, in the same order. "
            "Use the two parts of one data set."
        )


def _check_images(e: Experiment, train: Manifest, test: Manifest) -> int:
    """Steps of the training; UserError where the data set has fewer images than asked for."""
    images = e.data.train_images or train.images
    for name, asked, there, location in (
        ("data.train_images", images, train.images, e.data.train),
        ("evaluate.images", e.evaluate.images or test.images, test.images, e.data.test),
    ):
        if asked > there:
            raise UserError(
                f"{name} is {asked}, but {location} has {there} images: ask for at most these."
            )
    per_epoch = e.train.steps_per_epoch(images)
    if per_epoch == 0:
        raise UserError(
            f"train.batch is {e.train.batch}, but there are only {images} training images: a batch "
            "must fit into them. Lower train.batch or raise data.train_images."
        )
    return per_epoch * e.train.epochs


def _check_tracking(e: Experiment) -> None:
    if e.tracking.store != "none":
        absolute(tracking_address(e.tracking.store, e.results))


def _names(trials: list[Trial]) -> list[str]:
    """The models' names; where two agree, with the settings that tell them apart."""
    plain = [t.experiment.model.name for t in trials]
    varying = {
        key
        for t in trials
        for key in t.point
        if len({repr(other.point.get(key)) for other in trials}) > 1
    }
    short = _told_apart(trials, plain, varying - {"model", "model.unroll"})
    return short if len(set(short)) == len(short) else _told_apart(trials, plain, varying)


def _told_apart(trials: list[Trial], plain: list[str], by: set[str]) -> list[str]:
    counts = Counter(plain)

    def full(trial: Trial, name: str) -> str:
        parts = [f"{k.removeprefix('train.')}={trial.point[k]}" for k in trial.point if k in by]
        return ", ".join([name, *parts])

    return [full(t, n) if counts[n] > 1 else n for t, n in zip(trials, plain, strict=True)]
