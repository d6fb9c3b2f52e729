"""A few images kept whole, before and after an attack, with the attention maps of both."""

from collections.abc import Sequence

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.torch import save as save_tensors
from torch import Tensor

from s3ta.batch import Batch, to_unit
from s3ta.engine import Engine
from s3ta.errors import UserError
from s3ta.model import S3TA
from s3ta.tally import Rows
from s3ta_platform.record import RESULT_VERSION
from s3ta_platform.results import Gallery
from s3ta_platform.shards import Portraits
from s3ta_platform.storage import Storage

NAMES = {
    "image_id": "image_ids_B",
    "label": "labels_B",
    "target": "targets_B",
    "clean_prediction": "clean_predictions_B",
    "prediction": "predictions_B",
}
"""Columns of the last reading, and what a gallery calls them."""


def make_gallery(engine: Engine, batch: Batch, rows: Rows, attacked: Tensor) -> bytes:
    """The gallery of attacked images as safetensors; `rows` are of one reading, in their order."""
    clean = to_unit(batch.images_BCHW, engine.device)
    columns = {name: torch.from_numpy(rows[name].astype(np.int64)) for name in NAMES}
    tensors = {new: columns[name] for name, new in NAMES.items()}
    tensors |= {"clean_BCHW": clean, "attacked_BCHW": attacked}
    if isinstance(engine.judge, S3TA):
        with torch.no_grad():
            tensors["clean_maps_BTQHW"] = engine.judge.trace(clean).maps_BTQHW
            tensors["attacked_maps_BTQHW"] = engine.judge.trace(attacked).maps_BTQHW
    return _safetensors(tensors)


def no_gallery() -> bytes:
    """In place of the gallery of images that can't be attacked."""
    return _safetensors({})


def _safetensors(tensors: dict[str, Tensor]) -> bytes:
    whole = {name: t.cpu().contiguous() for name, t in tensors.items()}
    data: bytes = save_tensors(whole, metadata={"result_version": str(RESULT_VERSION)})
    return data


def read_gallery(storage: Storage, portraits: Portraits) -> Gallery | None:
    """The stored gallery, None if it is empty; UserError if it is damaged."""
    try:
        arrays = load_arrays(storage.get(portraits.name))
        if not arrays:
            return None
        return Gallery(attack=portraits.attack, steps=portraits.trajectory.steps, **arrays)
    except (SafetensorError, TypeError) as error:
        raise UserError(
            f"{storage.uri(portraits.name)} is not a whole gallery ({error}). "
            "Delete it and run again: it is computed anew."
        ) from error


def joined(galleries: Sequence[Gallery]) -> Gallery:
    """The same attack on several groups of images, as one gallery without maps."""
    names = [*NAMES.values(), "clean_BCHW", "attacked_BCHW"]
    arrays = {name: np.concatenate([getattr(g, name) for g in galleries]) for name in names}
    return Gallery(attack=galleries[0].attack, steps=galleries[0].steps, **arrays)
