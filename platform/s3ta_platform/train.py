"""Adversarial training of one trial: the loop, in order, for one process or many workers.

Every worker runs `train`. Microbatches are dealt out to the workers and summed in float64, so the
weights do not depend on how many there are. Progress survives in checkpoints of our own: whoever
starts the same job again goes on from the last one.
"""

import json
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from s3ta.errors import UserError
from s3ta.model import build, parameters
from s3ta.schedules import learning_rate
from s3ta.settings import ModelSettings
from s3ta.training import (
    Moment,
    StepReport,
    StepSums,
    add_microbatch,
    epoch_order,
    optimizer,
)
from s3ta_platform import checkpoints
from s3ta_platform.devices import pin_arithmetic, resolve_device
from s3ta_platform.events import Emit, Event, Phase, ignore
from s3ta_platform.feed import feed, wanted
from s3ta_platform.jobs import Ids, TrainJob, open_images, training_ids
from s3ta_platform.record import content_key
from s3ta_platform.storage import Storage, open_storage
from s3ta_platform.trials import checkpoint_prefix, trained_name

KEEP_CHECKPOINTS = 2
HISTORY_POINTS = 1000
"""About so many points of the training curves are kept, however long training is."""


class Group(Protocol):
    """The workers that share a step."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def add_up(self, flat: Tensor) -> None:
        """Replace the buffer by its sum over all workers."""


@dataclass(frozen=True)
class Alone:
    """One worker, nothing to add up."""

    rank: int = 0
    world: int = 1

    def add_up(self, flat: Tensor) -> None:
        """The sum over one worker."""


@dataclass(frozen=True)
class Gloo:
    """Workers joined by torch.distributed; float64 sums, rounded once, are the same for any number.

    An exact sum would be; 53 bits for terms of 24 leave room for what microbatches differ by.
    """

    rank: int
    world: int

    def add_up(self, flat: Tensor) -> None:
        torch.distributed.all_reduce(flat)


ALONE = Alone()


@dataclass
class _Progress:
    """What a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.SGD
    step: int
    history: list[dict[str, float]]


def train(job: TrainJob, group: Group = ALONE, emit: Emit = ignore) -> None:
    """Train to the end, from the last checkpoint if there is one; rank 0 writes."""
    pin_arithmetic(job.threads)
    device, settings, storage = resolve_device(job.device), job.train, open_storage(job.root)
    images = open_images(job.data.train, job.data, job.model)
    ids = training_ids(images.ids_N, job.data)
    epoch_steps = settings.steps_per_epoch(len(ids))
    total = epoch_steps * settings.epochs
    state = _resume(job, storage, device)
    sums = StepSums(state.model)
    todo = wanted(
        settings,
        lambda epoch: epoch_order(ids, settings, epoch),
        epoch_steps,
        state.step,
        group.rank,
        group.world,
    )
    batches = feed(images, settings, todo)
    window: list[StepReport] = []
    order = ids
    order_epoch = -1
    while state.step < total:
        epoch, within = divmod(state.step, epoch_steps)
        if order_epoch != epoch:
            order, order_epoch = epoch_order(ids, settings, epoch), epoch
        moment = Moment(epoch, state.step)
        sums.reset()
        for index in range(group.rank, settings.microbatches, group.world):
            batch = next(batches)
            add_microbatch(state.model, sums, batch, settings, moment, index, job.classes, device)
        group.add_up(sums.flat)
        rate = learning_rate(settings, state.step / epoch_steps)
        for parameters_of in state.optimizer.param_groups:
            parameters_of["lr"] = rate
        report = sums.apply(settings)
        _require_finite(report, job, moment, order, within)
        state.optimizer.step()
        state.step += 1
        window.append(report)
        durable = state.step % epoch_steps == 0
        if durable or state.step % max(1, total // HISTORY_POINTS) == 0:
            state.history.append(_point(window, state.step, epoch_steps, rate))
            window = []
        if group.rank == 0:
            if durable:
                _save(job, storage, state)
            emit(_event(job, state, total, report, durable))
    if group.rank == 0:
        _finish(job, storage, state.step)


def _resume(job: TrainJob, storage: Storage, device: str) -> _Progress:
    model = build(job.model, job.classes, job.train.seed).to(device)
    optimiser = optimizer(model, job.train)
    prefix = checkpoint_prefix(job.key)
    step = checkpoints.latest(storage, prefix)
    if step is None:
        return _Progress(model, optimiser, 0, [])
    saved = checkpoints.load(storage, prefix, step)
    checkpoints.load_into(model, saved.tensors["model"])
    by_name = dict(model.named_parameters())
    for name, momentum in saved.tensors["optimizer"].items():
        optimiser.state[by_name[name]]["momentum_buffer"] = momentum.to(device)
    return _Progress(model, optimiser, step, saved.meta["history"])


def _save(job: TrainJob, storage: Storage, state: _Progress) -> None:
    momenta = {
        name: state.optimizer.state[p]["momentum_buffer"]
        for name, p in state.model.named_parameters()
        if "momentum_buffer" in state.optimizer.state[p]
    }
    tensors = {"model": state.model.state_dict(), "optimizer": momenta}
    meta: dict[str, Any] = {
        "trial": job.key,
        "threads": job.threads,
        "device": job.device,
        "history": state.history,
    }
    prefix = checkpoint_prefix(job.key)
    checkpoints.save(storage, prefix, state.step, tensors, meta)
    checkpoints.prune(storage, prefix, KEEP_CHECKPOINTS)


def _finish(job: TrainJob, storage: Storage, step: int) -> None:
    """The record that makes the trial count as trained; plans read it without torch.

    It describes what is stored, whoever wrote it first.
    """
    weights = checkpoints.load(storage, checkpoint_prefix(job.key), step).tensors["model"]
    model = build(job.model, job.classes, job.train.seed)
    checkpoints.load_into(model, weights)
    record = {
        "step": step,
        "model_digest": deployed_digest(job.model, model),
        "parameters": parameters(model),
    }
    storage.put_new(trained_name(job.key), json.dumps(record).encode())


def deployed_digest(settings: ModelSettings, model: nn.Module) -> str:
    """Names the model that is attacked: all weights, and settings such as the unroll."""
    return content_key(model=settings, tensors=checkpoints.model_digest(model.state_dict()))


def _point(window: list[StepReport], step: int, epoch_steps: int, rate: float) -> dict[str, float]:
    return {
        "step": step,
        "epoch": step / epoch_steps,
        "loss": float(np.mean([r.loss for r in window])),
        "adversarial_top1": float(np.mean([r.adversarial_top1 for r in window])),
        "learning_rate": rate,
        "time": time.time(),
    }


def _event(job: TrainJob, state: _Progress, total: int, report: StepReport, durable: bool) -> Event:
    return Event(
        trial=job.key,
        phase=Phase.train,
        done=state.step * job.train.batch,
        total=total * job.train.batch,
        note=f"loss {report.loss:.2f}",
        durable=durable,
    )


def _require_finite(
    report: StepReport, job: TrainJob, moment: Moment, order: Ids, within: int
) -> None:
    if np.isfinite(report.loss):
        return
    ids = order[within * job.train.batch : (within + 1) * job.train.batch]
    raise UserError(
        f"The training loss of step {moment.step} (epoch {moment.epoch}) is {report.loss}: it must "
        f"be finite. Lower train.learning_rate, or look at images {ids[:8].tolist()} .... "
        f"The last good checkpoint is below {checkpoint_prefix(job.key)}."
    )
