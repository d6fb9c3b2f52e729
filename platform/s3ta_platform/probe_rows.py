"""What a probe saw of each image's gradients, as Parquet: a row per image (s3ta.gradient_probe)."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from s3ta.errors import UserError
from s3ta.tally import Rows
from s3ta_platform.rows import about
from s3ta_platform.shards import Probe
from s3ta_platform.storage import Storage
from s3ta_platform.study_files import read_study, to_parquet

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


def write_probe(storage: Storage, probe: Probe, rows: Rows, key_parts: Mapping[str, Any]) -> None:
    """Store the rows, unless they are there."""
    columns = {name: rows[name] for name in SCHEMA.names}
    head = {"key": probe.key, "key_parts": key_parts}
    storage.put_new(probe.name, to_parquet(columns, head))


def read_probes(storage: Storage, probes: Iterable[Probe]) -> Rows:
    """The rows of all these, in order; UserError if a file is damaged."""
    tables = [SCHEMA.empty_table(), *(_read(storage, probe) for probe in probes)]
    table = pa.concat_tables(tables)
    return {name: table[name].to_numpy() for name in SCHEMA.names}


def _read(storage: Storage, probe: Probe) -> pa.Table:
    table = read_study(storage, probe.name)
    ids = tuple(table["image_id"].to_pylist()) if "image_id" in table.column_names else ()
    if (about(table).get("key"), ids) != (probe.key, probe.image_ids):
        raise UserError(
            f"{storage.uri(probe.name)} holds something else than its name says. Delete it and "
            "run again: it is computed anew."
        )
    return table.replace_schema_metadata(None).cast(SCHEMA)
