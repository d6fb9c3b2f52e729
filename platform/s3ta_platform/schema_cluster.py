"""Where an experiment file's work is done, and what it may spend."""

import math
from dataclasses import dataclass, field
from enum import Enum

from s3ta.settings import require


class Executor(Enum):
    """Where jobs run: in this process, one after the other, or on a Ray cluster."""

    inline = "inline"
    ray = "ray"


@dataclass(kw_only=True)
class ClusterSettings:
    """Where and with how much work is done. Nothing here changes a result except `threads`."""

    executor: Executor = Executor.ray
    address: str = "local"
    """`local` starts Ray on this machine; `auto` or host:port joins a cluster."""
    cpus: int | None = None
    """Logical CPUs of a local Ray; the machine's by default."""
    train_workers: int = 1
    """Workers per trial; at most the microbatches of a step."""
    stage_workers: list[int] = field(default_factory=list)
    """The same for each stage of `train.curriculum`, in order: [1, 2, 4] for longer unrolls."""
    evaluate_workers: int = 2
    """Workers per evaluation."""
    gpus_per_worker: float | None = None
    """Null: 1 with `device: cuda`, else 0. 0.5 lets two workers share one."""
    threads: int = 1
    """Per worker. Pinned, for kernels may round differently with another number."""
    device: str = "cpu"
    """`cpu`, `cuda`, or `auto`: cuda where there is one, on Ray where workers are given one."""
    attempts: int = 3
    """How often work that lost its worker is tried."""
    hang_s: float = 600.0
    """A worker that makes no progress for so long is taken for hung, and replaced. Longer than a
    single attack step of the slowest model, and than loading it."""
    snapshot_s: float = 180.0
    """Seconds between saved states of a running attack: what a lost worker costs at most."""
    snapshot_steps: int | None = None
    """Save after so many attack steps instead."""
    snapshot_budget_mb: int = 10_000
    """Saved states of all running attacks together take at most this much."""
    store_patience_s: float = 3600.0
    """How long work waits for a store that is full or does not answer."""
    lease_s: float = 120.0
    """Work that another run has begun is left to it until it was silent for so long."""
    train_workers_min: int | None = None
    """Elastic training: with fewer workers than `train_workers`, but at least so many, training
    goes on as well; as nodes leave and come back it is resized. Null: always `train_workers`."""
    checkpoint_steps: int | None = None
    """Training is saved at the end of every epoch, and after every so many steps."""
    keep_checkpoints: int = 2
    """The last so many; beside them those of the last epoch's end and of the best epoch."""
    read_cache_mb: int = 2048
    """Encoded images that a training worker keeps: as many as `train.shuffle_window`, or they are
    read again and again."""

    def __post_init__(self) -> None:
        for name in ("hang_s", "snapshot_s", "store_patience_s", "lease_s"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"cluster.{name}", value, "positive and finite")
        for name in ("snapshot_steps", "snapshot_budget_mb", "checkpoint_steps"):
            value = getattr(self, name)
            good = value is None or value >= (name != "snapshot_budget_mb")
            require(good, f"cluster.{name}", value, "at least 1, or null; a budget at least 0")
        whole = ("train_workers", "evaluate_workers", "threads", "attempts", "keep_checkpoints")
        for name in (*whole, "read_cache_mb"):
            value = getattr(self, name)
            require(value >= 1, f"cluster.{name}", value, "at least 1")
        stages = self.stage_workers
        require(
            all(workers >= 1 for workers in stages),
            "cluster.stage_workers",
            stages,
            "a list of whole numbers of at least 1",
        )
        require(
            self.train_workers_min is None or 1 <= self.train_workers_min <= self.train_workers,
            "cluster.train_workers_min",
            self.train_workers_min,
            f"from 1 to cluster.train_workers ({self.train_workers}), or null",
        )
        require(self.cpus is None or self.cpus >= 1, "cluster.cpus", self.cpus, "at least 1")
        require(
            0 <= self.gpus < math.inf,
            "cluster.gpus_per_worker",
            self.gpus_per_worker,
            "at least 0 and finite, or null",
        )
        require(
            self.device in ("cpu", "cuda", "auto"),
            "cluster.device",
            self.device,
            "one of cpu, cuda, auto",
        )
        require(
            self.executor is Executor.inline or self.device != "cuda" or self.gpus > 0,
            "cluster.gpus_per_worker",
            self.gpus_per_worker,
            "above 0 with cluster.device=cuda, for Ray hides GPUs from workers that ask for none",
        )

    @property
    def gpus(self) -> float:
        """Of each worker on Ray."""
        if self.gpus_per_worker is None:
            return float(self.device == "cuda")
        return self.gpus_per_worker


@dataclass(kw_only=True)
class BudgetSettings:
    """What a sweep may spend: it is refused if it needs more, and ended when it has spent that."""

    gpu_hours: float | None = None
    """Hours of GPUs, added up over workers; of workers where they have none. Null: no limit."""
    hardware: str = ""
    """As for `s3ta plan --hardware`, to know beforehand what is needed at least. By default the
    fastest of its kind that is known."""

    def __post_init__(self) -> None:
        hours = self.gpu_hours
        good = hours is None or 0 < hours < math.inf
        require(good, "budget.gpu_hours", hours, "positive and finite, or null")
