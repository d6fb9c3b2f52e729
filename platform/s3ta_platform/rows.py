"""Per-example rows as Parquet: one row per image, trajectory and reading.

Every number in a report can be recomputed from these files.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from s3ta.errors import UserError
from s3ta.settings import Goal
from s3ta_platform.storage import Storage

FORMAT = "s3ta-rows-3"
METADATA = b"s3ta"

SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("label", pa.int32()),
        ("target", pa.int32()),
        ("clean_prediction", pa.int32()),
        ("prediction", pa.int32()),
        ("attack_prediction", pa.int32()),
        ("correct", pa.bool_()),
        ("fooled", pa.bool_()),
        ("loss", pa.float32()),
        ("margin", pa.float32()),
        ("linf_255", pa.float32()),
        ("pixel_min", pa.float32()),
        ("pixel_max", pa.float32()),
        ("first_error_step", pa.int32()),
        ("first_target_step", pa.int32()),
        ("restart", pa.int32()),
        ("step", pa.int32()),
    ]
)

MERGED = SCHEMA.append(pa.field("quarantined", pa.string())).append(pa.field("attack", pa.string()))
"""Of many files' rows together."""


def to_parquet(rows: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
    """One file's bytes; `about` (model digest, attack, seed, versions) goes into its metadata."""
    table = pa.table([rows[f.name] for f in SCHEMA], schema=SCHEMA)
    head = {"format": FORMAT, **about}
    head.pop("sha256", None)  # where a head is put together from others'
    head["sha256"] = _digest(table, head)
    return parquet_bytes(table.replace_schema_metadata({METADATA: json.dumps(head).encode()}))


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as a file of results."""
    buffer = io.BytesIO()
    pq.write_table(
        table, buffer, compression="zstd", write_page_checksum=True, write_statistics=False
    )
    return buffer.getvalue()


def rows_digest(table: pa.Table) -> str:
    """SHA-256 over the columns' values, however the file lays them out."""
    digest = hashlib.sha256()
    for name in SCHEMA.names:
        digest.update(np.ascontiguousarray(table[name].to_numpy()).data)
    return digest.hexdigest()


def _digest(table: pa.Table, head: Mapping[str, Any]) -> str:
    """SHA-256 over the rows and what the file says of them."""
    text = json.dumps(head, sort_keys=True)
    return hashlib.sha256(f"{rows_digest(table)} {text}".encode()).hexdigest()


def read_file(storage: Storage, name: str) -> tuple[pa.Table, dict[str, Any]]:
    """A stored file of results and what it says of itself; UserError unless it is whole."""
    stored = io.BytesIO(storage.get(name))
    try:
        # Small files: threads would cost more than they give.
        table = pq.read_table(stored, page_checksum_verification=True, use_threads=False)
        said = (table.schema.metadata or {})[METADATA]
        head = json.loads(said)
        # Parquet keeps it twice, and other readers may look at the other one.
        alike = (pq.read_metadata(stored).metadata or {}).get(METADATA) == said
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{storage.uri(name)} is not a whole file of results "
            f"({str(error).splitlines()[0]}). Delete it and run again: it is computed anew."
        ) from error
    if not alike:
        raise changed(storage, name)
    return table, head


def changed(storage: Storage, name: str) -> UserError:
    """What to say of a file that its digest doesn't fit."""
    return UserError(
        f"{storage.uri(name)} was changed: it has another SHA-256 than it says itself. "
        "Delete it and run again: it is computed anew."
    )


def read_rows(storage: Storage, name: str) -> pa.Table:
    """The rows of one stored file; UserError if it is damaged."""
    table, head = read_file(storage, name)
    if head.get("format") != FORMAT or table.schema.names != SCHEMA.names:
        raise UserError(
            f"{storage.uri(name)} has the format {head.get('format')!r}; this version reads "
            f"{FORMAT!r}. Delete it and run again, or use the version that wrote it."
        )
    if head.pop("sha256", None) != _digest(table, head):
        raise changed(storage, name)
    return table


def about(table: pa.Table) -> dict[str, Any]:
    """What a file says of its rows: `key`, `key_parts`, `attack`, `quarantined`, versions."""
    found: dict[str, Any] = json.loads(table.schema.metadata[METADATA])
    return found


def merge_rows(storage: Storage, files: Iterable[tuple[str, str]]) -> pa.Table:
    """Rows of many files, given as (attack's name, file).

    With two more columns: `attack`, and `quarantined`, empty but for images that ended every worker
    that tried them. Those have rows too, of images that are not robust.
    """
    tables = []
    for attack, name in files:
        table = read_rows(storage, name)
        lost = _quarantined(about(table))
        table = table.replace_schema_metadata(None)
        table = table.append_column("quarantined", pa.array([""] * len(table), pa.string()))
        table = pa.concat_tables([table, lost]) if len(lost) else table
        tables.append(table.append_column("attack", pa.array([attack] * len(table), pa.string())))
    if not tables:
        return MERGED.empty_table()
    return pa.concat_tables(tables)


def _quarantined(head: Mapping[str, Any]) -> pa.Table:
    """A row per reading for each quarantined image: wrong, and fooled where there is a target."""
    trajectory = head["key_parts"]["trajectory"]
    targeted = Goal[trajectory["goal"]].targeted
    known = {"restart": trajectory["restart"], "correct": False, "fooled": targeted}
    known |= {"target": 0 if targeted else -1, "label": -1, "clean_prediction": -2}
    rows = [
        {**dict.fromkeys(SCHEMA.names, -1), **known}
        | {"image_id": int(image_id), "step": step, "quarantined": error}
        for image_id, error in head["quarantined"].items()
        for step in trajectory["readings"]
    ]
    return pa.Table.from_pylist(rows, schema=MERGED.remove(MERGED.get_field_index("attack")))
