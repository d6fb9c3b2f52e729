"""Every file of rows: whole, unchanged, in its place, and at one with the others. No torch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from s3ta.errors import UserError
from s3ta_platform.evaluation_record import EvaluationRecord
from s3ta_platform.outcomes import shard_file
from s3ta_platform.rows import about, read_rows
from s3ta_platform.storage import NotStored, StoreAwayError
from s3ta_platform.verified import Check, Root, Tick
from s3ta_platform.verify_rows import own_problems, shard_problems

ANEW = "Delete it and run again: it is computed anew."

Places = dict[str, list[tuple[EvaluationRecord, dict[str, Any]]]]
"""Of each file that an evaluation names, the evaluations and their shards."""


def places_of(records: list[EvaluationRecord]) -> Places:
    places: Places = {}
    for record in records:
        for shard in record.shards:
            places.setdefault(shard_file(shard), []).append((record, shard))
    return places


def check_rows(root: Root, tick: Tick) -> Check:
    """Every file of an evaluation."""
    places, others = places_of(root.records), _Others()
    names = sorted(root.stored & places.keys())
    check = Check(name="rows")
    for name in names:
        tick()
        uri, table = root.storage.uri(name), _read(root, name)
        if isinstance(table, str):
            check.doubts.append(table)
            continue
        problems = list(own_problems(table, name))
        for record, shard in places[name]:
            problems += shard_problems(record, shard, table)
        check.doubts += [f"{uri}: {words}. {ANEW}" for words in dict.fromkeys(problems)]
        if not problems:  # else it would be said twice
            check.doubts += [f"{uri}: {words}." for words in others.problems(uri, table)]
    check.words = f"{others.rows:,} without a contradiction, in {len(names)} file(s)"
    return check


def check_strays(root: Root, tick: Tick) -> Check:
    """Files of no evaluation: no doubt, unless one lies about what it is."""
    places, check = places_of(root.records), Check(name="other files")
    names = sorted(root.stored - places.keys())
    for name in names:
        tick()
        uri, table = root.storage.uri(name), _read(root, name)
        if isinstance(table, str):
            check.notes.append(f"Not part of any evaluation: {table}")
            continue
        problems = list(own_problems(table, name))
        check.doubts += [f"{uri}: {words}. Delete it." for words in problems]
        if not problems:
            check.notes.append(f"{uri} is {_what(about(table)['key_parts'], root.records)}.")
    check.words = f"{len(names)}, not part of any evaluation"
    return check


def _read(root: Root, name: str) -> pa.Table | str:
    """The rows, or what is wrong with the file. A store that is away ends the verification."""
    try:
        return read_rows(root.storage, name)
    except StoreAwayError:
        raise
    except NotStored as error:
        return f"{error}: it vanished meanwhile. Verify again."
    except UserError as error:
        return str(error)
    except ValueError as error:  # even a column's name may be no text any more
        return f"{root.storage.uri(name)} is not a whole file of results ({error}). {ANEW}"


def _what(parts: dict[str, Any], records: list[EvaluationRecord]) -> str:
    """A part of a shard that was cut up, as quarantine does it, or nothing we know of."""
    ids = set(parts["image_ids"])
    for record in records:
        same = (record.model_digest, record.seed, record.tile, record.images_digest)
        if same != (parts["model"], parts["seed"], parts["tile"], parts["images"]["digest"]):
            continue
        for shard in record.shards:
            of_shard = record.image_ids[shard["first"] : shard["first"] + shard["images"]]
            if shard["trajectory"] == parts["trajectory"] and ids <= set(of_shard):
                return f"a part of the shard {shard_file(shard)}, and not counted itself"
    return "not part of any evaluation"


class _Others:
    """What other files said of the same images."""

    def __init__(self) -> None:
        self.rows = 0
        self.known: dict[tuple[str, ...], dict[int, tuple[int, str]]] = {}

    def problems(self, uri: str, table: pa.Table) -> Iterator[str]:
        """Labels are those of the images; the clean prediction is that of one model."""
        self.rows += len(table)
        parts = about(table)["key_parts"]
        images = str(parts["images"])
        model = (parts["model"], images, str(parts.get("device")))
        yield from self._compare(uri, table, "label", (images,))
        yield from self._compare(uri, table, "clean_prediction", model)

    def _compare(
        self, uri: str, table: pa.Table, column: str, group: tuple[str, ...]
    ) -> Iterator[str]:
        known = self.known.setdefault((column, *group), {})
        ids, first = np.unique(table["image_id"].to_numpy(), return_index=True)
        values = table[column].to_numpy()[first]
        bad = []
        for image, value in zip(ids.tolist(), values.tolist(), strict=True):
            if known.setdefault(image, (value, uri))[0] != value:
                bad.append((image, value))
        if bad:
            image, value = bad[0]
            before, where = known[image]
            yield (
                f"{column} of {len(bad):,} image(s) is another one than elsewhere, the first: "
                f"image {image} has {value} here and {before} in {where}. One of the two was "
                "changed: delete both and run again"
            )
