"""Removes what workers had no time to remove before they died."""

from contextlib import suppress

from s3ta.errors import UserError
from s3ta_platform.leases import FOLDER
from s3ta_platform.snapshots import Snapshots
from s3ta_platform.storage import Storage


def remove_needless(storage: Storage) -> None:
    """Delete the saved states and leases of all work that is stored. Never raises.

    They were left by workers that died between storing and deleting, and by shards that were cut.
    They do no harm but that they count against `cluster.snapshot_budget_mb`.
    """
    with suppress(OSError, UserError):
        snapshots = Snapshots(storage, budget_bytes=0)
        for key in filter(lambda key: is_stored(storage, key), snapshots.keys()):
            snapshots.clear(key)
        for name in storage.list(f"{FOLDER}/"):
            if is_stored(storage, name.split("/")[1]):
                storage.delete(name)


def is_stored(storage: Storage, key: str) -> bool:
    """Whether the result of that key is there."""
    key = key.partition("-")[0]  # saved states of a piece's runs are numbered
    rows = [f"{folder}/{key}.parquet" for folder in ("evaluations", "probes", "analyses")]
    names = [*rows, f"galleries/{key}.safetensors"]
    return any(storage.exists(name) for name in names)
