"""The trials of an experiment as work to be forecast: settings, numbers of images and costs."""

from dataclasses import dataclass

from s3ta_platform.compose import Composed
from s3ta_platform.costs import TrialCost, trial_cost
from s3ta_platform.plan import Plan, TrialPlan
from s3ta_platform.schema import Experiment
from s3ta_platform.trial_names import trial_names


@dataclass(frozen=True, kw_only=True)
class TrialWork:
    """One trial of our own models, and how much it is."""

    name: str
    experiment: Experiment
    size: int
    """Side of its images in pixels."""
    classes: int
    train_images: int
    test_images: int
    cost: TrialCost


def planned_work(plan: Plan, trial: TrialPlan) -> TrialWork | None:
    """None for a model of one's own, whose cost only running it would tell."""
    if trial.ready is not None:
        return None
    return _work(
        trial.name,
        trial.experiment,
        size=trial.image_size,
        classes=len(plan.class_names),
        images=(trial.train_images, len(trial.test_ids)),
    )


def declared_work(composed: Composed) -> list[TrialWork] | None:
    """From the numbers that the file declares; None where it does not for every trial."""
    found = []
    for trial, name in zip(composed.trials, trial_names(composed.trials), strict=True):
        e, d = trial.experiment, trial.experiment.data
        train, test = d.declared_train_images, d.declared_test_images
        if e.model.factory is not None or None in (train, test, d.image_size, d.classes):
            return None
        assert train and test and d.image_size and d.classes  # noqa: PT018
        images = (d.train_images or train, min(e.evaluate.images or test, test))
        found.append(_work(name, e, size=d.image_size, classes=d.classes, images=images))
    return found


def _work(
    name: str, e: Experiment, *, size: int, classes: int, images: tuple[int, int]
) -> TrialWork:
    train_images, test_images = images
    return TrialWork(
        name=name,
        experiment=e,
        size=size,
        classes=classes,
        train_images=train_images,
        test_images=test_images,
        cost=trial_cost(
            e.model,
            e.train,
            e.evaluate,
            size=size,
            classes=classes,
            train_images=train_images,
            test_images=test_images,
        ),
    )
