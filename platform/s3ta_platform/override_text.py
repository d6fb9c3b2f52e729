"""Settings as overrides: what one would type on a command line."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any


def as_overrides(point: Mapping[str, Any]) -> list[str]:
    """One `key=value` for each setting of a point, however it is nested."""
    flat = dict(_flat(point))
    # Group choices first: they bring the keys that the other overrides change.
    return [f"{key}={_text(flat[key])}" for key in sorted(flat, key=lambda k: ("." in k, k))]


def _flat(point: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """`{train: {epochs: 2}}` is `{train.epochs: 2}`."""
    for key, value in point.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{start}{key}.")
        else:
            yield start + str(key), value


def _text(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value):
        return value
    return _nested(value)


def _nested(value: Any) -> str:
    """As JSON, but a section's keys stand without quotes, as Hydra reads them."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_nested(entry)}' for key, entry in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_nested, value))}]"
    return json.dumps(value, ensure_ascii=False)
