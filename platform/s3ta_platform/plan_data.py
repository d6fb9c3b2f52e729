"""The data of an experiment as a plan sees it, and whether there is what is asked for."""

from typing import Any

from s3ta.errors import UserError
from s3ta.settings import Through
from s3ta.trajectory import require_classes, trajectories
from s3ta_platform.data import Manifest, ParquetImages, read_manifest
from s3ta_platform.jobs import open_images
from s3ta_platform.schema import Experiment


class ExperimentData:
    """Data sets by location, each described and opened once."""

    def __init__(self) -> None:
        self._manifests: dict[Any, Manifest] = {}
        self._images: dict[Any, ParquetImages] = {}

    def manifest(self, e: Experiment, location: str) -> Manifest:
        seen = (location, e.data.classes)
        if seen not in self._manifests:
            self._manifests[seen] = read_manifest(*seen)
        return self._manifests[seen]

    def images(self, e: Experiment, location: str) -> ParquetImages:
        seen = (location, e.data.image_size, e.model.channels, e.data.classes)
        if seen not in self._images:
            self._images[seen] = open_images(location, e.data, e.model)
        return self._images[seen]


def check_classes(e: Experiment, train: Manifest, test: Manifest) -> None:
    if train.class_names != test.class_names:
        raise UserError(
            f"{e.data.train} has {len(train.class_names)} classes and {e.data.test} has "
            f"{len(test.class_names)}: both must name the same ones, in the same order. "
            "Use the two parts of one data set."
        )


def check_attacked(e: Experiment, test: Manifest) -> None:
    _require_there("evaluate.images", e.evaluate.images, test, e.data.test)
    for attack in e.evaluate.attacks.values():
        for trajectory in trajectories(attack):
            require_classes(trajectory, len(test.class_names))
        glances = attack.through is not Through.answer or attack.unroll is not None
        if glances and e.model.attention is None:
            raise UserError(
                f"evaluate.attacks has {attack.name}, which goes through a recurrent model's "
                "glances, and the model takes none: it must be an S3TA. Leave out that attack, or "
                "give it through: answer and no unroll."
            )


def training_steps(e: Experiment, train: Manifest) -> int:
    """UserError where the data set has fewer images than asked for, or less than a batch."""
    _require_there("data.train_images", e.data.train_images, train, e.data.train)
    images = e.data.train_images or train.images
    per_epoch = e.train.steps_per_epoch(images)
    if per_epoch == 0:
        raise UserError(
            f"train.batch is {e.train.batch}, but there are only {images} training images: a batch "
            "must fit into them. Lower train.batch or raise data.train_images."
        )
    return per_epoch * e.train.epochs


def _require_there(name: str, asked: int | None, there: Manifest, location: str) -> None:
    if asked is not None and asked > there.images:
        raise UserError(
            f"{name} is {asked}, but {location} has {there.images} images: ask for at most these."
        )
