"""Checkpoints: named tensors and JSON in a storage, complete or not there.

    PREFIX/0000000156/model.safetensors      one file for each group of tensors
    PREFIX/0000000156/optimizer.safetensors
    PREFIX/0000000156/history.json           meta["history"], which grows with every epoch
    PREFIX/0000000156/manifest.json          written last: it makes the checkpoint exist

The manifest holds the step, the rest of meta, and the size and SHA-256 of each file. Nothing is
pickled, so that loading a checkpoint from a stranger executes nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors

from s3ta.errors import UserError
from s3ta_platform.storage import NotStored, Storage

FORMAT = "s3ta-checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
HISTORY = "history"
HISTORY_FILE = f"{HISTORY}.json"

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What save() was given, on the CPU. JSON's types: a tuple in meta has become a list."""

    step: int
    tensors: dict[str, Tensors]
    meta: dict[str, Any]
    digest: str
    """SHA-256 of the manifest, and through it of everything: identifies this checkpoint."""


def save(
    storage: Storage,
    prefix: str,
    step: int,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    meta: Mapping[str, Any],
) -> str:
    """Store a checkpoint; returns its folder, `PREFIX/0000000156`.

    tensors: groups by name, such as {"model": ..., "optimizer": ...}. meta: whatever JSON takes.
    A step that is stored already stays as it is.
    """
    folder = _folder(prefix, step)
    if storage.exists(f"{folder}/{MANIFEST}"):
        return folder
    contents = {f"{group}.safetensors": _format(state) for group, state in tensors.items()}
    if HISTORY in meta:
        contents[HISTORY_FILE] = _json(meta[HISTORY])
    files = {name: _put(storage, folder, name, data) for name, data in contents.items()}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "step": step,
        "groups": list(tensors),
        "files": files,
        "meta": {key: value for key, value in meta.items() if key != HISTORY},
    }
    storage.put_new(f"{folder}/{MANIFEST}", _json(manifest))
    return folder


def latest(storage: Storage, prefix: str) -> int | None:
    """The highest complete step, None where there is none."""
    return max(steps(storage, prefix), default=None)


def steps(storage: Storage, prefix: str) -> list[int]:
    """All complete steps, rising."""
    names = storage.list(f"{prefix}/")
    return sorted(step for name in names if (step := _step(name, prefix, MANIFEST)) is not None)


def load(storage: Storage, prefix: str, step: int) -> Checkpoint:
    """Read a checkpoint and verify every byte; UserError where it is absent or damaged."""
    folder = _folder(prefix, step)
    try:
        raw = storage.get(f"{folder}/{MANIFEST}")
    except NotStored:
        raise UserError(
            f"There is no checkpoint of step {step} in {storage.root}/{prefix}; complete ones:"
            f" {steps(storage, prefix) or 'none'}. Choose one of these, or train again."
        ) from None
    manifest = _parse_manifest(storage.uri(f"{folder}/{MANIFEST}"), raw, step)
    tensors = {}
    for group in manifest["groups"]:
        data, where = _get(storage, folder, manifest, f"{group}.safetensors")
        try:
            tensors[group] = parse_tensors(data)
        except SafetensorError as error:
            raise UserError(f"{where} is no safetensors file ({error}). {_REMEDY}") from error
    meta = manifest["meta"]
    if HISTORY_FILE in manifest["files"]:
        meta[HISTORY] = json.loads(_get(storage, folder, manifest, HISTORY_FILE)[0])
    return Checkpoint(step, tensors, meta, hashlib.sha256(raw).hexdigest())


def prune(storage: Storage, prefix: str, keep: int, best_by: str = "") -> None:
    """Delete all complete checkpoints but those below, and incomplete ones before the latest.

    The last `keep` stay. With `best_by`, of those whose meta["metrics"] has that number (they end
    an epoch) the highest stays too, the earliest of equals, and so does the last of them.
    A manifest goes first, so that a checkpoint stops existing before its files do.
    """
    if keep < 1:
        raise UserError(f"keep={keep} would delete the checkpoint to resume from: use 1 or more.")
    for name in superfluous(storage, prefix, keep, best_by):
        storage.delete(name)
    storage.clear_temporaries(f"{prefix}/")


def superfluous(storage: Storage, prefix: str, keep: int, best_by: str = "") -> list[str]:
    """The names that prune would delete, in its order."""
    complete = steps(storage, prefix)
    if not complete:
        return []
    kept = {*complete[-keep:], *(_best_and_last(storage, prefix, complete, best_by))}
    doomed = [
        name
        for name in storage.list(f"{prefix}/")
        if (step := _step(name, prefix)) is not None and step not in kept and step < complete[-1]
    ]
    return sorted(doomed, key=lambda name: (not name.endswith(f"/{MANIFEST}"), name))


