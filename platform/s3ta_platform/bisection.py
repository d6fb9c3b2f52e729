"""Finds the image that ends every worker that tries it, while everything else goes on.

A shard whose workers died or hung too often is cut into halves, these again, down to one image.
That one is quarantined: its shard is stored without rows, with its error. When both halves are
stored, they are put together to the shard that was planned.
"""

from collections.abc import Sequence

import pyarrow as pa

from s3ta.errors import UserError
from s3ta_platform.jobs import EvaluateJob
from s3ta_platform.record import plain
from s3ta_platform.rows import about, read_rows, to_parquet
from s3ta_platform.shards import Portraits, Quarantine, Shard, Work, shard
from s3ta_platform.storage import Storage
from s3ta_platform.tickets import JobFailure

AT_MOST = 0.01
"""More than this share of the images quarantined is not the images' fault."""
AT_LEAST = 4
"""So many may be quarantined however few images there are."""


class Bisection:
    """The shards of one evaluation that were cut, and the quarantined images."""

    def __init__(self, job: EvaluateJob, storage: Storage, images: int) -> None:
        self.job, self.storage = job, storage
        self.allowed = max(AT_LEAST, int(AT_MOST * images))
        self.parents: dict[str, Shard] = {}
        self.halves: dict[str, tuple[Shard, Shard]] = {}
        self.stored: set[str] = set()
        self.quarantined: dict[int, str] = {}

    def instead(self, failure: JobFailure) -> Sequence[Work]:
        """What to do instead of a job that was given up; nothing if that stands."""
        work = failure.job
        if not failure.died:
            return []
        if isinstance(work, Portraits):
            return [] if work.skip else [Portraits(**{**vars(work), "skip": True})]
        if not isinstance(work, Shard):
            return []
        if len(work.image_ids) > 1:
            return self._cut(work)
        self.quarantined[work.image_ids[0]] = failure.error
        if len(self.quarantined) > self.allowed:
            raise UserError(
                f"{len(self.quarantined)} single images each ended every worker that tried them "
                f"(last: image {work.image_ids[0]}: {failure.error}): more than {self.allowed} "
                "is not the images' fault. Look into the log for what ends the workers, such as "
                "too little memory (lower evaluate.tile), mend it, and run again."
            )
        return [Quarantine(shard=work, error=failure.error)]

    def _cut(self, work: Shard) -> Sequence[Work]:
        middle = len(work.image_ids) // 2
        pieces = ((0, work.image_ids[:middle]), (middle, work.image_ids[middle:]))
        first, second = (
            shard(self.job, work.attack, work.trajectory, ids, work.first + start)
            for start, ids in pieces
        )
        self.halves[work.key] = (first, second)
        self.parents |= {first.key: work, second.key: work}
        return [first, second]

    def settled(self, done: Shard) -> Shard | None:
        """The planned shard that is stored now that this one is; None if a half is missing yet."""
        self.stored.add(done.key)
        parent = self.parents.get(done.key)
        if parent is None:
            return done
        halves = self.halves[parent.key]
        if any(half.key not in self.stored for half in halves):
            return None
        self.storage.put_new(parent.name, self._joined(parent, halves))
        return self.settled(parent)

    def _joined(self, parent: Shard, halves: tuple[Shard, Shard]) -> bytes:
        tables = [read_rows(self.storage, half.name) for half in halves]
        heads = [about(table) for table in tables]
        rows = pa.concat_tables(table.replace_schema_metadata(None) for table in tables)
        head = {
            **heads[0],
            **shard_head(self.job, parent),
            "quarantined": {k: v for h in heads for k, v in h["quarantined"].items()},
        }
        return to_parquet({name: rows[name].to_numpy() for name in rows.column_names}, head)


def shard_head(job: EvaluateJob, work: Shard) -> dict[str, object]:
    """What a file of results says of itself, before it was computed."""
    return {
        "key": work.key,
        "key_parts": plain(job.key_parts(work.trajectory, work.image_ids)),
        "attack": work.attack,
        "quarantined": {},
    }
