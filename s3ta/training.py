"""One training step, cut into microbatches that any number of workers may share.

A step's images are a fixed list of microbatches. BatchNorm normalises one microbatch; gradients and
BatchNorm statistics of all of them are added exactly, over all workers, and divided once (see
s3ta/sums.py). So the number of workers changes how long a step takes, not what it computes.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from s3ta.attacks import PGD
from s3ta.batch import Batch, on_device, to_unit
from s3ta.draws import Key, Purpose
from s3ta.engine import frozen
from s3ta.fastcopy import FastCopy
from s3ta.objective import cross_entropy
from s3ta.objectives import least_linear, linearity, paired
from s3ta.schedules import stage_at
from s3ta.settings import Augmentation, Dtype, Goal, Objective, TrainSettings
from s3ta.sums import Send, StepSums
from s3ta.threat import LinfBall
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
    seed, stage = settings.seed, stage_at(settings, moment.epoch)
    images, labels_B = clean_microbatch(model, batch, settings, moment, device)
    if settings.objective is Objective.plain or stage.attack.steps == 0:
        return images, labels_B
    target_key = Key(seed, Purpose.TRAIN_TARGET, moment.epoch)
    targets_B = None
    if stage.attack.goal is Goal.random_target:
        targets = target_key.wrong_classes(batch.image_ids_B, batch.labels_B, classes)
        targets_B = on_device(targets, device)
    # One coin per microbatch, as [55] has one per device batch.
    coin = Key(seed, Purpose.TRAIN_COIN, moment.epoch, moment.step).uniform([index], (1,))[0, 0]
    uniform = None
    if coin >= stage.attack.clean_start_share:
        uniform = _uniform(Key(seed, Purpose.TRAIN_NOISE, moment.epoch), batch, images)
    if fast is not None:
        images = images.to(memory_format=fast.memory)
    with nullcontext(fast) if fast is not None else frozen(model) as f:
        trajectory = training_trajectory(stage.attack)
        pgd = PGD(answers(f, settings, stage.unroll), trajectory, images, labels_B, targets_B)
        return pgd.run(pgd.begin(uniform)), labels_B


def clean_microbatch(
    model: nn.Module, batch: Batch, settings: TrainSettings, moment: Moment, device: str
) -> tuple[Tensor, Tensor]:
    """The images as they are before any attack, in the model's dtype, and their labels."""
    images = _flipped(batch, settings, moment, device).to(next(model.parameters()).dtype)
    return images, on_device(batch.labels_B, device)


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
    send: Send | None = None,
) -> None:
    """Add a microbatch's gradient of what training minimises; for `send` see StepSums.add."""
    if settings.objective is Objective.llr:
        losses_B, right_B = _linear(model, batch, settings, moment, device, fast)
    else:
        attacked, labels_B = attack_microbatch(
            model, batch, settings, moment, index, classes, device, fast
        )
        losses_B, right_B = _classified(model, batch, attacked, labels_B, settings, moment)
    sums.add(index, losses_B.mean(), right_B.sum(), send)


def _classified(
    model: nn.Module,
    batch: Batch,
    attacked: Tensor,
    labels_B: Tensor,
    settings: TrainSettings,
    moment: Moment,
) -> tuple[Tensor, Tensor]:
    """Losses towards the true label, and which attacked images are classified rightly."""
    smoothing = settings.label_smoothing
    f = answers(model.train(), settings, stage_at(settings, moment.epoch).unroll)
    if settings.objective is not Objective.alp:  # on attacked images only ([55])
        logits_BC = f(attacked)
        return cross_entropy(logits_BC, labels_B, smoothing), logits_BC.argmax(dim=1) == labels_B
    images, _ = clean_microbatch(model, batch, settings, moment, str(attacked.device))
    # One pass over both halves, as in the authors' public code: BatchNorm normalises them together,
    # twice a microbatch, and that is what its running statistics see.
    clean_BC, attacked_BC = f(torch.cat([images, attacked])).chunk(2)
    losses_B = paired(clean_BC, attacked_BC, labels_B, settings.pairing_weight, smoothing)
    return losses_B, attacked_BC.argmax(dim=1) == labels_B


def _linear(
    model: nn.Module,
    batch: Batch,
    settings: TrainSettings,
    moment: Moment,
    device: str,
    fast: FastCopy | None,
) -> tuple[Tensor, Tensor]:
    """Losses, and which images are classified rightly where the loss is least linear.

    ASSUMPTION: l is one function throughout: cross-entropy, smoothed as configured; and BatchNorm
    is in test mode while d is searched for. In the update each pass normalises its own images,
    x + d and x, and the running statistics see those of x. (The authors' public code normalises
    x + d by the statistics of x, here and in its search.)
    """
    stage, weights = stage_at(settings, moment.epoch), settings.linearity
    images, labels_B = clean_microbatch(model, batch, settings, moment, device)

    def loss(logits_BC: Tensor) -> Tensor:
        return cross_entropy(logits_BC, labels_B, settings.label_smoothing)

    epsilon = stage.attack.epsilon_255 / 255
    ball = LinfBall.around(images, epsilon)
    uniform = _uniform(Key(settings.seed, Purpose.LINEARITY_START, moment.epoch), batch, images)
    start = ball.noise_start(images, epsilon, uniform)
    with nullcontext(fast) if fast is not None else frozen(model) as searched:
        f = answers(searched, settings, stage.unroll)
        offsets = least_linear(
            lambda x: loss(f(x)), images, ball, start, stage.attack.steps, weights.search_rate
        )
    found = linearity(answers(model.train(), settings, stage.unroll), loss, images, offsets)
    return found.weighted(weights), found.moved_BC.argmax(dim=1) == labels_B


def answers(
    model: Callable[..., Tensor], settings: TrainSettings, unroll: int | None = None
) -> Callable[[Tensor], Tensor]:
    """A model's logits (B, C) in training, after so many glances; None: as many as it says."""
    half = settings.dtype is Dtype.bfloat16
    options = {} if unroll is None else {"unroll": unroll}

    def logits(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            logits_BC = model(images, **options)
        return logits_BC.float() if half else logits_BC

    return logits


def _uniform(key: Key, batch: Batch, images: Tensor) -> Tensor:
    """Draws on [0, 1) of the images' shape, where they are."""
    drawn = key.uniform(batch.image_ids_B, batch.images_BCHW.shape[1:])
    return on_device(drawn, images.device).to(images.dtype)


def _flipped(batch: Batch, settings: TrainSettings, moment: Moment, device: str) -> Tensor:
    """Images in [0, 1], flipped where only that is asked for; photos are augmented when read."""
    images = to_unit(batch.images_BCHW, device)
    if settings.augmentation is not Augmentation.flip:
        return images
    key = Key(settings.seed, Purpose.FLIP, moment.epoch)
    flip_B = on_device(key.uniform(batch.image_ids_B, (1, 1, 1)) < 0.5, device)
    return torch.where(flip_B, images.flip(-1), images)
