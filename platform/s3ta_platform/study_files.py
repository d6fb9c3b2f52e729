"""What analyses and probes found, as Parquet: one file per piece. Imports no torch."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from s3ta_platform.pieces import Piece
from s3ta_platform.record import plain
from s3ta_platform.rows import METADATA, changed, parquet_bytes, read_file
from s3ta_platform.storage import Storage

FORMAT = "s3ta-study-1"

Columns = Mapping[str, np.ndarray]
"""A row per image, or per image and point; two-dimensional columns become lists."""


def to_parquet(columns: Columns, about: Mapping[str, Any]) -> bytes:
    """One file's bytes, with what it says of itself in its metadata."""
    table = pa.table({name: _column(column) for name, column in columns.items()})
    head = {"format": FORMAT, **plain(dict(about))}
    head["sha256"] = _digest(table, head)
    return parquet_bytes(table.replace_schema_metadata({METADATA: json.dumps(head).encode()}))


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
    table, head = read_file(storage, name)
    if head.get("format") != FORMAT or head.pop("sha256", None) != _digest(table, head):
        raise changed(storage, name)
    return table
