"""Checks of the models that were evaluated: their digests and their checkpoints. No torch."""

from s3ta.errors import UserError
from s3ta_platform.storage import Storage, StoreAwayError
from s3ta_platform.trials import (
    Trained,
    checkpoint_steps,
    read_trained,
    trained_name,
    verify_checkpoint,
)
from s3ta_platform.verified import Check, Root, Tick


def trials_in(storage: Storage) -> list[str]:
    """The keys of all trials below a root."""
    return sorted({name.split("/")[1] for name in storage.list("trials/")})


def check_digests(root: Root) -> Check:
    """Is the model that was attacked the one that was trained?"""
    check = Check(name="models")
    trials = sorted({record.trial for record in root.records})
    for trial in trials:
        uri = root.storage.uri(trained_name(trial))
        try:
            trained = read_trained(root.storage, trial)
        except StoreAwayError:
            raise
        except UserError as error:
            check.doubts.append(str(error))
            continue
        if trained is None:
            check.notes.append(f"{uri} is not there: trial {trial} was not trained here.")
            continue
        check.doubts += _digest_doubts(root, trial, trained, uri)
    check.words = f"{len(trials)} evaluated"
    return check


def _digest_doubts(root: Root, trial: str, trained: Trained, uri: str) -> list[str]:
    return [
        f"{uri} names the model {trained.model_digest[:12]}, the evaluation "
        f"{root.storage.uri(record.name)} the model {record.model_digest[:12]}. One of them is of "
        "another training: delete the evaluation, or the whole trial, and run again."
        for record in root.records
        if record.trial == trial and record.model_digest != trained.model_digest
    ]


def check_checkpoints(root: Root, tick: Tick) -> Check:
    """Is every checkpoint whole?"""
    check, count = Check(name="checkpoints"), 0
    for trial in trials_in(root.storage):
        for step in checkpoint_steps(root.storage, trial):
            tick()
            count += 1
            try:
                verify_checkpoint(root.storage, trial, step)
            except StoreAwayError:
                raise
            except UserError as error:
                check.doubts.append(str(error))
    check.words = f"{count} whole"
    return check
