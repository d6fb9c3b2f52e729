"""Where a trial's files lie, and the record that says it is trained. Imports no torch."""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from s3ta.errors import UserError
from s3ta_platform.storage import NotStored, Storage, StoreAwayError

BEST_BY = "adversarial_top1"
"""The checkpoint with the highest mean of it over its epoch is kept beside the last ones."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model that can be attacked: its training has ended, or was not ours."""

    step: int
    """Of its checkpoint; 0 for a model of a factory, which has none."""
    model_digest: str
    """Names the settings and all weights of the deployed model; of a factory's its answers too."""
    parameters: int
    settings: dict[str, Any] | None = None
    """`model`, `train` and `data` as they were, and `classes`: with them the key alone is enough to
    load the model. None for a model of a factory, and for records of earlier versions."""


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """Successive halving has ended a trial, and why."""

    epoch: int
    metric: str
    value: float
    cutoff: float | None
    """What the value had to reach."""
    others: int
    """Trials that were there before, from which the cutoff comes."""

    @property
    def words(self) -> str:
        return (
            f"stopped after epoch {self.epoch}: {self.metric} was {self.value:.6g}, the cutoff of "
            f"{self.others} other trial(s) {self.cutoff:.6g}"
        )


def trial_folder(key: str) -> str:
    return f"trials/{key}"


def checkpoint_prefix(key: str) -> str:
    return f"{trial_folder(key)}/checkpoints"


def trained_name(key: str) -> str:
    return f"{trial_folder(key)}/trained.json"


def read_trained(storage: Storage, key: str) -> Trained | None:
    """The record of a trained trial, or None."""
    name = trained_name(key)
    try:
        record = storage.get(name)
    except NotStored:
        return None
    try:
        return Trained(**json.loads(record))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{storage.uri(name)} is not the record of a trained model ({error}). "
            "Delete that file: it is written anew from the last checkpoint."
        ) from error


def stopped_name(key: str, asha_key: str) -> str:
    """`asha_key` names the sweep: under another one, or without halving, the trial goes on."""
    return f"{trial_folder(key)}/stopped/{asha_key}.json"


def read_stopped(storage: Storage, key: str, asha_key: str) -> Stopped | None:
    """Why a trial was stopped in this sweep, or None."""
    name = stopped_name(key, asha_key)
    try:
        return Stopped(**json.loads(storage.get(name)))
    except NotStored:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{storage.uri(name)} does not say why a trial was stopped ({error}). "
            "Delete that file: the trial goes on."
        ) from error


def read_history(storage: Storage, key: str) -> list[dict[str, float]]:
    """The training curve up to the last complete checkpoint."""
    for _ in range(3):
        steps = checkpoint_steps(storage, key)
        if not steps:
            break
        folder = f"{checkpoint_prefix(key)}/{steps[-1]:010d}"
        try:
            manifest = json.loads(storage.get(f"{folder}/manifest.json"))
            history = storage.get(f"{folder}/{manifest['files']['history.json']['file']}")
        except NotStored:  # it was pruned meanwhile, so there is a later one
            continue
        return json.loads(history)  # type: ignore[no-any-return]
    return []


def verify_checkpoint(storage: Storage, key: str, step: int) -> None:
    """UserError unless a checkpoint of this trial is whole and unchanged. Builds no model."""
    folder = f"{checkpoint_prefix(key)}/{step:010d}"
    also = f" and {trained_name(key)}" if storage.exists(trained_name(key)) else ""
    remedy = f"Delete {folder}{also} below {storage.root}: training goes on from what is left."
    try:
        manifest = json.loads(storage.get(f"{folder}/manifest.json"))
        owner = manifest["meta"]["trial"]
        digests = {line["file"]: line["sha256"] for line in manifest["files"].values()}
        found = {f: hashlib.sha256(storage.get(f"{folder}/{f}")).hexdigest() for f in digests}
    except NotStored as error:
        raise UserError(f"The checkpoint of trial {key} is not whole: {error}. {remedy}") from None
    except StoreAwayError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{storage.uri(folder)}/manifest.json is no manifest. {remedy}") from error
    if owner != key:
        raise UserError(
            f"{storage.uri(folder)} is a checkpoint of trial {owner}, another model or training; "
            f"it must be of {key}. {remedy}"
        )
    for file, digest in digests.items():
        if found[file] != digest:
            raise UserError(
                f"{storage.uri(f'{folder}/{file}')} was changed: its SHA-256 begins with "
                f"{found[file][:12]}, its manifest says {digest[:12]}. {remedy}"
            )


def checkpoint_references(storage: Storage, key: str) -> dict[str, dict[str, Any]]:
    """Every complete checkpoint by its step: where it is, its manifest's digest, its metrics."""
    found = {}
    for step in checkpoint_steps(storage, key):
        name = f"{checkpoint_prefix(key)}/{step:010d}/manifest.json"
        with suppress(NotStored, ValueError, KeyError, TypeError):  # pruned meanwhile, or damaged
            manifest = storage.get(name)
            found[str(step)] = {
                "manifest": storage.uri(name),
                "sha256": hashlib.sha256(manifest).hexdigest(),
                "metrics": json.loads(manifest)["meta"]["metrics"],
            }
    return found


def checkpoint_steps(storage: Storage, key: str) -> list[int]:
    """Steps of the complete checkpoints, rising."""
    names = storage.list(f"{checkpoint_prefix(key)}/")
    return [int(name.split("/")[-2]) for name in names if name.endswith("/manifest.json")]
