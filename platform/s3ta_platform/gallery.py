"""A few images kept whole, before and after an attack, with the attention maps of both."""

import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from s3ta.errors import UserError
from s3ta.evaluation import Batch, Conditions, attack_tile, to_unit
from s3ta.model import S3TA
from s3ta_platform.results import Gallery
from s3ta_platform.shards import Portraits
from s3ta_platform.storage import Storage


def make_gallery(
    model: nn.Module, batch: Batch, portraits: Portraits, conditions: Conditions
) -> bytes:
    """The gallery as safetensors. The same draws as in the evaluation give the same images."""
    parts = [
        _attacked_part(model, batch.part(start, start + conditions.tile), portraits, conditions)
        for start in range(0, len(batch), conditions.tile)
    ]
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    data: bytes = save_tensors({name: t.cpu().contiguous() for name, t in tensors.items()})
    return data


def _attacked_part(
    model: nn.Module, batch: Batch, portraits: Portraits, conditions: Conditions
) -> dict[str, Tensor]:
    n = len(batch)
    tile = attack_tile(model, batch, portraits.trajectory, conditions)
    clean = to_unit(batch.images_BCHW, conditions.device)
    attacked = tile.state.attacked[:n]
    tensors = {
        "image_ids_B": torch.from_numpy(batch.image_ids_B),
        "labels_B": torch.from_numpy(batch.labels_B),
        "targets_B": tile.targets_B[:n],
        "clean_predictions_B": tile.clean_predictions_B[:n],
        "predictions_B": tile.state.readings[-1].predictions_B[:n],
        "clean_BCHW": clean,
        "attacked_BCHW": attacked,
    }
    if isinstance(model, S3TA):
        model.eval()
        with torch.no_grad():
            tensors["clean_maps_BTQHW"] = model.trace(clean).maps_BTQHW
            tensors["attacked_maps_BTQHW"] = model.trace(attacked).maps_BTQHW
    return tensors


def read_gallery(storage: Storage, portraits: Portraits) -> Gallery:
    """The stored gallery; UserError if it is damaged."""
    try:
        arrays = load_arrays(storage.get(portraits.name))
        return Gallery(attack=portraits.attack, steps=portraits.trajectory.steps, **arrays)
    except (SafetensorError, TypeError) as error:
        raise UserError(
            f"{storage.uri(portraits.name)} is not a whole gallery ({error}). "
            "Delete it and run again: it is computed anew."
        ) from error
