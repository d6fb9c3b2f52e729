"""What a probe saw of each image's gradients, as Parquet: a row per image (s3ta.gradient_probe)."""

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from s3ta.errors import UserError
from s3ta.tally import Rows
from s3ta_platform.shards import Probe
from s3ta_platform.storage import Storage

FORMAT = "s3ta-probe-1"
METADATA = b"s3ta"
SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("zero_ce", pa.bool_()),
        ("zero_margin", pa.bool_()),
        ("rho", pa.float32()),
        ("alignment", pa.float32()),
        ("roughness", pa.float32()),
    ]
)


def write_probe(storage: Storage, probe: Probe, rows: Rows, about: Mapping[str, Any]) -> None:
    """Store the rows, unless they are there."""
    head = {"format": FORMAT, "key": probe.key, **about}
    table = pa.table([rows[f.name] for f in SCHEMA], schema=SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({METADATA: json.dumps(head)}),
        buffer,
        compression="zstd",
        write_page_checksum=True,
    )
    storage.put_new(probe.name, buffer.getvalue())


def read_probes(storage: Storage, probes: Iterable[Probe]) -> Rows:
    """The rows of all these, in order; UserError if a file is damaged."""
    tables = [SCHEMA.empty_table(), *(_read(storage, probe) for probe in probes)]
    table = pa.concat_tables(tables)
    return {name: table[name].to_numpy() for name in SCHEMA.names}


def _read(storage: Storage, probe: Probe) -> pa.Table:
    try:
        stored = io.BytesIO(storage.get(probe.name))
        table = pq.read_table(stored, page_checksum_verification=True, use_threads=False)
        head = json.loads((table.schema.metadata or {})[METADATA])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{storage.uri(probe.name)} is not a whole file ({str(error).splitlines()[0]}). "
            "Delete it and run again: it is computed anew."
        ) from error
    ids = tuple(table["image_id"].to_pylist()) if "image_id" in table.column_names else ()
    if (head.get("format"), head.get("key"), ids) != (FORMAT, probe.key, probe.image_ids):
        raise UserError(
            f"{storage.uri(probe.name)} holds something else than its name says. Delete it and "
            "run again: it is computed anew."
        )
    return table.replace_schema_metadata(None).cast(SCHEMA)