def _best_and_last(storage: Storage, prefix: str, complete: list[int], by: str) -> list[int]:
    """Which steps have the highest number of that name, and the last one."""
    found = {}
    for step in complete if by else []:
        with suppress(NotStored):  # deleted by another
            raw = storage.get(f"{_folder(prefix, step)}/{MANIFEST}")
            metrics = json.loads(raw)["meta"].get("metrics", {})
            if by in metrics:
                found[step] = metrics[by]
    return [max(found, key=lambda step: (found[step], -step)), max(found)] if found else []


def model_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over sorted names, dtypes, shapes and bytes: the same however they are stored."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        header = json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
        digest.update(len(header).to_bytes(8, "little") + header)
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_into(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy a state into a module; UserError, and no change, unless names and shapes agree."""
    own = module.state_dict()
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is unexpected" for name in tensors if name not in own]
    problems += [
        f"{name} is {_describe(tensors[name])} but must be {_describe(own[name])}"
        for name in own
        if name in tensors and _describe(tensors[name]) != _describe(own[name])
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"The checkpoint is of another architecture: {'; '.join(problems[:3])}{more}. Use the"
            " model settings it was trained with, or train the model anew in a new results folder."
        )
    module.load_state_dict(dict(tensors))


_LINE = {"file", "size", "sha256"}
_REMEDY = (
    "Delete that checkpoint's folder, and trained.json beside checkpoints/ if it is there: training"
    " then goes on from the checkpoint before."
)


def _folder(prefix: str, step: int) -> str:
    assert step >= 0
    return f"{prefix}/{step:010d}"


def _step(name: str, prefix: str, file: str | None = None) -> int | None:
    """The step of a stored name; None if it is not part of a checkpoint, or not this file of it."""
    step, _, rest = name.removeprefix(f"{prefix}/").partition("/")
    fits = len(step) >= 10 and step.isascii() and step.isdigit() and file in (None, rest)
    return int(step) if fits else None


def _format(state: Mapping[str, torch.Tensor]) -> bytes:
    # Copies, because safetensors refuses tensors that share memory or are not contiguous.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    data: bytes = format_tensors(copies)
    return data


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _put(storage: Storage, folder: str, name: str, data: bytes) -> dict[str, Any]:
    """Store one file; returns its line in the manifest."""
    digest = hashlib.sha256(data).hexdigest()
    stored = name
    # A name that is taken: a writer died before its manifest, or one is at work right now. Share
    # the file if it is the same, else use a name of our own; the first manifest decides.
    if not storage.put_new(f"{folder}/{name}", data) and storage.get(f"{folder}/{name}") != data:
        stored = f"{digest[:16]}-{name}"
        storage.put_new(f"{folder}/{stored}", data)
    return {"file": stored, "size": len(data), "sha256": digest}


def _get(
    storage: Storage, folder: str, manifest: Mapping[str, Any], name: str
) -> tuple[bytes, str]:
    """One verified file and where it lies."""
    line = manifest["files"][name]
    where = storage.uri(f"{folder}/{line['file']}")
    try:
        data = storage.get(f"{folder}/{line['file']}")
    except NotStored:
        raise UserError(f"{where} is missing. {_REMEDY}") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != line["sha256"]:
        raise UserError(
            f"{where} is damaged: it has {len(data)} bytes with SHA-256 {digest}, its manifest says"
            f" {line['size']} bytes with {line['sha256']}. {_REMEDY}"
        )
    return data, where


def _parse_manifest(where: str, raw: bytes, step: int) -> dict[str, Any]:
    try:
        manifest = json.loads(raw)
        version = manifest["version"] if manifest["format"] == FORMAT else None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where} is no checkpoint manifest ({error!r}). {_REMEDY}") from error
    if version != VERSION:
        raise UserError(
            f"{where} has the format version {version}, this s3ta reads {VERSION}: use the s3ta"
            " that wrote it, or another results folder."
        )
    try:
        needed = {f"{group}.safetensors" for group in manifest["groups"]}
        lines = manifest["files"].values()
        whole = needed <= manifest["files"].keys() and all(line.keys() >= _LINE for line in lines)
        fits = whole and isinstance(manifest["meta"], dict) and manifest["step"] == step
    except (KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise UserError(f"{where} is not the whole manifest of step {step}. {_REMEDY}")
    return dict(manifest)


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
