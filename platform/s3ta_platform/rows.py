"""Per-example rows as Parquet: one row per image, trajectory and reading.

Every number in a report can be recomputed from these files.
"""

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from s3ta.errors import UserError
from s3ta_platform.storage import Storage

FORMAT = "s3ta-rows-1"
METADATA = b"s3ta"

SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("label", pa.int32()),
        ("target", pa.int32()),
        ("clean_prediction", pa.int32()),
        ("prediction", pa.int32()),
        ("correct", pa.bool_()),
        ("fooled", pa.bool_()),
        ("loss", pa.float32()),
        ("margin", pa.float32()),
        ("linf_255", pa.float32()),
        ("first_error_step", pa.int32()),
        ("first_target_step", pa.int32()),
        ("restart", pa.int32()),
        ("step", pa.int32()),
    ]
)


def to_parquet(rows: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
    """One file's bytes; `about` (model digest, attack, seed, versions) goes into its metadata."""
    metadata = {METADATA: json.dumps({"format": FORMAT, **about}).encode()}
    table = pa.table([rows[f.name] for f in SCHEMA], schema=SCHEMA.with_metadata(metadata))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def read_rows(storage: Storage, name: str) -> pa.Table:
    """The rows of one stored file; UserError if it is damaged."""
    stored = io.BytesIO(storage.get(name))
    try:
        table = pq.read_table(stored, page_checksum_verification=True)
        about = json.loads((table.schema.metadata or {})[METADATA])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{storage.uri(name)} is not a whole file of results "
            f"({str(error).splitlines()[0]}). Delete it and run again: it is computed anew."
        ) from error
    if about.get("format") != FORMAT or table.schema.names != SCHEMA.names:
        raise UserError(
            f"{storage.uri(name)} has the format {about.get('format')!r}; this version reads "
            f"{FORMAT!r}. Delete it and run again, or use the version that wrote it."
        )
    return table


def merge_rows(storage: Storage, files: Iterable[tuple[str, str]]) -> pa.Table:
    """Rows of many files, given as (attack's name, file), with a column `attack`."""
    tables = []
    for attack, name in files:
        table = read_rows(storage, name).replace_schema_metadata(None)
        tables.append(table.append_column("attack", pa.array([attack] * len(table), pa.string())))
    if not tables:
        return SCHEMA.append(pa.field("attack", pa.string())).empty_table()
    return pa.concat_tables(tables)
