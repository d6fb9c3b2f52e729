"""What a worker finds out about a few images: one function per analysis. N images of the piece."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from s3ta.batch import Batch, to_unit
from s3ta.distraction import ANSWERS, Views, object_masks, study
from s3ta.engine import Engine
from s3ta.landscape import offsets, random_signs, surface
from s3ta.model import S3TA
from s3ta.tally import Rows
from s3ta.threat import LinfBall
from s3ta.trajectory import Trajectory
from s3ta_platform.pieces import LandscapeTask, MapsTask, NaturalTask

Array = np.ndarray
Attack = Callable[[Trajectory], tuple[Rows, Tensor]]
"""Attacks the piece's images; gives the rows and where the images ended up, (N, C, H, W)."""
Beat = Callable[[], None]


def landscape(
    engine: Engine,
    batch: Batch,
    task: LandscapeTask,
    runs: tuple[Trajectory, ...],
    attack: Attack,
    *,
    seed: int,
    tile: int,
    beat: Beat,
) -> dict[str, Array]:
    """A row per image and point of the plane."""
    clean, epsilon = to_unit(batch.images_BCHW, engine.device), runs[0].epsilon
    worst = _worst([attack(run) for run in runs])
    at_P = offsets(epsilon, task.points, task.reach)
    v_PP, u_PP = np.meshgrid(at_P, at_P, indexing="ij")
    parts = []
    for n, image_id in enumerate(batch.image_ids_B.tolist()):
        signs = random_signs(seed, image_id, tuple(clean.shape[1:])).to(engine.device)
        along = (worst[n] - clean[n]) / epsilon
        label = int(batch.labels_B[n])
        found = surface(engine, clean[n], label, along, signs, at_P, tile)
        beat()
        parts.append(
            {
                "image_id": np.full(u_PP.size, image_id),
                "label": np.full(u_PP.size, label, np.int32),
                "u_255": u_PP.reshape(-1) * 255,
                "v_255": v_PP.reshape(-1) * 255,
                "cross_entropy": found.cross_entropy_PP.reshape(-1),
                "margin": found.margin_PP.reshape(-1),
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _worst(attacked: list[tuple[Rows, Tensor]]) -> Tensor:
    """Of each image the end with the lowest attack loss; of equals the first."""
    losses_RN = np.stack([rows["loss"] for rows, _ in attacked])
    ends_RN = torch.stack([points for _, points in attacked])
    best_N = torch.from_numpy(losses_RN.argmin(axis=0)).to(ends_RN.device)
    return ends_RN[best_N, torch.arange(len(best_N), device=ends_RN.device)]


def attention(
    engine: Engine,
    batch: Batch,
    task: MapsTask,
    runs: tuple[Trajectory, ...],
    attack: Attack,
    *,
    seed: int,
    tile: int,
    beat: Beat,
) -> dict[str, Array]:
    """A row per image: predictions, and a list of T x Q numbers, step by step, for each measure."""
    model = engine.judge
    assert isinstance(model, S3TA), "planned for models with a controller only"
    clean, epsilon = to_unit(batch.images_BCHW, engine.device), runs[0].epsilon
    (rows, attacked), (_, held) = attack(runs[0]), attack(runs[1])
    random = _random(clean, batch, epsilon, seed)
    found: list[dict[str, Tensor]] = []
    for part, count in _tiles(len(batch), tile):
        views = Views(
            **{
                name: _padded(images[part], tile)
                for name, images in (
                    ("clean", clean),
                    ("attacked", attacked),
                    ("held", held),
                    ("random", random),
                )
            }
        )
        masks = None
        if task.object_above is not None:
            with torch.no_grad():
                grid = model.trace(views.clean, 1).maps_BTQHW.shape[3:]
            masks = object_masks(views.clean, task.object_above, (grid[0], grid[1]))
        found.append({k: t[:count].cpu() for k, t in study(model, views, masks).items()})
        beat()
    columns = {name: torch.cat([part[name] for part in found]).numpy() for name in found[0]}
    return {
        "image_id": batch.image_ids_B,
        "label": batch.labels_B.astype(np.int32),
        "target": rows["target"],
        **{name: columns[name].astype(np.int32) for name in ANSWERS},
        **{k: c.reshape(len(c), -1) for k, c in columns.items() if k not in ANSWERS},
    }


def _random(clean: Tensor, batch: Batch, epsilon: float, seed: int) -> Tensor:
    """Random signs of length epsilon, within the image range."""
    shape = tuple(clean.shape[1:])
    signs = torch.stack([random_signs(seed, i, shape) for i in batch.image_ids_B.tolist()])
    return LinfBall.around(clean, epsilon).project(clean + epsilon * signs.to(clean.device))


def natural(
    engine: Engine, batch: Batch, task: NaturalTask, *, tile: int, beat: Beat
) -> dict[str, Array]:
    """A row per image: the answer among the chosen classes, and its probability."""
    images, found = to_unit(batch.images_BCHW, engine.device), []
    for part, count in _tiles(len(batch), tile):
        logits_BC = engine.judged(_padded(images[part], tile))[:count].double().cpu()
        found.append(logits_BC[:, list(task.classes)] if task.classes else logits_BC)
        beat()
    confidence_N, answer_N = torch.cat(found).softmax(dim=1).max(dim=1)
    return {
        "image_id": batch.image_ids_B,
        "label": batch.labels_B.astype(np.int32),
        "prediction": answer_N.numpy().astype(np.int32),
        "confidence": confidence_N.numpy(),
    }


def _tiles(images: int, tile: int) -> Iterator[tuple[slice, int]]:
    for start in range(0, images, tile):
        yield slice(start, start + tile), min(tile, images - start)


def _padded(images: Tensor, tile: int) -> Tensor:
    return torch.cat([images, images.new_zeros(tile - len(images), *images.shape[1:])])
