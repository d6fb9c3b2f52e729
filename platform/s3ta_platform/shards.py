"""What an evaluation consists of: shards with content keys. Imports no torch, so plans are quick.

A shard is one attack trajectory on a few images. Its key is a digest of everything that decides its
rows, so a stored shard is never computed again, whoever asks for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from s3ta.draws import Key, Purpose
from s3ta.settings import Gradient
from s3ta.tally import Tally
from s3ta.trajectory import Trajectory, trajectories
from s3ta_platform.jobs import EvaluateJob
from s3ta_platform.pieces import Piece
from s3ta_platform.record import content_key
from s3ta_platform.schema_evaluate import EvaluateSettings

AT_MOST_TILES = 64
"""A shard's images are decoded and kept as a whole."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A piece of an evaluation that one worker does at a time."""

    key: str
    attack: str
    """The attack's name in tables."""
    trajectory: Trajectory
    image_ids: tuple[int, ...]
    first: int
    """The place of its first image in the evaluation's permutation."""

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
    skip: bool = False
    """Show none: they ended every worker that tried."""

    @property
    def name(self) -> str:
        return f"galleries/{self.key}.safetensors"

    def __str__(self) -> str:
        return f"gallery {self.key}: {self.attack}, {self.trajectory.steps} steps"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A look at the gradients of a few images."""

    key: str
    image_ids: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"probes/{self.key}.parquet"

    def __str__(self) -> str:
        return f"probe {self.key}: {len(self.image_ids)} images from id {self.image_ids[0]}"


@dataclass(frozen=True, kw_only=True)
class Quarantine:
    """A shard of one image that ended every worker that tried it."""

    shard: Shard
    error: str


Work = Shard | Portraits | Probe | Piece | Quarantine
DoWork = Callable[[Work], Tally]
"""Does one piece and counts its records; galleries, probes and analyses count nothing."""


def evaluation_ids(
    ids_N: npt.NDArray[np.int64], settings: EvaluateSettings
) -> npt.NDArray[np.int64]:
    """The images attacked, in the order of a permutation drawn from the evaluation's seed."""
    order = Key(settings.seed, Purpose.SUBSET).permutation(len(ids_N))
    chosen: npt.NDArray[np.int64] = ids_N[order[: settings.images]]
    return chosen


def plan_shards(job: EvaluateJob, ids: npt.NDArray[np.int64]) -> list[Shard]:
    """All shards: each trajectory on consecutive pieces of the permutation.

    In the order of their first image, so that all trajectories get on together.
    """
    shards = [
        shard(job, attack.name, trajectory, tuple(ids[start : start + size].tolist()), start)
        for attack in job.evaluate.attacks.values()
        for trajectory in trajectories(attack)
        for size in [shard_size(job.evaluate, trajectory)]
        for start in range(0, len(ids), size)
    ]
    return sorted(shards, key=lambda s: s.first)


def shard(
    job: EvaluateJob, attack: str, trajectory: Trajectory, ids: tuple[int, ...], first: int
) -> Shard:
    """One shard with its key."""
    key = job.key(trajectory, ids)
    return Shard(key=key, attack=attack, trajectory=trajectory, image_ids=ids, first=first)


def shard_size(settings: EvaluateSettings, trajectory: Trajectory) -> int:
    """Images per shard, such that all cost about the same; whole tiles, at least one.

    But for SPSA, whose gradients are computed image by image.

    It depends on this trajectory alone: another attack beside it leaves its shards as they are.
    """
    images = settings.shard_steps // trajectory.work
    if trajectory.gradient is Gradient.spsa and images < settings.tile:
        return max(images, 1)  # each image is computed in chunks of its own
    tiles = min(max(images // settings.tile, 1), AT_MOST_TILES)
    return tiles * settings.tile


def plan_probes(job: EvaluateJob, ids: npt.NDArray[np.int64]) -> list[Probe]:
    """Looks at all images' gradients, cut as attacks are; none if nobody asks for them."""
    if job.evaluate.probe is None:
        return []
    size = max(job.evaluate.shard_steps // job.evaluate.probe.pairs, 1)
    pieces = [tuple(ids[start : start + size].tolist()) for start in range(0, len(ids), size)]
    return [Probe(key=content_key(**job.probe_parts(piece)), image_ids=piece) for piece in pieces]


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
