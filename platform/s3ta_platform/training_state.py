"""What training carries from step to step, and its way into checkpoints and back.

A checkpoint holds weights, momentum, running statistics, the step, and the training curve. All else
(which images come next, the rate, every draw) is a function of the step and the trial's settings:
so any worker of any number of workers goes on from it with the same bits.
"""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from s3ta.errors import UserError
from s3ta.model import build, parameters
from s3ta.schedules import stage_at, stage_index
from s3ta.settings import ModelSettings
from s3ta.sums import StepReport
from s3ta.training import optimizer
from s3ta.vision import recompute_blocks
from s3ta_platform import checkpoints
from s3ta_platform.devices import keep_freed_memory
from s3ta_platform.jobs import TrainJob
from s3ta_platform.record import content_key, plain
from s3ta_platform.storage import Storage
from s3ta_platform.trials import BEST_BY, checkpoint_prefix, trained_name

HISTORY_POINTS = 1000
"""About so many points of the training curves are kept, however long training is."""
RESUME = (
    "exact: model, optimizer and step are here; the stage, the rate, the order of the images and "
    "all draws are functions of the step and the trial's settings"
)


@dataclass
class Training:
    """A model in training."""

    job: TrainJob
    model: nn.Module
    called: nn.Module
    """The model as training calls it: compiled, perhaps."""
    optimizer: torch.optim.SGD
    epoch_steps: int
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    pending: list[tuple[float, float]] = field(default_factory=list)
    """Loss and top-1 of the steps since the last point of the history."""
    not_finite: list[int] = field(default_factory=list)
    """Steps that passed without an update."""

    @classmethod
    def begin(cls, job: TrainJob, device: str, epoch_steps: int) -> "Training":
        if device == "cpu":
            keep_freed_memory()
        model = build(job.model, job.classes, job.train.seed)
        model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if job.train.recompute:
            recompute_blocks(model)
        called: Any = torch.compile(model) if job.train.compile else model
        return cls(job, model, called, optimizer(model, job.train), epoch_steps)

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return self.epoch_steps * self.job.train.epochs

    @property
    def end(self) -> int:
        """The step at which the job's leg ends."""
        until = self.job.until_epoch
        return self.total if until is None else self.epoch_steps * until

    @property
    def at_epoch_end(self) -> bool:
        return self.step % self.epoch_steps == 0

    def update(self, rate: float) -> None:
        """Descend along the gradients that are in `.grad`."""
        for parameters_of in self.optimizer.param_groups:
            parameters_of["lr"] = rate
        self.optimizer.step()

    def passed(self, report: StepReport, rate: float) -> None:
        """A step is over."""
        self.step += 1
        if report.not_finite:
            self.not_finite.append(self.step - 1)
        else:
            self.pending.append((report.loss, report.adversarial_top1))
        if self.pending and (self.at_epoch_end or self.step % self._point_steps == 0):
            self.history.append(self._point(rate))
            self.pending = []

    @property
    def _point_steps(self) -> int:
        return max(1, self.total // HISTORY_POINTS)

    def _point(self, rate: float) -> dict[str, float]:
        loss, top1 = np.mean(self.pending, axis=0).tolist()
        return {
            "step": self.step,
            "epoch": self.step / self.epoch_steps,
            "loss": loss,
            "adversarial_top1": top1,
            "learning_rate": rate,
            "stage": stage_index(self.job.train, self._last_epoch),
            "steps_not_finite": len(self.not_finite),
            "time": time.time(),
        }

    @property
    def _last_epoch(self) -> int:
        """The epoch of the step that was taken last."""
        return max(0, self.step - 1) // self.epoch_steps

    def restore(self, storage: Storage, step: int) -> None:
        """Weights and momentum of a step; 0 is the beginning, which has no checkpoint."""
        self.optimizer.state.clear()
        if step == 0:
            fresh = build(self.job.model, self.job.classes, self.job.train.seed)
            self.model.load_state_dict(fresh.state_dict())
            return
        self._take(checkpoints.load(storage, checkpoint_prefix(self.job.key), step))

    def _take(self, saved: checkpoints.Checkpoint) -> None:
        checkpoints.load_into(self.model, saved.tensors["model"])
        by_name = dict(self.model.named_parameters())
        for name, momentum in saved.tensors["optimizer"].items():
            p = by_name[name]
            self.optimizer.state[p]["momentum_buffer"] = momentum.to(p.device)

    def resume(self, storage: Storage, step: int) -> None:
        """Go on from the checkpoint of a step."""
        saved = checkpoints.load(storage, checkpoint_prefix(self.job.key), step)
        self._take(saved)
        self.step, self.history = step, saved.meta["history"]
        self.pending = [(loss, top1) for loss, top1 in saved.meta["pending"]]
        self.not_finite = saved.meta["not_finite"]

    def save(self, storage: Storage) -> None:
        """Make this step durable, and remove checkpoints that nobody needs any more."""
        momenta = {
            name: self.optimizer.state[p]["momentum_buffer"]
            for name, p in self.model.named_parameters()
            if self.optimizer.state.get(p, {}).get("momentum_buffer") is not None
        }
        tensors = {"model": self.model.state_dict(), "optimizer": momenta}
        meta: dict[str, Any] = {
            "trial": self.job.key,
            "threads": self.job.threads,
            "device": self.job.device,
            "resume": RESUME,
            "epoch": self.step // self.epoch_steps,
            "step_of_epoch": self.step % self.epoch_steps,
            "stage": self._stage(),
            "metrics": self._metrics() if self.at_epoch_end else {},
            "not_finite": self.not_finite,
            "pending": self.pending,
            "history": self.history,
        }
        prefix = checkpoint_prefix(self.job.key)
        checkpoints.save(storage, prefix, self.step, tensors, meta)
        checkpoints.prune(storage, prefix, self.job.cluster.keep_checkpoints, BEST_BY)

    def _stage(self) -> dict[str, float | None]:
        """The curriculum's stage that led to these weights: its place, and what it trains with."""
        stage = stage_at(self.job.train, self._last_epoch)
        return {
            "index": stage_index(self.job.train, self._last_epoch),
            "unroll": stage.unroll,
            "attack_steps": stage.attack.steps,
            "epsilon_255": stage.attack.epsilon_255,
        }

    def _metrics(self) -> dict[str, float]:
        """Means over the points of the epoch that has just ended."""
        begun = self.step - self.epoch_steps
        points = [point for point in self.history if point["step"] > begun]
        names = ("loss", "adversarial_top1")
        return {n: float(np.mean([p[n] for p in points])) for n in names} if points else {}


def finish(job: TrainJob, storage: Storage, step: int, trial: str) -> None:
    """The record that makes a trial count as trained; plans read it without torch.

    It describes what is stored, whoever wrote it first.
    """
    weights = checkpoints.load(storage, checkpoint_prefix(job.key), step).tensors["model"]
    model = build(job.model, job.classes, job.train.seed)
    checkpoints.load_into(model, weights)
    record = {
        "step": step,
        "model_digest": deployed_digest(job.model, model),
        "parameters": parameters(model),
        "settings": {
            "model": plain(job.model),
            "train": plain(job.train),
            "data": plain(job.data),
            "classes": job.classes,
        },
    }
    storage.put_new(trained_name(trial), json.dumps(record).encode())


def deployed_digest(settings: ModelSettings, model: nn.Module) -> str:
    """Names the model that is attacked: all weights, and settings such as the unroll."""
    return content_key(model=settings, tensors=checkpoints.model_digest(model.state_dict()))


def last_epoch_end(training: Training, storage: Storage) -> int:
    """Where a rollback goes: a function of the step, whatever was saved in between.

    UserError where that checkpoint is gone.
    """
    step = training.step // training.epoch_steps * training.epoch_steps
    prefix = checkpoint_prefix(training.job.key)
    if step and step not in checkpoints.steps(storage, prefix):
        raise UserError(
            f"Step {training.step} has to be rolled back to the end of the last epoch, but "
            f"{storage.root}/{prefix} has no checkpoint of step {step}. Delete the checkpoints "
            "after it: training then goes on from an earlier one."
        )
    return step
