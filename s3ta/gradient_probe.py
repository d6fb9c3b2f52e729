"""What the gradients that attacks follow are worth, looked at where the attacks start.

Looked at are the gradients of the fast copy, for those are followed: of the cross-entropy, and of
the margin z_y - max z_j without the floor that an attack gives it. B images of a tile, N images.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from s3ta.attacks import Losses, look
from s3ta.batch import Batch, Conditions, on_device, to_unit
from s3ta.draws import Key, Purpose
from s3ta.engine import Engine
from s3ta.objective import attack_loss
from s3ta.settings import Loss
from s3ta.spsa import Directions, estimate
from s3ta.tally import Rows
from s3ta.threat import LinfBall

COLUMNS = ("zero_ce", "zero_margin", "rho", "alignment", "roughness")


def expected_cosine(pairs: int, numbers: int) -> float:
    """Of a gradient in D dimensions and its estimate by n antithetic pairs: sqrt(n / (n + D - 1)).

    For a linear loss: |g|^2 is what the estimate's part along g is on average, and (D - 1) / n
    of it lies across.
    """
    return math.sqrt(pairs / (pairs + numbers - 1))


def probe_gradients(
    engine: Engine,
    batch: Batch,
    conditions: Conditions,
    *,
    epsilon: float,
    pairs: int,
    delta: float,
    on_image: Callable[[int], None] = lambda done: None,
) -> Rows:
    """One row per image, in order:

    - `zero_ce`, `zero_margin`: whether the gradient is zero in every place, at the start;
    - `rho`: the cosine of the margin's gradient and its SPSA estimate, over the expected one;
      0 where either is zero;
    - `alignment`: the cosine of the margin's gradients at the image and at the start
      (Andriushchenko and Flammarion 2020); 0 where either is zero;
    - `roughness`: |L(x + d) - L(x) - d grad L(x)| for the start x + d and the margin L.

    `on_image` hears how many are done.
    """
    rows: list[Rows] = []
    for first in range(0, len(batch), conditions.tile):
        part = batch.part(first, first + conditions.tile)
        seen = _Tile(engine, part, conditions, epsilon)
        rho = np.zeros(len(part), np.float32)
        for slot in range(len(part)):
            rho[slot] = seen.rho(slot, pairs, delta)
            on_image(first + slot + 1)
        columns = {**seen.columns(), "rho": rho}
        rows.append({"image_id": part.image_ids_B} | {n: columns[n][: len(part)] for n in COLUMNS})
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


class _Tile:
    """Images and the starts around them; empty slots hold the first image."""

    def __init__(self, engine: Engine, part: Batch, conditions: Conditions, epsilon: float) -> None:
        index_B = np.arange(conditions.tile)
        index_B[index_B >= len(part)] = 0
        self.engine, self.ids_B, self.seed = engine, part.image_ids_B[index_B], conditions.seed
        self.labels_B = on_device(part.labels_B[index_B], engine.device)
        images = to_unit(part.images_BCHW[index_B], engine.device)
        self.images = images.to(memory_format=engine.memory)
        key = Key(self.seed, Purpose.EVAL_NOISE)
        uniform = on_device(key.uniform(self.ids_B, images.shape[1:]), engine.device)
        ball = LinfBall.around(self.images, epsilon)
        self.starts = ball.noise_start(self.images, epsilon, uniform)
        self.margin = self._losses(Loss.difference)
        self.at_start = look(self.margin, self.starts)

    def _losses(self, loss: Loss) -> Losses:
        def losses(points: Tensor, slots: Tensor | None) -> tuple[Tensor, Tensor]:
            logits_BC = self.engine.logits(points)
            labels_B = self.labels_B if slots is None else self.labels_B[slots]
            return logits_BC, attack_loss(loss, logits_BC, labels_B, None)

        return losses

    def columns(self) -> Rows:
        """All but rho, for every slot."""
        at_image, start = look(self.margin, self.images), self.at_start
        ce = look(self._losses(Loss.cross_entropy), self.starts).gradient
        assert at_image.gradient is not None
        assert start.gradient is not None
        assert ce is not None
        planned_B = ((self.starts - self.images) * at_image.gradient).flatten(1).sum(1)
        rough_B = (start.losses_B - at_image.losses_B - planned_B).abs()
        found = {
            "zero_ce": (ce == 0).flatten(1).all(1),
            "zero_margin": (start.gradient == 0).flatten(1).all(1),
            "alignment": cosine(at_image.gradient, start.gradient),
            "roughness": rough_B,
        }
        return {name: values_B.cpu().numpy() for name, values_B in found.items()}

    def rho(self, slot: int, pairs: int, delta: float) -> float:
        """Of one slot's image."""
        gradient, point = self.at_start.gradient, self.starts[slot]
        assert gradient is not None
        directions = Directions(
            Key(self.seed, Purpose.SPSA), int(self.ids_B[slot]), point.numel(), point.device
        )
        estimated = estimate(self.margin, point, slot, directions, pairs, delta)
        found = cosine(gradient[slot : slot + 1], estimated[None])
        return float(found) / expected_cosine(pairs, point.numel())


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Per image (B,); 0 where either is zero."""
    a_BD, b_BD = a.flatten(1).double(), b.flatten(1).double()
    lengths_B = a_BD.norm(dim=1) * b_BD.norm(dim=1)
    inner_B = (a_BD * b_BD).sum(1)
    return torch.where(lengths_B > 0, inner_B / lengths_B.clamp(min=1e-300), 0.0).float()
