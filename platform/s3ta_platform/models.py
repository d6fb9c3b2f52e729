"""The model of an evaluation: from its checkpoint, or from its factory, and certainly that one."""

from torch import nn

from s3ta.errors import UserError
from s3ta.model import build
from s3ta_platform import checkpoints
from s3ta_platform.foreign import has_digest, load_factory
from s3ta_platform.jobs import EvaluateJob, open_images
from s3ta_platform.storage import Storage
from s3ta_platform.training_state import deployed_digest
from s3ta_platform.trials import checkpoint_prefix, trial_folder


def load_model(job: EvaluateJob, storage: Storage) -> nn.Module:
    """The model, on the CPU in eval mode; UserError unless it is the one that was planned."""
    model = _trained(job, storage) if job.model.factory is None else _own(job)
    return model.eval()


def _trained(job: EvaluateJob, storage: Storage) -> nn.Module:
    trained_as = job.checkpoints_of or job.trial
    saved = checkpoints.load(storage, checkpoint_prefix(trained_as), job.checkpoint_step)
    model = build(job.model, job.classes, seed=0)
    checkpoints.load_into(model, saved.tensors["model"])
    found = deployed_digest(job.model, model)
    if found != job.model_digest:
        raise UserError(
            f"The last checkpoint of trial {trained_as} has the digest {found}, its record says "
            f"{job.model_digest}: one of them was changed. Delete {trial_folder(trained_as)} below "
            f"{job.root} and run again: the model is trained anew."
        )
    return model


def _own(job: EvaluateJob) -> nn.Module:
    model = load_factory(job.model)
    shape_CHW = open_images(job.data.test, job.data, job.model).shape_CHW
    if not has_digest(job.model_digest, model, shape_CHW, job.classes, job.model):
        raise UserError(
            f"model.factory {job.model.factory} gave this worker another model than the one that "
            f"was planned ({job.model_digest[:12]}): it must give the same weights and answers "
            "each time and everywhere. Load the weights from a file that every worker sees, or set "
            "torch.manual_seed in the function; give all machines the same version of its code."
        )
    return model
