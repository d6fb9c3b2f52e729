"""What stored shards say: rows, counts, and whether they are enough."""

import numpy as np

from s3ta.tally import Rows, Tally
from s3ta_platform.jobs import EvaluateJob, Ids
from s3ta_platform.rows import read_rows
from s3ta_platform.shards import Shard
from s3ta_platform.stopping import stopped_after
from s3ta_platform.storage import Storage


def enough_images(
    job: EvaluateJob, storage: Storage, ids: Ids, shards: list[Shard], stored: set[str]
) -> int | None:
    """How many images `evaluate.stop_when` asks for, by what is stored; None for all."""

    def read(shard: Shard) -> Rows | None:
        return read_columns(storage, shard) if shard.name in stored else None

    return stopped_after(shards, len(ids), job.evaluate.stop_when.halfwidth, read)


def read_columns(storage: Storage, shard: Shard) -> Rows:
    """A stored shard's rows."""
    table = read_rows(storage, shard.name)
    return {name: table[name].to_numpy() for name in table.column_names}


def read_tally(storage: Storage, shard: Shard) -> Tally:
    """A stored shard's counts, quarantined images among them as not robust."""
    return tally_of(shard, read_columns(storage, shard))


def tally_of(shard: Shard, columns: Rows) -> Tally:
    """Count a shard's rows; an image without rows was quarantined, and is not robust."""
    if not len(columns["step"]):
        return Tally(len(shard.image_ids), 0, dict.fromkeys(shard.trajectory.readings, 0), {})
    found = Tally.of(columns)
    lost = len(shard.image_ids) - len(np.unique(columns["image_id"]))
    return Tally(found.images + lost, found.clean_correct, found.correct, found.fooled)
