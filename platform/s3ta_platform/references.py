"""Which evaluated model a word on the command line means. Imports no torch.

Tried in this order: a trial folder or anything in it (`results/trials/KEY/...`, also on S3), then
in the results root a key, a model's name, an MLflow run id, the beginning of a key or of a model's
digest, and last a results root that holds exactly one evaluated model.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from s3ta.errors import UserError
from s3ta_platform.evaluation_record import EvaluationRecord, read_records
from s3ta_platform.storage import Storage, open_storage

IN_TRIAL = re.compile(r"(?P<root>.+)/trials/(?P<key>[0-9a-f]{16})(/.*)?")
KINDS = (
    "a trial's key or its beginning, a model's name, an MLflow run id, a path such as "
    "results/trials/KEY, or a results root with one evaluated model"
)


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One model with its evaluations."""

    storage: Storage
    trial: str
    digest: str
    """Of the model."""
    records: tuple[EvaluationRecord, ...]

    @property
    def name(self) -> str:
        """What a reader calls the model."""
        return self.records[0].model

    def __str__(self) -> str:
        return f"{self.name}: trial {self.trial}, model {self.digest[:12]}"


def find_model(word: str, results: str) -> Evaluated:
    """The one evaluated model that is meant; UserError that lists what there is."""
    inside = in_trial(word)
    if inside is not None:
        storage = open_storage(inside[0])
        found = [m for m in evaluated_models(storage) if m.trial == inside[1]]
        return _the_one(word, found, evaluated_models(storage), storage)
    storage = open_storage(results)
    models = evaluated_models(storage)
    for found in _candidates(word, models):
        if found:
            return _the_one(word, found, models, storage)
    if word.startswith("s3://") or Path(word).expanduser().is_dir():
        storage = open_storage(word)
        models = evaluated_models(storage)
        return _the_one(word, models, models, storage)
    return _the_one(word, [], models, storage)


def evaluated_models(storage: Storage) -> list[Evaluated]:
    """All models with an evaluation below this root, by name and key."""
    groups: dict[tuple[str, str], list[EvaluationRecord]] = {}
    for record in read_records(storage):
        groups.setdefault((record.trial, record.model_digest), []).append(record)
    models = [
        Evaluated(storage=storage, trial=trial, digest=digest, records=tuple(records))
        for (trial, digest), records in groups.items()
    ]
    return sorted(models, key=lambda m: (m.name, m.trial, m.digest))


def in_trial(word: str) -> tuple[str, str] | None:
    """Results root and key, if it is a trial's folder or something in it."""
    inside = IN_TRIAL.fullmatch(_absolute(word))
    return None if inside is None else (inside["root"], inside["key"])


def _absolute(word: str) -> str:
    return word if word.startswith("s3://") else os.path.abspath(os.path.expanduser(word))


def _candidates(word: str, models: list[Evaluated]) -> Iterator[list[Evaluated]]:
    """Whom the word may mean, the most literal meaning first."""
    yield [m for m in models if m.trial == word]
    yield [m for m in models if m.name == word]
    yield [m for m in models if word in _run_ids(m)]
    yield [m for m in models if word and (m.trial.startswith(word) or m.digest.startswith(word))]


def _run_ids(model: Evaluated) -> list[str]:
    """The MLflow runs that are recorded for this trial."""
    names = model.storage.list(f"trials/{model.trial}/tracking/")
    try:
        return [str(json.loads(model.storage.get(name))["run_id"]) for name in names]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"A file in trials/{model.trial}/tracking below {model.storage.root} names no MLflow "
            f"run ({error}). Delete it: the next `s3ta run` writes it anew."
        ) from error


def _the_one(
    word: str, found: list[Evaluated], models: list[Evaluated], storage: Storage
) -> Evaluated:
    if len(found) == 1:
        return found[0]
    listed = "".join(f"\n  {model}" for model in found or models)
    if found:
        raise UserError(
            f"{word!r} means {len(found)} evaluated models in {storage.root}:{listed}\n"
            "Name one of them by more of its key, or of its model's digest."
        )
    raise UserError(
        f"{word!r} names no evaluated model in {storage.root}. It must be {KINDS}. "
        + (f"There are:{listed}" if models else "None is evaluated there: run an experiment first.")
    )
