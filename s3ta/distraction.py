"""Does an attack move the attention, and is that why it works? (S3TA sec. 6.1, Figure 9)

A moved map may be the cause of a wrong answer or its consequence. So beside the measures of what
has moved stand answers that are read with other maps: an attacked image looked at where the model
looks on the clean one, and the other way round.

B images, T glances, Q heads, H W the attention's grid.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from s3ta.model import S3TA


@dataclass(frozen=True, kw_only=True)
class Views:
    """Each image in four versions, (B, C, H, W) in [0, 1]."""

    clean: Tensor
    attacked: Tensor
    held: Tensor
    """Attacked by one who believed that the maps stay as they are on the clean image."""
    random: Tensor
    """Random signs of the same epsilon: how far maps move for a change that nobody chose."""


ANSWERS = (
    "clean",
    "attacked",
    "random",
    "attacked_clean_maps",
    "clean_attacked_maps",
    "clean_random_maps",
    "held_clean_maps",
    "held",
)
"""The version of the image, and whose maps it is read with if not its own."""


@torch.no_grad()
def study(model: S3TA, views: Views, masks_BHW: Tensor | None) -> dict[str, Tensor]:
    """Predictions (B,) under each of ANSWERS, and for the attacked, held and random images how far
    the maps have moved, (B, T, Q): `moved_...` and, where there are object masks, `away_...`."""
    images = {"clean": views.clean, "attacked": views.attacked}
    images |= {"held": views.held, "random": views.random}
    traces = {name: model.trace(image) for name, image in images.items()}
    maps = {name: trace.maps_BTQHW for name, trace in traces.items()}
    found = {name: trace.logits_BTC[:, -1].argmax(dim=1) for name, trace in traces.items()}
    for image, other in (
        ("attacked", "clean"),
        ("clean", "attacked"),
        ("clean", "random"),
        ("held", "clean"),
    ):
        logits_BC = model.read(images[image], maps[other])
        found[f"{image}_{other}_maps"] = logits_BC.argmax(dim=1)
    for name in ("attacked", "held", "random"):
        found[f"moved_{name}"] = moved_mass(maps["clean"], maps[name])
        if masks_BHW is not None:
            found[f"away_{name}"] = away(maps["clean"], maps[name], masks_BHW)
    return found


def moved_mass(clean_BTQHW: Tensor, other_BTQHW: Tensor) -> Tensor:
    """Half the sum over places of |A_other - A_clean|: 0 for the same map, 1 for one elsewhere."""
    return (other_BTQHW - clean_BTQHW).abs().sum(dim=(3, 4)) / 2


def away(clean_BTQHW: Tensor, other_BTQHW: Tensor, masks_BHW: Tensor) -> Tensor:
    """sum_p m_p (A_clean - A_other): the attention that has left the object, (B, T, Q)."""
    return ((clean_BTQHW - other_BTQHW) * masks_BHW[:, None, None]).sum(dim=(3, 4))


def object_masks(images: Tensor, above: float, grid: tuple[int, int]) -> Tensor:
    """The share of each place of the grid that is brighter than `above`: the object where the
    background is dark, (B, H, W)."""
    bright = (images.mean(dim=1, keepdim=True) > above).float()
    return F.adaptive_avg_pool2d(bright, grid)[:, 0]
