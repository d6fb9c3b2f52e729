"""What analyses found, as Parquet: one file per piece. Imports no torch."""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from s3ta.errors import UserError
from s3ta_platform.pieces import Piece
from s3ta_platform.record import plain
from s3ta_platform.storage import Storage

FORMAT = "s3ta-study-1"
METADATA = b"s3ta"

Columns = Mapping[str, np.ndarray]
"""A row per image, or per image and point; two-dimensional columns become lists."""


def to_parquet(columns: Columns, about: Mapping[str, Any]) -> bytes:
    """One file's bytes, with what it says of itself in its metadata."""
    table = pa.table({name: _column(column) for name, column in columns.items()})
    head = {"format": FORMAT, **plain(dict(about))}
    head["sha256"] = _digest(table, head)
    table = table.replace_schema_metadata({METADATA: json.dumps(head).encode()})
    return table_bytes(table)


def table_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(
        table, buffer, compression="zstd", write_page_checksum=True, write_statistics=False
    )
    return buffer.getvalue()


def _column(column: np.ndarray) -> pa.Array:
    if column.ndim == 1:
        return pa.array(column)
    return pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), column.shape[1])


def _digest(table: pa.Table, head: Mapping[str, Any]) -> str:
    """SHA-256 over the columns' values and what the file says of them."""
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name in table.column_names:
        digest.update(name.encode() + np.ascontiguousarray(values(table, name)).tobytes())
    return digest.hexdigest()


def values(table: pa.Table, name: str) -> np.ndarray:
    """A column as an array, (rows,) or (rows, length of its lists)."""
    column = table[name].combine_chunks()
    if not pa.types.is_fixed_size_list(column.type):
        found: np.ndarray = column.to_numpy(zero_copy_only=False)
        return found
    flat: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


def read_pieces(storage: Storage, pieces: Iterable[Piece]) -> pa.Table:
    """The rows of all pieces; UserError if one is damaged."""
    tables = [read_study(storage, piece.name) for piece in pieces]
    return pa.concat_tables([table.replace_schema_metadata(None) for table in tables])


def read_study(storage: Storage, name: str) -> pa.Table:
    """The rows of one stored file, with what it says of itself; UserError if it is damaged."""
    remedy = "Delete it and run again: it is computed anew."
    try:
        table = pq.read_table(
            io.BytesIO(storage.get(name)), page_checksum_verification=True, use_threads=False
        )
        head = json.loads((table.schema.metadata or {})[METADATA])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{storage.uri(name)} is not a whole file of an analysis "
            f"({str(error).splitlines()[0]}). {remedy}"
        ) from error
    if head.get("format") != FORMAT or head.pop("sha256", None) != _digest(table, head):
        raise UserError(
            f"{storage.uri(name)} was changed, or is of another version: it has another SHA-256 "
            f"than it says itself. {remedy}"
        )
    return table
