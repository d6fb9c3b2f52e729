"""Whether an evaluation has seen enough images: a pure function of the stored rows.

Looked at is the contiguous finished beginning of the permutation, which is a random sample of the
set; which shards happen to be finished beyond it is not random. N images of that beginning.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from s3ta.statistics import STOP_EVERY, stopping_point
from s3ta.tally import Array
from s3ta.trajectory import Trajectory
from s3ta_platform.shards import Shard

Columns = Mapping[str, Array]
Outcomes = npt.NDArray[np.bool_]


class Stopping:
    """Collects finished shards in any order, until the half-width is reached."""

    def __init__(self, shards: Sequence[Shard], images: int, halfwidth: float) -> None:
        self.images, self.halfwidth = images, halfwidth
        self.point: int | None = None
        """So many images are enough, the first of the permutation."""
        self.expected: dict[tuple[str, Trajectory], list[Shard]] = {}
        for shard in sorted(shards, key=lambda s: s.first):
            self.expected.setdefault((shard.attack, shard.trajectory), []).append(shard)
        self.finished: dict[str, Outcomes] = {}
        self.prefix = {kind: np.zeros((0, 0), dtype=bool) for kind in self.expected}
        self.looked = 0

    def add(self, shard: Shard, columns: Columns) -> None:
        """One more finished shard."""
        self.finished[shard.key] = outcomes(shard, columns)
        kind = (shard.attack, shard.trajectory)
        for expected in list(self.expected[kind]):
            if expected.key not in self.finished:
                break
            self.expected[kind].pop(0)
            more, seen = self.finished.pop(expected.key), self.prefix[kind]
            self.prefix[kind] = np.concatenate([seen, more]) if len(seen) else more
        self._look()

    def _look(self) -> None:
        n = min(len(seen) for seen in self.prefix.values())
        if self.point is not None or n // STOP_EVERY == self.looked // STOP_EVERY:
            return
        self.looked = n
        seen_NR = np.concatenate(list(self._worst_of_starts(n)), axis=1)
        self.point = stopping_point(seen_NR, self.images, self.halfwidth)

    def _worst_of_starts(self, n: int) -> Iterator[Outcomes]:
        """Right and fooled of the first n images, per attack and readings."""
        groups: dict[tuple[str, tuple[int, ...]], list[Outcomes]] = {}
        for (attack, trajectory), seen in self.prefix.items():
            groups.setdefault((attack, trajectory.readings), []).append(seen[:n])
        for (_, readings), seen_of_starts in groups.items():
            right, fooled = (slice(0, len(readings)), slice(len(readings), None))
            yield np.logical_and.reduce([seen[:, right] for seen in seen_of_starts])
            yield np.logical_or.reduce([seen[:, fooled] for seen in seen_of_starts])


def outcomes(shard: Shard, columns: Columns) -> Outcomes:
    """Per image, in the shard's order: right and fooled at every reading.

    An image without rows was quarantined, and counts as not robust.
    """
    place = {image_id: i for i, image_id in enumerate(shard.image_ids)}
    column = {step: i for i, step in enumerate(shard.trajectory.readings)}
    right_NR = np.zeros((len(place), len(column)), dtype=bool)
    fooled_NR = np.ones_like(right_NR)
    rows = [place[i] for i in columns["image_id"].tolist()]
    readings = [column[s] for s in columns["step"].tolist()]
    right_NR[rows, readings] = columns["correct"]
    fooled_NR[rows, readings] = columns["fooled"]
    return np.concatenate([right_NR, fooled_NR], axis=1)


def stopped_after(
    shards: Sequence[Shard],
    images: int,
    halfwidth: float | None,
    read: Callable[[Shard], Columns | None],
) -> int | None:
    """How many images are enough by what is stored; None if the rule asks for more, or for all.

    `read` gives a shard's rows, or None if it is not stored.
    """
    if halfwidth is None:
        return None
    stopping = Stopping(shards, images, halfwidth)
    for shard in sorted(shards, key=lambda s: s.first):
        columns = read(shard)
        if columns is None:
            break
        stopping.add(shard, columns)
        if stopping.point is not None:
            break
    return stopping.point
