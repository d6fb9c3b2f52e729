"""What a worker of the fan-out does: load the model once, then piece after piece."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from s3ta.batch import Batch, Conditions
from s3ta.engine import Engine, make_engine
from s3ta.evaluation import AttackRun
from s3ta.gradient_probe import probe_gradients
from s3ta.tally import Rows, Tally
from s3ta_platform import pulse
from s3ta_platform.bisection import shard_head
from s3ta_platform.devices import pin_arithmetic
from s3ta_platform.gallery import make_gallery
from s3ta_platform.jobs import EvaluateJob, open_images
from s3ta_platform.leases import Lease, Leases
from s3ta_platform.models import load_model, load_source
from s3ta_platform.patience import patient
from s3ta_platform.probe_rows import write_probe
from s3ta_platform.record import plain
from s3ta_platform.rows import SCHEMA, to_parquet
from s3ta_platform.shards import DoWork, Portraits, Probe, Quarantine, Shard, Work
from s3ta_platform.snapshots import Snapshots
from s3ta_platform.storage import open_storage
from s3ta_platform.stored_shards import read_tally
from s3ta_platform.tickets import Postponed

log = logging.getLogger("ray.s3ta")

BATCHES_KEPT = 4
"""Decoded batches: the attacks on one piece of the images follow one another."""


def build_worker(job: EvaluateJob, owner: str) -> DoWork:
    """The function that does a piece of the evaluation in this process, for the driver `owner`."""
    return Worker(job, owner).do


class Worker:
    """One model and its images in memory."""

    def __init__(self, job: EvaluateJob, owner: str) -> None:
        pin_arithmetic(job.threads)
        cluster = job.cluster
        plain_storage = open_storage(job.root)
        self.job = job
        self.storage = patient(plain_storage, cluster.store_patience_s, log.warning, pulse.beat)
        # No lease is worth a pause or an fsync, nor is saving a state; but one that is there is.
        unhurried = open_storage(job.root, durable=False)
        self.leases = Leases(unhurried, owner, cluster.lease_s)
        self.snapshots = Snapshots(unhurried, cluster.snapshot_budget_mb * 10**6, log.warning)
        self.images = images = open_images(job.data.test, job.data, job.model)
        self.engine = self._engine(load_model(job, self.storage))
        self.engines: dict[str, Engine] = {}
        """By the digest of the model that leads."""
        self.conditions = Conditions(
            classes=job.classes, seed=job.evaluate.seed, tile=job.evaluate.tile
        )

        @lru_cache(maxsize=BATCHES_KEPT)
        def read(ids: tuple[int, ...]) -> Batch:
            pixels, labels = images.read(ids)
            return Batch(
                images_BCHW=pixels, labels_B=labels, image_ids_B=np.array(ids, dtype=np.int64)
            )

        self.read: Callable[[tuple[int, ...]], Batch] = read

    def led_by(self, source: str) -> Engine:
        """The model, with the gradients of the one of that digest; its own for an empty one."""
        if source and source not in self.engines:
            other = next(s for s in self.job.sources if s.digest == source)
            storage = self.storage if other.root == self.job.root else open_storage(other.root)
            lead = self._engine(load_source(other, self.job, storage))
            self.engines[source] = replace(self.engine, fast=lead.fast, folded=lead.folded)
        return self.engines[source] if source else self.engine

    def _engine(self, model: nn.Module) -> Engine:
        job = self.job
        shape_CHW, engine = self.images.shape_CHW, job.evaluate.engine
        return make_engine(model, engine, shape_CHW, job.evaluate.tile, job.device)

    def do(self, work: Work) -> Tally:
        """Do one piece, unless it is stored; Postponed if another driver is at it."""
        if isinstance(work, Quarantine):
            return self._quarantine(work)
        lease = self.leases.take(work.key)
        if lease is None:
            raise Postponed(f"{work} is being done by another run")
        try:
            if self.storage.exists(work.name):
                return read_tally(self.storage, work) if isinstance(work, Shard) else Tally()
            if isinstance(work, Probe):
                return self._probe(work, lease)
            return (
                self._portraits(work) if isinstance(work, Portraits) else self._shard(work, lease)
            )
        finally:
            lease.release()

    def _portraits(self, work: Portraits) -> Tally:
        batch = None if work.skip else self.read(work.image_ids)
        engine = self.led_by(work.trajectory.source)
        gallery = make_gallery(engine, batch, work, self.conditions)
        self.storage.put_new(work.name, gallery)
        return Tally()

    def _shard(self, work: Shard, lease: Lease) -> Tally:
        batch = self.read(work.image_ids)
        engine = self.led_by(work.trajectory.source)
        run = AttackRun(engine, batch, work.trajectory, self.conditions)
        self._restore(run, work)
        rows = run.run(_Keeper(self.job, self.snapshots, work, lease))
        self._store(work, rows, {})
        self.snapshots.clear(work.key)
        return Tally.of(rows)

    def _restore(self, run: AttackRun, work: Shard) -> None:
        """Go on where a lost worker was. The key names model, attack, images, tile and device."""
        saved = Snapshots(self.storage, 0, log.warning).latest(work.key)
        if saved is None:
            return
        step, arrays, about = saved
        if about != {"key": work.key, "torch": torch.__version__}:
            log.warning("%s: the saved state is of %s: done anew", work, about)
            return
        run.restore(arrays)
        log.info("%s: goes on at step %d", work, step)

    def _probe(self, work: Probe, lease: Lease) -> Tally:
        def on_image(done: int) -> None:
            pulse.beat(done)
            lease.beat()

        settings = self.job.evaluate.probe
        assert settings is not None
        rows = probe_gradients(
            self.engine,
            self.read(work.image_ids),
            self.conditions,
            epsilon=settings.epsilon_255 / 255,
            pairs=settings.pairs,
            delta=settings.delta,
            on_image=on_image,
        )
        write_probe(self.storage, work, rows, {"probe": plain(settings)})
        return Tally()

    def _quarantine(self, work: Quarantine) -> Tally:
        none = {f.name: np.zeros(0, f.type.to_pandas_dtype()) for f in SCHEMA}
        image_id = work.shard.image_ids[0]
        self._store(work.shard, none, {str(image_id): work.error})
        self.snapshots.clear(work.shard.key)
        return Tally()

    def _store(self, work: Shard, rows: Rows, quarantined: dict[str, str]) -> None:
        head = {
            **shard_head(self.job, work),
            "quarantined": quarantined,
            "folded": self.engine.folded,
            "torch": torch.__version__,
        }
        self.storage.put_new(work.name, to_parquet(rows, head))


class _Keeper:
    """After every step: show that the work is alive, and save its state now and then."""

    def __init__(self, job: EvaluateJob, snapshots: Snapshots, work: Shard, lease: Lease) -> None:
        self.every_s, self.every_steps = job.cluster.snapshot_s, job.cluster.snapshot_steps
        self.snapshots, self.work, self.lease = snapshots, work, lease
        self.saved_at, self.steps = time.monotonic(), 0

    def __call__(self, run: AttackRun) -> None:
        pulse.beat(run.done)
        self.lease.beat()
        self.steps += 1
        if self._is_due() and run.done < run.total:
            about = {"key": self.work.key, "torch": torch.__version__}
            self.snapshots.save(self.work.key, run.done, run.state(), about)
            self.saved_at, self.steps = time.monotonic(), 0

    def _is_due(self) -> bool:
        if self.every_steps is not None:
            return self.steps >= self.every_steps
        return time.monotonic() - self.saved_at >= self.every_s
