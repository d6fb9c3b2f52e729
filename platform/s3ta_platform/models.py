"""The model of an evaluation: from its checkpoint, or from its factory, and certainly that one."""

from torch import nn

from s3ta.errors import UserError
from s3ta.model import build
from s3ta_platform import checkpoints
from s3ta_platform.foreign import has_digest, load_factory
from s3ta_platform.jobs import EvaluateJob, SourceModel, open_images
from s3ta_platform.storage import Storage
from s3ta_platform.training_state import deployed_digest
from s3ta_platform.trials import checkpoint_prefix, trial_folder


def load_model(job: EvaluateJob, storage: Storage) -> nn.Module:
    """The model, on the CPU in eval mode; UserError unless it is the one that was planned."""
    own = SourceModel(
        name=job.name,
        model=job.model,
        digest=job.model_digest,
        root=job.root,
        trial=job.checkpoints_of or job.trial,
        step=job.checkpoint_step,
    )
    return load_source(own, job, storage)


def load_source(source: SourceModel, job: EvaluateJob, storage: Storage) -> nn.Module:
    """The same for a model that leads the evaluation's transfer attacks."""
    own = source.model.factory is None
    model = _trained(source, job.classes, storage) if own else _own(source, job)
    return model.eval()


def _trained(source: SourceModel, classes: int, storage: Storage) -> nn.Module:
    saved = checkpoints.load(storage, checkpoint_prefix(source.trial), source.step)
    model = build(source.model, classes, seed=0)
    checkpoints.load_into(model, saved.tensors["model"])
    found = deployed_digest(source.model, model)
    if found != source.digest:
        raise UserError(
            f"The last checkpoint of trial {source.trial} has the digest {found}, its record says "
            f"{source.digest}: one of them was changed. Delete {trial_folder(source.trial)} below "
            f"{source.root} and run again: the model is trained anew."
        )
    return model


def _own(source: SourceModel, job: EvaluateJob) -> nn.Module:
    model = load_factory(source.model)
    shape_CHW = open_images(job.data.test, job.data, job.model).shape_CHW
    if not has_digest(source.digest, model, shape_CHW, job.classes, source.model):
        raise UserError(
            f"model.factory {source.model.factory} gave this worker another model than the one "
            f"that was planned ({source.digest[:12]}): it must give the same weights and answers "
            "each time and everywhere. Load the weights from a file that every worker sees, or set "
            "torch.manual_seed in the function; give all machines the same version of its code."
        )
    return model
