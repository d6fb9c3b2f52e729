"""A piece of an analysis, and the content key that names it. Imports no torch.

A piece is one analysis of a few images. Like a shard it is named by a digest of everything that
decides what it finds, so a stored piece is never computed again, whoever asks for it.
"""

from dataclasses import dataclass
from typing import Any

from s3ta.trajectory import Trajectory
from s3ta_platform.jobs import EvaluateJob
from s3ta_platform.schema_analyze import Analysis


@dataclass(frozen=True, kw_only=True)
class LandscapeTask:
    """Two losses on a plane around each image."""

    points: int
    reach: float


@dataclass(frozen=True, kw_only=True)
class MapsTask:
    """How far maps move, and what is answered with other ones."""

    object_above: float | None


@dataclass(frozen=True, kw_only=True)
class NaturalTask:
    """Answers and confidences on images as they are."""

    digest: str
    """Names the content of the images' files."""
    classes: tuple[int, ...]


Task = LandscapeTask | MapsTask | NaturalTask


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of an analysis that one worker does at a time."""

    key: str
    analysis: Analysis
    task: Task
    runs: tuple[Trajectory, ...]
    """The attacks that it rests on."""
    image_ids: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"analyses/{self.key}.parquet"

    def __str__(self) -> str:
        return (
            f"piece {self.key}: {self.analysis.name} of {len(self.image_ids)} images from id "
            f"{self.image_ids[0]}"
        )


def piece_parts(
    job: EvaluateJob,
    analysis: Analysis,
    task: Task,
    runs: tuple[Trajectory, ...],
    image_ids: tuple[int, ...],
) -> dict[str, Any]:
    """All that decides what a piece finds."""
    parts = {**job.parts(image_ids), "analysis": analysis, "task": task, "runs": runs}
    if isinstance(task, NaturalTask):
        parts["images"] = {"digest": task.digest, "image_size": job.data.image_size}
    return parts
