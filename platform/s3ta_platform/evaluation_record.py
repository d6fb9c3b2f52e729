"""What an evaluation was to do: written when it starts, so that its completeness can be checked."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from s3ta.errors import UserError
from s3ta_platform.storage import Storage

FORMAT = "s3ta-evaluation-1"


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """One model, its attacks and its images, in the order of the evaluation's permutation."""

    trial: str
    model: str
    """What a reader calls it."""
    model_digest: str
    images_digest: str
    image_ids: list[int]
    classes: int
    seed: int
    tile: int
    halfwidth: float | None
    """It may stop early, at this half-width."""
    shards: list[dict[str, Any]]
    """Each with `key`, `attack`, `trajectory`, `first` (place in `image_ids`) and `images`; plain
    values, as JSON has them."""

    @property
    def name(self) -> str:
        """Where it is stored."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:16]
        return f"trials/{self.trial}/evaluations/{digest}.json"

    @property
    def text(self) -> str:
        """What is stored. Without indentation: there may be 100,000 shards."""
        return json.dumps({"format": FORMAT, **vars(self)}, sort_keys=True)


def write_record(storage: Storage, record: EvaluationRecord) -> None:
    """Store it, unless it is there."""
    storage.put_new(record.name, record.text.encode())


def record_names(storage: Storage) -> list[str]:
    """Of all evaluations that were begun below this root, sorted."""
    names = storage.list("trials/")
    return [name for name in names if "/evaluations/" in name and name.endswith(".json")]


def read_records(storage: Storage) -> list[EvaluationRecord]:
    """All evaluations that were begun below this root; UserError if a record is bad."""
    return [parse_record(storage, name, storage.get(name)) for name in record_names(storage)]


def parse_record(storage: Storage, name: str, content: bytes) -> EvaluationRecord:
    """What is stored under that name; UserError if it is bad."""
    try:
        fields = json.loads(content)
        if fields.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        record = EvaluationRecord(**fields)
        if record.name != name:
            raise ValueError(f"it was changed: its content belongs to {record.name}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{storage.uri(name)} is not the record of an evaluation ({error}). "
            "Delete it and run again: it is written anew."
        ) from error
    return record
