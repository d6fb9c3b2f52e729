"""Content keys: the name of a piece of work is a digest of everything that decides its result.

Work whose key has a result is never done again. What changes no result (workers, shard size,
tracking address) is in no key.
"""

import hashlib
import json
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from s3ta.settings import ModelSettings, TrainSettings
from s3ta_platform.schema import DataSettings

RESULT_VERSION = 4
"""Raise it whenever the code gives other numbers for the same settings."""


LEAVES = frozenset({str, int, float, bool, type(None)})


def plain(value: Any) -> Any:
    """Settings as what JSON can hold."""
    if type(value) in LEAVES:  # most of all: a plan of 100,000 shards asks for millions
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def content_key(**parts: Any) -> str:
    """16 hex digits that name the parts' content."""
    text = json.dumps(plain(parts), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def trial_parts(
    model: ModelSettings, train: TrainSettings, data: DataSettings, train_digest: str
) -> dict[str, Any]:
    """All that decides a trained model: its content key is the trial's.

    train_digest: names the content of the training files.
    """
    return {
        "result_version": RESULT_VERSION,
        "model": model,
        "train": train,
        "images": {
            "digest": train_digest,
            "train_images": data.train_images,
            "subset_seed": data.subset_seed,
            "image_size": data.image_size,
        },
    }
