"""The loss on a plane around an image (S3TA sec. 5.3, Figure 6).

The plane is x + u a + v r: a is the worst perturbation that an attack found, over epsilon, and r
random signs. No entry of a or r is larger than 1, so all points with |u| + |v| <= epsilon lie in
the ball: the diamond of the figure. The image range is ignored, as everywhere on the plane.

P points per axis, B slots of a tile.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from s3ta.draws import Key, Purpose
from s3ta.engine import Engine
from s3ta.objective import cross_entropy, margin

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Two losses of one image: the rows go along v, the columns along u."""

    cross_entropy_PP: npt.NDArray[np.float32]
    margin_PP: npt.NDArray[np.float32]
    """z_y - max of the others: negative where the model is wrong."""


def random_signs(seed: int, image_id: int, shape_CHW: tuple[int, ...]) -> Tensor:
    """A direction of +1 and -1 that belongs to the image, (C, H, W)."""
    uniform_1CHW = Key(seed, Purpose.RANDOM_SIGNS).uniform([image_id], tuple(shape_CHW))
    return torch.from_numpy(np.where(uniform_1CHW[0] < 0.5, -1, 1).astype(np.float32))


def offsets(epsilon: float, points: int, reach: float) -> Floats:
    """Where the plane is sampled along each axis: up to `reach` epsilons to both sides, (P,)."""
    steps: Floats = np.linspace(-reach, reach, points)
    return steps * epsilon


@torch.no_grad()
def surface(
    engine: Engine,
    image_CHW: Tensor,
    label: int,
    worst_CHW: Tensor,
    signs_CHW: Tensor,
    offsets_P: Floats,
    tile: int,
) -> Surface:
    """Both losses of the deployed model on the plane x + u a + v r: a is `worst_CHW`, an attack's
    perturbation over epsilon, and r is `signs_CHW`.

    Points are computed in whole tiles, so that the bits don't depend on how many there are.
    """
    device = engine.device
    v_N, u_N = (
        torch.from_numpy(m.reshape(-1)).float()
        for m in np.meshgrid(*2 * (offsets_P,), indexing="ij")
    )
    losses: list[Tensor] = []
    for start in range(0, len(u_N), tile):
        u_B, v_B = (_padded(t[start : start + tile], tile).to(device) for t in (u_N, v_N))
        points = image_CHW + u_B.view(-1, 1, 1, 1) * worst_CHW + v_B.view(-1, 1, 1, 1) * signs_CHW
        logits_BC = engine.judged(points)
        labels_B = torch.full((tile,), label, device=device)
        both = [cross_entropy(logits_BC, labels_B), margin(logits_BC, labels_B)]
        losses.append(torch.stack(both).cpu())
    found = torch.cat(losses, dim=1)[:, : len(u_N)].view(2, len(offsets_P), len(offsets_P)).numpy()
    return Surface(cross_entropy_PP=found[0], margin_PP=found[1])


def _padded(numbers_N: Tensor, tile: int) -> Tensor:
    return torch.cat([numbers_N, numbers_N.new_zeros(tile - len(numbers_N))])


def linearity(losses_PP: npt.NDArray[np.floating], offsets_P: Floats, epsilon: float) -> float:
    """How much of the loss's variance within the diamond its best plane explains, R^2 <= 1.

    Information, not a test: a saturated model looks smoothest of all. 1 where the loss is constant.
    """
    v_PP, u_PP = np.meshgrid(offsets_P, offsets_P, indexing="ij")
    inside = np.abs(u_PP) + np.abs(v_PP) <= epsilon * (1 + 1e-9)
    wanted = losses_PP[inside].astype(np.float64)
    plane = np.stack([np.ones(len(wanted)), u_PP[inside], v_PP[inside]], axis=1)
    fitted = plane @ np.linalg.lstsq(plane, wanted, rcond=None)[0]
    spread = ((wanted - wanted.mean()) ** 2).sum()
    return 1.0 if spread == 0 else float(1 - ((wanted - fitted) ** 2).sum() / spread)
