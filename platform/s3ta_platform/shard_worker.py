"""What a worker of the fan-out does: load the model once, then piece after piece."""

import numpy as np
import torch
from torch import nn

from s3ta.errors import UserError
from s3ta.evaluation import Batch, Conditions, attack_images, place_matters, to_unit
from s3ta.model import build
from s3ta.tally import Tally
from s3ta_platform import checkpoints
from s3ta_platform.data import ParquetImages
from s3ta_platform.devices import pin_arithmetic
from s3ta_platform.gallery import make_gallery
from s3ta_platform.jobs import EvaluateJob, open_images
from s3ta_platform.record import RESULT_VERSION, plain
from s3ta_platform.rows import to_parquet
from s3ta_platform.shards import DoWork, Portraits, Shard, Work
from s3ta_platform.storage import open_storage
from s3ta_platform.train import deployed_digest
from s3ta_platform.trials import checkpoint_prefix, trial_folder


def build_worker(job: EvaluateJob) -> DoWork:
    """The function that does a piece of the evaluation in this process."""
    pin_arithmetic(job.threads)
    storage = open_storage(job.root)
    images = open_images(job.data.test, job.data, job.model)
    saved = checkpoints.load(storage, checkpoint_prefix(job.trial), job.checkpoint_step)
    model = build(job.model, job.classes, seed=0)
    checkpoints.load_into(model, saved.tensors["model"])
    _require_digest(job, model)
    model.to(job.device)
    _require_same_places(job, model, images)
    conditions = Conditions(
        classes=job.classes,
        seed=job.evaluate.seed,
        tile=job.evaluate.tile,
        device=job.device,
    )

    def do(work: Work) -> Tally:
        pixels, labels = images.read(work.image_ids)
        ids = np.array(work.image_ids, dtype=np.int64)
        batch = Batch(images_BCHW=pixels, labels_B=labels, image_ids_B=ids)
        if isinstance(work, Portraits):
            storage.put_new(work.name, make_gallery(model, batch, work, conditions))
            return Tally()
        found = attack_images(model, batch, work.trajectory, conditions)
        storage.put_new(work.name, to_parquet(found, _about(job, work)))
        return Tally.of(found)

    return do


def _require_digest(job: EvaluateJob, model: nn.Module) -> None:
    found = deployed_digest(job.model, model)
    if found != job.model_digest:
        raise UserError(
            f"The last checkpoint of trial {job.trial} has the digest {found}, its record says "
            f"{job.model_digest}: one of them was changed. Delete {trial_folder(job.trial)} below "
            f"{job.root} and run again: the model is trained anew."
        )


def _require_same_places(job: EvaluateJob, model: nn.Module, images: ParquetImages) -> None:
    """Rows may not depend on how the work is cut, so not on the place in a tile either."""
    image = to_unit(images.read(images.ids_N[:1])[0], job.device)[0]
    if place_matters(model, image, job.evaluate.tile):
        raise UserError(
            f"On this processor an image's place in a tile of {job.evaluate.tile} changes the last "
            "bits of this model's answers, so results would depend on how the work is cut. Make "
            "the sizes in model.attention multiples of 4, or choose another evaluate.tile."
        )


def _about(job: EvaluateJob, shard: Shard) -> dict[str, object]:
    return {
        "key": shard.key,
        "model_digest": job.model_digest,
        "attack": shard.attack,
        "trajectory": plain(shard.trajectory),
        "images_digest": job.test_digest,
        "seed": job.evaluate.seed,
        "tile": job.evaluate.tile,
        "device": job.device_class,
        "torch": torch.__version__,
        "result_version": RESULT_VERSION,
    }
