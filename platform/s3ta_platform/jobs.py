"""The two jobs of a trial, as plain settings that travel to workers. Imports no torch."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from s3ta.draws import Key, Purpose
from s3ta.settings import ModelSettings, TrainSettings
from s3ta.trajectory import Trajectory
from s3ta_platform.data import ParquetImages
from s3ta_platform.record import RESULT_VERSION, content_key
from s3ta_platform.schema import DataSettings
from s3ta_platform.schema_analyze import AnalyzeSettings
from s3ta_platform.schema_cluster import ClusterSettings
from s3ta_platform.schema_evaluate import EvaluateSettings

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One model to be trained."""

    key: str
    model: ModelSettings
    train: TrainSettings
    data: DataSettings
    classes: int
    root: str
    """Of the results."""
    threads: int
    device: str
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    """How often to save, how long to wait: nothing that changes the result."""
    until_epoch: int | None = None
    """Train to the end of that many epochs, and no further; None: to the end of training."""
    workers: int | None = None
    """On Ray; None: `cluster.train_workers`."""
    record: str = ""
    """Put the model on record under this trial's name, if `until_epoch` is not the end."""


@dataclass(frozen=True, kw_only=True)
class SourceModel:
    """Another model, whose gradients lead a transfer attack."""

    name: str
    model: ModelSettings
    digest: str
    root: str
    """Of the results it is in."""
    trial: str
    """Empty for a model of a factory."""
    step: int
    """Of its checkpoint."""


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """One trained model and what it has to stand; can be pickled."""

    trial: str
    name: str = ""
    """What a reader calls the trial."""
    model: ModelSettings
    model_digest: str
    checkpoint_step: int
    checkpoints_of: str = ""
    """The trial that it is a checkpoint of, if that is another one."""
    data: DataSettings
    test_digest: str
    """Names the content of the test files."""
    classes: int
    evaluate: EvaluateSettings
    analyze: AnalyzeSettings = field(default_factory=AnalyzeSettings)
    root: str
    """Of the results."""
    threads: int
    device: str
    """Resolved: `cpu` or `cuda`."""
    device_class: str
    cluster: ClusterSettings
    sources: tuple[SourceModel, ...] = ()
    """The models that attacks name by their digests."""

    def key_parts(
        self, trajectory: Trajectory | None, image_ids: tuple[int, ...]
    ) -> dict[str, Any]:
        """All that decides the rows of this model, attacked so, on these images."""
        return {**self.parts(image_ids), "trajectory": trajectory}

    def parts(self, image_ids: tuple[int, ...]) -> dict[str, Any]:
        """What decides any result of this model on these images, but for what is done to them."""
        return {
            "result_version": RESULT_VERSION,
            "model": self.model_digest,
            "image_ids": image_ids,
            "images": {"digest": self.test_digest, "image_size": self.data.image_size},
            "seed": self.evaluate.seed,
            "tile": self.evaluate.tile,
            "engine": self.evaluate.engine,
            "device": self.device_class,
        }

    def key(self, trajectory: Trajectory, image_ids: tuple[int, ...]) -> str:
        """The content key of this piece of work."""
        return content_key(**self.key_parts(trajectory, image_ids))

    def probe_parts(self, image_ids: tuple[int, ...]) -> dict[str, Any]:
        """All that decides what a look at these images' gradients finds."""
        return {**self.key_parts(None, image_ids), "probe": self.evaluate.probe}


def open_images(
    location: str, data: DataSettings, model: ModelSettings, cache_mb: int = 256
) -> ParquetImages:
    """The images at a location, with as many channels as the model takes."""
    return ParquetImages(
        location,
        channels=3 if model.channels == 3 else 1,
        size=data.image_size,
        classes=data.classes,
        cache_bytes=cache_mb * 2**20,
    )


def training_ids(ids_N: Ids, data: DataSettings) -> Ids:
    """The images trained on: all, or the first of a permutation drawn from the subset's seed."""
    if data.train_images is None:
        return ids_N
    order = Key(data.subset_seed, Purpose.SUBSET).permutation(len(ids_N))
    chosen: Ids = ids_N[order[: data.train_images]]
    return chosen
