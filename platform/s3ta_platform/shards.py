"""What an evaluation consists of: shards with content keys. Imports no torch, so plans are quick.

A shard is one attack trajectory on a few images. Its key is a digest of everything that decides its
rows, so a stored shard is never computed again, whoever asks for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from s3ta.draws import Key, Purpose
from s3ta.tally import Tally
from s3ta.trajectory import Trajectory, trajectories
from s3ta_platform.jobs import EvaluateJob
from s3ta_platform.schema import EvaluateSettings


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A piece of an evaluation that one worker does at a time."""

    key: str
    attack: str
    """The attack's name in tables."""
    trajectory: Trajectory
    image_ids: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"evaluations/{self.key}.parquet"

    def __str__(self) -> str:
        return (
            f"shard {self.key}: {self.attack}, {self.trajectory.steps} steps on "
            f"{len(self.image_ids)} images from id {self.image_ids[0]}"
        )


@dataclass(frozen=True, kw_only=True)
class Portraits:
    """A few images to be kept whole, attacked by the longest trajectory."""

    key: str
    attack: str
    trajectory: Trajectory
    image_ids: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"galleries/{self.key}.safetensors"


Work = Shard | Portraits
DoWork = Callable[[Work], Tally]
"""Does one piece and counts its records; a gallery counts nothing."""


def evaluation_ids(
    ids_N: npt.NDArray[np.int64], settings: EvaluateSettings
) -> npt.NDArray[np.int64]:
    """The images attacked, in the order of a permutation drawn from the evaluation's seed."""
    order = Key(settings.seed, Purpose.SUBSET).permutation(len(ids_N))
    chosen: npt.NDArray[np.int64] = ids_N[order[: settings.images]]
    return chosen


def plan_shards(job: EvaluateJob, ids: npt.NDArray[np.int64]) -> list[Shard]:
    """All shards, pieces of the permutation in order; each piece meets every trajectory."""
    size = job.evaluate.shard_images
    pieces = [tuple(ids[start : start + size].tolist()) for start in range(0, len(ids), size)]
    return [
        Shard(
            key=job.key(trajectory, piece),
            attack=attack.name,
            trajectory=trajectory,
            image_ids=piece,
        )
        for piece in pieces
        for attack in job.evaluate.attacks.values()
        for trajectory in trajectories(attack)
    ]


def plan_portraits(job: EvaluateJob, ids: npt.NDArray[np.int64]) -> Portraits | None:
    """The first images under the first attack's longest trajectory; None if there is nothing."""
    chosen = tuple(ids[: job.evaluate.gallery_images].tolist())
    attacks = list(job.evaluate.attacks.values())
    if not chosen or not attacks:
        return None
    longest = max(trajectories(attacks[0]), key=lambda t: t.steps)
    return Portraits(
        key=job.key(longest, chosen), attack=attacks[0].name, trajectory=longest, image_ids=chosen
    )
