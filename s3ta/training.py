"""One adversarial training step, cut into microbatches that any number of workers may share.

A step's images are a fixed list of microbatches. BatchNorm normalises one microbatch; gradients and
BatchNorm statistics of all of them are added exactly, over all workers, and divided once (see
s3ta/sums.py). So the number of workers changes how long a step takes, not what it computes.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from s3ta.attacks import PGD
from s3ta.batch import Batch, to_unit
from s3ta.draws import Key, Purpose
from s3ta.engine import frozen
from s3ta.fastcopy import FastCopy
from s3ta.objective import cross_entropy
from s3ta.settings import Augmentation, Dtype, Goal, TrainSettings
from s3ta.sums import StepSums
from s3ta.trajectory import training_trajectory


@dataclass(frozen=True)
class Moment:
    """Where training is: the name of all draws of a step."""

    epoch: int
    step: int
    """Counted over the whole training."""


def optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay on convolution and linear weights only ([55])."""
    decayed = {
        p
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear | nn.LSTMCell)
        for p in module.parameters(recurse=False)
        if p.ndim > 1
    }
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p in decayed]},
        {"params": [p for p in model.parameters() if p not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        groups,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        weight_decay=settings.weight_decay,
    )


def attack_microbatch(
    model: nn.Module,
    batch: Batch,
    settings: TrainSettings,
    moment: Moment,
    index: int,
    classes: int,
    device: str,
    fast: FastCopy | None = None,
) -> tuple[Tensor, Tensor]:
    """Attacked images and their labels. `index` is the microbatch's place in the step.

    The attack asks the fast copy for gradients, or without one the model itself.
    """
    seed, attack = settings.seed, settings.attack
    dtype = next(model.parameters()).dtype
    images = _augmented(batch, settings, moment, device).to(dtype)
    labels_B = torch.from_numpy(batch.labels_B).to(device)
    if attack.steps == 0:
        return images, labels_B
    target_key = Key(seed, Purpose.TRAIN_TARGET, moment.epoch)
    targets_B = None
    if attack.goal is Goal.random_target:
        targets = target_key.wrong_classes(batch.image_ids_B, batch.labels_B, classes)
        targets_B = torch.from_numpy(targets).to(device)
    # One coin per microbatch, as [55] has one per device batch.
    coin = Key(seed, Purpose.TRAIN_COIN, moment.epoch, moment.step).uniform([index], (1,))[0, 0]
    uniform = None
    if coin >= attack.clean_start_share:
        noise_key = Key(seed, Purpose.TRAIN_NOISE, moment.epoch)
        draws = noise_key.uniform(batch.image_ids_B, batch.images_BCHW.shape[1:])
        uniform = torch.from_numpy(draws).to(device, dtype)
    with nullcontext(fast) if fast is not None else frozen(model) as f:
        if fast is not None:
            images = images.to(memory_format=fast.memory)
        pgd = PGD(f, training_trajectory(attack), images, labels_B, targets_B)
        return pgd.run(pgd.begin(uniform)), labels_B


def add_microbatch(
    model: nn.Module,
    sums: StepSums,
    batch: Batch,
    settings: TrainSettings,
    moment: Moment,
    index: int,
    classes: int,
    device: str = "cpu",
    fast: FastCopy | None = None,
) -> None:
    """Attack a microbatch and add its gradient: towards the true label, on attacked images only."""
    attacked, labels_B = attack_microbatch(
        model, batch, settings, moment, index, classes, device, fast
    )
    logits_BC = _training_logits(model, attacked, settings)
    loss = cross_entropy(logits_BC, labels_B, settings.label_smoothing).mean()
    gradients = torch.autograd.grad(loss, sums.parameters)
    sums.add(index, gradients, loss, (logits_BC.argmax(dim=1) == labels_B).sum())


def _training_logits(model: nn.Module, images: Tensor, settings: TrainSettings) -> Tensor:
    """Logits (B, C) in training mode, for the update."""
    half = settings.dtype is Dtype.bfloat16
    with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
        logits_BC: Tensor = model.train()(images)
    return logits_BC.float() if half else logits_BC


def _augmented(batch: Batch, settings: TrainSettings, moment: Moment, device: str) -> Tensor:
    images = to_unit(batch.images_BCHW, device)
    if settings.augmentation is Augmentation.none:
        return images
    key = Key(settings.seed, Purpose.FLIP, moment.epoch)
    flip_B = torch.from_numpy(key.uniform(batch.image_ids_B, (1, 1, 1)) < 0.5).to(device)
    return torch.where(flip_B, images.flip(-1), images)
