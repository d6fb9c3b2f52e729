"""Where a trial's model comes from: training, a checkpoint, or a factory; and what names it.

Imports no torch, unless the model is of a factory: it has to be built to be known.
"""

from dataclasses import dataclass
from typing import Any

from s3ta.errors import UserError
from s3ta_platform.plan_data import ExperimentData, check_attacked, check_classes, training_steps
from s3ta_platform.record import RESULT_VERSION, content_key, trial_parts
from s3ta_platform.restored import trained_model
from s3ta_platform.schema import Experiment
from s3ta_platform.trials import Trained


@dataclass(frozen=True)
class PlannedModel:
    """Where a trial's model comes from."""

    key: str
    """Of the trial."""
    steps: int
    ready: Trained | None
    train_images: int
    parts: dict[str, Any]
    digest: str = ""
    """Where it is trained already."""


def plan_model(e: Experiment, data: ExperimentData) -> PlannedModel:
    if e.checkpoint:
        return _checkpoint(e, data)
    return _training(e, data) if e.model.factory is None else _own_model(e, data)


def _checkpoint(e: Experiment, data: ExperimentData) -> PlannedModel:
    """A model that is trained already; neither its training nor its training images are needed."""
    check_attacked(e, data.manifest(e, e.data.test))
    trained = trained_model(e.checkpoint, e.results).trained
    return PlannedModel(e.checkpoint, trained.step, None, 0, {}, trained.model_digest)


def _training(e: Experiment, data: ExperimentData) -> PlannedModel:
    if not e.data.train:
        raise UserError(
            "data.train has no value: it must be set in the experiment file, "
            "or on the command line as data.train=VALUE."
        )
    train, test = data.manifest(e, e.data.train), data.manifest(e, e.data.test)
    check_classes(e, train, test)
    check_attacked(e, test)
    steps = training_steps(e, train)
    data.images(e, e.data.train)  # opened here, so that no worker finds them unusable
    images = e.data.train_images or train.images
    parts = trial_parts(e.model, e.train, e.data, train.digest)
    return PlannedModel(content_key(**parts), steps, None, images, parts)


def _own_model(e: Experiment, data: ExperimentData) -> PlannedModel:
    """The model is built to be named by what it is; settings of training play no part."""
    from s3ta_platform.foreign import describe

    test = data.manifest(e, e.data.test)
    check_attacked(e, test)
    shape_CHW = data.images(e, e.data.test).shape_CHW
    digest, parameters = describe(e.model, shape_CHW, len(test.class_names))
    parts = {"result_version": RESULT_VERSION, "model": digest}
    ready = Trained(step=0, model_digest=digest, parameters=parameters)
    return PlannedModel(content_key(**parts), 0, ready, 0, parts, digest)
