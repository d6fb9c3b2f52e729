"""What becomes of a step whose loss or gradient is not finite: stop, skip, or roll back.

Every worker learns of it from the step's sum, so all do the same. A step that has passed without an
update is put on record, and passes again whenever it is repeated: also on a processor whose last
bits would let it succeed this time.
"""

import json
from collections.abc import Sequence

from s3ta.errors import UserError
from s3ta.order import Ids
from s3ta.settings import OnNonfinite
from s3ta.sums import StepReport
from s3ta_platform import checkpoints
from s3ta_platform.storage import Storage
from s3ta_platform.training_state import Training, last_epoch_end
from s3ta_platform.trials import checkpoint_prefix, trial_folder

MOST_IN_AN_EPOCH = 10
"""More such steps are no accident."""
NAMED = 64
"""So many image ids are named in an error."""


class NotFiniteError(UserError):
    """Raised by all workers at the same step: tried again, it would be raised again."""


def on_record(storage: Storage, key: str) -> set[int]:
    """Steps of a trial that pass without an update."""
    return {int(name.split("/")[-1].split(".")[0]) for name in storage.list(_folder(key))}


def pass_over(
    training: Training, storage: Storage, report: StepReport, ids: Ids, write: bool
) -> None:
    """Do what `on_nonfinite` says; `ids` are the step's images, and one worker writes the record.

    NotFiniteError if it says stop, or if it has happened too often.
    """
    job, policy = training.job, training.job.train.on_nonfinite
    suspects = _suspects(report.not_finite, ids, job.train.microbatch)
    epoch = training.step // training.epoch_steps
    before = sum(step // training.epoch_steps == epoch for step in training.not_finite)
    if policy is OnNonfinite.stop or before >= MOST_IN_AN_EPOCH:
        raise NotFiniteError(_words(training, storage, report, suspects))
    if write:
        record = {
            "step": training.step,
            "epoch": epoch,
            "loss": str(report.loss),  # JSON has no NaN
            "image_ids": suspects,
            "policy": policy.name,
        }
        storage.put_new(f"{_folder(job.key)}{training.step:010d}.json", json.dumps(record).encode())
    if policy is OnNonfinite.rollback:
        training.restore(storage, last_epoch_end(training, storage))


def _folder(key: str) -> str:
    return f"{trial_folder(key)}/not_finite/"


def _suspects(microbatches: Sequence[int], ids: Ids, size: int) -> list[int]:
    """The images of the microbatches in question."""
    return [int(i) for m in microbatches for i in ids[m * size : (m + 1) * size]]


def _words(training: Training, storage: Storage, report: StepReport, suspects: list[int]) -> str:
    job = training.job
    steps = [
        s for s in checkpoints.steps(storage, checkpoint_prefix(job.key)) if s <= training.step
    ]
    last = f"{checkpoint_prefix(job.key)}/{steps[-1]:010d}" if steps else "none: it is epoch 0"
    more = f" and {len(suspects) - NAMED} more" if len(suspects) > NAMED else ""
    return (
        f"The training loss of step {training.step} (epoch "
        f"{training.step // training.epoch_steps}) is {report.loss:.4g}, or its gradient is not "
        f"finite: in the microbatches of images {', '.join(map(str, suspects[:NAMED]))}{more}. "
        f"The last good checkpoint is {last}. Lower train.learning_rate, look at these images, or "
        "set train.on_nonfinite to skip or rollback, which at most "
        f"{MOST_IN_AN_EPOCH} steps of an epoch may need."
    )
