"""Attack images in fixed tiles -> one record per image and reading.

Images are grouped into tiles of a fixed size, the last one padded, because kernels may round
differently for other batch sizes and a signed step turns the last bit into another image.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from s3ta.attacks import PGD, AttackState, frozen
from s3ta.draws import Key, Purpose
from s3ta.settings import Goal
from s3ta.tally import Array, Rows
from s3ta.trajectory import Trajectory

NO_TARGET = -1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images with what is known of them, on the CPU."""

    images_BCHW: npt.NDArray[np.uint8]
    labels_B: npt.NDArray[np.int64]
    image_ids_B: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        # torch takes neither read-only arrays nor negative strides.
        for name in ("images_BCHW", "labels_B", "image_ids_B"):
            object.__setattr__(self, name, np.require(getattr(self, name), requirements=["C", "W"]))

    def __len__(self) -> int:
        return len(self.labels_B)

    def part(self, start: int, stop: int) -> "Batch":
        return Batch(
            images_BCHW=self.images_BCHW[start:stop],
            labels_B=self.labels_B[start:stop],
            image_ids_B=self.image_ids_B[start:stop],
        )


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What, beside model, attack and image, decides the bits of a record."""

    classes: int
    seed: int
    """Of targets and starts; not the training seed."""
    tile: int = 32
    device: str = "cpu"


@dataclass(frozen=True)
class AttackedTile:
    """One tile before and after, padding included."""

    clean_predictions_B: Tensor
    targets_B: Tensor
    state: AttackState


def to_unit(images_BCHW: npt.NDArray[np.uint8], device: str) -> Tensor:
    """uint8 -> float32 in [0, 1]."""
    return torch.from_numpy(images_BCHW).to(device).float() / 255


def draw_targets(batch: Batch, seed: int, classes: int) -> npt.NDArray[np.int64]:
    """The evaluation's target classes: they depend on (seed, image id) alone."""
    key = Key(seed, Purpose.EVAL_TARGET)
    return key.wrong_classes(batch.image_ids_B, batch.labels_B, classes)


def attack_tile(
    model: nn.Module, batch: Batch, trajectory: Trajectory, conditions: Conditions
) -> AttackedTile:
    """Attack at most `tile` images, padded to exactly `tile`."""
    device, tile, n = conditions.device, conditions.tile, len(batch)
    assert n <= tile
    targeted = trajectory.goal is Goal.random_target
    targets = (
        draw_targets(batch, conditions.seed, conditions.classes)
        if targeted
        else np.full(n, NO_TARGET, dtype=np.int64)
    )
    noise_key = Key(conditions.seed, Purpose.EVAL_NOISE, epoch=trajectory.restart)
    uniform = noise_key.uniform(batch.image_ids_B, batch.images_BCHW.shape[1:])
    images = _pad(to_unit(batch.images_BCHW, device), tile)
    labels_B = _pad(torch.from_numpy(batch.labels_B).to(device), tile)
    targets_B = _pad(torch.from_numpy(targets).to(device), tile)
    with frozen(model) as f:
        clean_predictions_B = f(images.requires_grad_()).argmax(dim=1)
        pgd = PGD(f, trajectory, images.detach(), labels_B, targets_B if targeted else None)
        state = pgd.run(pgd.begin(_pad(torch.from_numpy(uniform).to(device), tile)))
    return AttackedTile(clean_predictions_B, targets_B, state)


def attack_images(
    model: nn.Module, batch: Batch, trajectory: Trajectory, conditions: Conditions
) -> Rows:
    """Per-example records of one trajectory, ordered by image and, within it, by step."""
    if len(batch) == 0:
        raise ValueError("there are no images to attack: give at least one")
    parts = []
    for start in range(0, len(batch), conditions.tile):
        part = batch.part(start, start + conditions.tile)
        parts.append(_records(part, attack_tile(model, part, trajectory, conditions), trajectory))
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def place_matters(model: nn.Module, image_CHW: Tensor, tile: int) -> bool:
    """Does an image's place in a tile change its logits or its gradient?

    Some kernels add up in an order that depends on the row (seen for linear layers of 2 to 10
    outputs whose inner length is no multiple of 4). Then rows would depend on how work is cut.
    """
    with frozen(model) as f:
        images = image_CHW.expand(tile, *image_CHW.shape).clone().requires_grad_()
        logits_BC = f(images)
        gradient = torch.autograd.grad(logits_BC.logsumexp(dim=1).sum(), images)[0]
    return any(bool((x != x[:1]).any()) for x in (logits_BC, gradient))


def _pad(x: Tensor, tile: int) -> Tensor:
    return torch.cat([x, x.new_zeros(tile - len(x), *x.shape[1:])]) if len(x) < tile else x


def _records(batch: Batch, attacked: AttackedTile, trajectory: Trajectory) -> Rows:
    n, steps = len(batch), len(attacked.state.readings)
    readings = attacked.state.readings

    def per_reading(name: str, dtype: type) -> Array:
        columns = [getattr(r, name)[:n].cpu().numpy() for r in readings]
        return np.stack(columns, axis=1).reshape(-1).astype(dtype)

    def per_image(column: Array, dtype: type = np.int32) -> Array:
        return np.repeat(column[:n], steps).astype(dtype)

    labels = per_image(batch.labels_B)
    targets = per_image(attacked.targets_B.cpu().numpy())
    predictions = per_reading("predictions_B", np.int32)
    return {
        "image_id": per_image(batch.image_ids_B, np.int64),
        "label": labels,
        "target": targets,
        "clean_prediction": per_image(attacked.clean_predictions_B.cpu().numpy()),
        "prediction": predictions,
        "correct": predictions == labels,
        "fooled": predictions == targets,
        "loss": per_reading("losses_B", np.float32),
        "margin": per_reading("margins_B", np.float32),
        "linf_255": per_reading("linf_B", np.float32) * np.float32(255),
        "first_error_step": per_reading("first_error_steps_B", np.int32),
        "first_target_step": per_reading("first_target_steps_B", np.int32),
        "restart": np.full(n * steps, trajectory.restart, dtype=np.int32),
        "step": np.tile(np.array([r.step for r in readings], dtype=np.int32), n),
    }
