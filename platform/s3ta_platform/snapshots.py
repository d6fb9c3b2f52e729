"""Saved states of running shards, so that a lost worker costs minutes.

    snapshots/KEY/0000006000.safetensors     the state at step 6000, whole or not there

The file's metadata holds what JSON takes and a SHA-256 of the whole file (counted with zeros in
the digest's own place), so that a damaged state is never continued. They save time and nothing
else: one that can't be saved or read is told and done without. Imports no torch.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse_arrays
from safetensors.numpy import save as format_arrays

from s3ta.errors import UserError
from s3ta_platform.storage import NotStored, Storage

FOLDER = "snapshots"
FORMAT = "s3ta-snapshot"
VERSION = 1
LEFT_BEHIND_S = 3600.0
"""A temporary file of that age has no writer any more."""

Array = NDArray[Any]
Arrays = dict[str, Array]
Found = tuple[int, Arrays, dict[str, Any]]

_BLANK = "0" * 64
# A quote inside of a JSON string is escaped, so that nothing else in a header looks like this.
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_NAME = re.compile(r"(\d{10,})\.safetensors", re.ASCII)


def ignore(text: str) -> None:
    """Nobody listens."""


class Snapshots:
    """The saved states in a storage.

    budget_bytes: no save goes beyond it (several at the same moment may, by their own size). The
    state before counts until the new one is stored, so a key takes twice its size.
    storage: for saving best one that is not patient, for no snapshot is worth a pause; for reading
    a patient one, for it may save hours.
    """

    def __init__(
        self, storage: Storage, budget_bytes: int, tell: Callable[[str], None] = ignore
    ) -> None:
        self._storage, self._budget, self._tell = storage, budget_bytes, tell
        self._failing = False

    def save(
        self, key: str, step: int, arrays: Mapping[str, Array], about: Mapping[str, Any]
    ) -> bool:
        """Store a state and delete those before it. False: it can't be stored now; told once.

        arrays: bool, integers or floats of any shape. about: whatever JSON takes.
        """
        data = _format(step, arrays, about)
        try:
            self._storage.clear_temporaries(f"{FOLDER}/", LEFT_BEHIND_S)
            used = self._storage.used(f"{FOLDER}/")
            if used + len(data) > self._budget:
                return self._fail(_over_budget(step, key, len(data), used, self._budget))
            self._storage.put_new(_name(key, step), data)
        except (OSError, UserError) as error:
            return self._fail(f"no snapshot of step {step} of {key}: {error}")
        self._failing = False
        with suppress(OSError, UserError):  # the next one deletes them too
            self._delete(key, [earlier for earlier in self.steps(key) if earlier < step])
        return True

    def latest(self, key: str) -> Found | None:
        """The newest whole state: (step, arrays, about). Damaged ones are told and deleted.

        The arrays are the caller's own, to write into.
        """
        for step in reversed(self.steps(key)):
            name = _name(key, step)
            try:
                found = _parse(self._storage.get(name), step)
            except NotStored:  # just deleted: another worker is further
                continue
            if found is not None:
                return found
            self._tell(f"{self._storage.uri(name)} is damaged or of another version: deleted")
            self._storage.delete(name)
        return None

    def clear(self, key: str) -> None:
        """Delete all states of a key: its result is stored. Never raises; see keys()."""
        with suppress(OSError, UserError):
            self._delete(key, self.steps(key))
            # What a killed worker was writing: nobody needs a state of this key any more.
            self._storage.clear_temporaries(f"{FOLDER}/{key}/", older_than_s=0)

    def keys(self) -> list[str]:
        """All that have a state: what `clear` missed, or died before, is left to the driver."""
        names = [name.removeprefix(f"{FOLDER}/") for name in self._storage.list(f"{FOLDER}/")]
        return sorted({name.rpartition("/")[0] for name in names})

    def steps(self, key: str) -> list[int]:
        """Steps of the stored states, rising."""
        start = f"{FOLDER}/{key}/"
        names = self._storage.list(start)
        found = (_NAME.fullmatch(name.removeprefix(start)) for name in names)
        return sorted(int(match[1]) for match in found if match)

    def _delete(self, key: str, steps: list[int]) -> None:
        for step in steps:
            self._storage.delete(_name(key, step))

    def _fail(self, reason: str) -> bool:
        if not self._failing:
            self._tell(reason)
        self._failing = True
        return False


def _over_budget(step: int, key: str, size: int, used: int, budget: int) -> str:
    mb = [f"{n / 1e6:.1f}" for n in (size, used, budget)]
    return (
        f"no snapshot of step {step} of {key}: its {mb[0]} MB and the {mb[1]} MB of all snapshots"
        f" are more than {mb[2]} MB (setting `cluster.snapshot_budget_mb`)"
    )


def _name(key: str, step: int) -> str:
    assert step >= 0
    return f"{FOLDER}/{key}/{step:010d}.safetensors"


def _format(step: int, arrays: Mapping[str, Array], about: Mapping[str, Any]) -> bytes:
    # safetensors writes the memory as it lies, so that other strides would be mixed up.
    # (ascontiguousarray would make a 0-d array 1-d.)
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    head = {"format": FORMAT, "version": VERSION, "step": step, "about": dict(about)}
    data = format_arrays(whole, metadata={"about": json.dumps(head), "sha256": _BLANK})
    digest = hashlib.sha256(data).hexdigest()
    found = _DIGEST.search(data)
    assert found is not None
    return b"".join([data[: found.start(1)], digest.encode(), data[found.end(1) :]])


def _parse(data: bytes, step: int) -> Found | None:
    """None unless every byte is as it was written, for this step and by this version."""
    if not _is_whole(data):
        return None
    try:
        length = int.from_bytes(data[:8], "little")
        head = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["about"])
        if (head["format"], head["version"], head["step"]) != (FORMAT, VERSION, step):
            return None
        arrays = {name: np.array(array) for name, array in parse_arrays(data).items()}
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None
    return step, arrays, head["about"]


def _is_whole(data: bytes) -> bool:
    found = _DIGEST.search(data)
    if found is None:
        return False
    digest, view = hashlib.sha256(), memoryview(data)
    for part in (view[: found.start(1)], _BLANK.encode(), view[found.end(1) :]):
        digest.update(part)
    return digest.hexdigest().encode() == found[1]
