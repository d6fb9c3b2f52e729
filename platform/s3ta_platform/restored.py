"""Models that are trained already, by a word on the command line, with all their settings.

Imports no torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from s3ta.errors import UserError
from s3ta_platform.references import find_model, in_trial
from s3ta_platform.storage import Storage, open_storage
from s3ta_platform.trials import Trained, read_trained, trained_name


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A trained model as it is stored."""

    storage: Storage
    trial: str
    trained: Trained
    settings: dict[str, Any]
    """See `Trained.settings`."""

    @property
    def takes(self) -> tuple[int, int, int | None]:
        """Classes, channels and size of its images: two models that agree take the same ones."""
        s = self.settings
        return s["classes"], len(s["model"]["mean"]), s["data"]["image_size"]

    @property
    def epsilon_255(self) -> float | None:
        """Of its adversarial training; None if there was none."""
        train = self.settings["train"]
        return None if train["objective"] == "plain" else float(train["attack"]["epsilon_255"])


def trained_model(word: str, results: str) -> Restored:
    """The one trained model that is meant; UserError if there is none."""
    storage, trial = _find(word, results)
    trained = read_trained(storage, trial)
    if trained is None:
        raise UserError(
            f"{word!r} means trial {trial} of {storage.root}, which was not trained here, or not "
            "to its end. For a model of your own set model.factory instead; training is ended by "
            "the command that began it."
        )
    if trained.settings is None:
        name = trained_name(trial)
        raise UserError(
            f"{storage.uri(name)} was written by an earlier version and does not say with which "
            "settings. Delete it and run its experiment file again: it is written anew from the "
            "last checkpoint."
        )
    return Restored(storage=storage, trial=trial, trained=trained, settings=trained.settings)


def others_like(model: Restored) -> list[str]:
    """Keys of all other models of its results root that take the same images, sorted."""
    return [
        other.trial
        for other in _restorable(model.storage)
        if other.takes == model.takes and other.trained.model_digest != model.trained.model_digest
    ]


def _find(word: str, results: str) -> tuple[Storage, str]:
    inside = in_trial(word)
    if inside is not None:
        return open_storage(inside[0]), inside[1]
    storage = open_storage(results)
    keys = _trained_keys(storage)
    found = [key for key in keys if key == word] or [k for k in keys if word and k.startswith(word)]
    if len(found) == 1:
        return storage, found[0]
    if len(found) > 1:
        raise UserError(
            f"{word!r} is the beginning of {len(found)} trained models in {storage.root}: "
            f"{', '.join(found)}. Name one of them by more of its key."
        )
    try:
        model = find_model(word, results)
    except UserError as error:
        raise UserError(f"{error} (Trained are: {', '.join(keys) or 'none'}.)") from error
    return model.storage, model.trial


def _trained_keys(storage: Storage) -> list[str]:
    names = storage.list("trials/")
    return [name.split("/")[1] for name in names if name.endswith("/trained.json")]


def _restorable(storage: Storage) -> Iterator[Restored]:
    for trial in _trained_keys(storage):
        trained = read_trained(storage, trial)
        if trained is not None and trained.settings is not None:
            yield Restored(storage=storage, trial=trial, trained=trained, settings=trained.settings)
