"""What a worker of the fan-out does: load the model once, then piece after piece."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from s3ta.batch import Batch, Conditions
from s3ta.engine import Engine, make_engine
from s3ta.evaluation import AttackRun
from s3ta.gradient_probe import probe_gradients
from s3ta.tally import Array, Rows, Tally
from s3ta.trajectory import Trajectory
from s3ta_platform import pulse
from s3ta_platform.analysis_plan import natural_images
from s3ta_platform.bisection import shard_head
from s3ta_platform.data import ParquetImages
from s3ta_platform.devices import pin_arithmetic, resolve_device
from s3ta_platform.gallery import make_gallery, no_gallery
from s3ta_platform.jobs import EvaluateJob, open_images
from s3ta_platform.leases import Lease, Leases
from s3ta_platform.models import load_model, load_source
from s3ta_platform.patience import patient
from s3ta_platform.pieces import LandscapeTask, NaturalTask, Piece, piece_parts
from s3ta_platform.probe_rows import write_probe
from s3ta_platform.rows import SCHEMA, to_parquet
from s3ta_platform.shards import DoWork, Portraits, Probe, Quarantine, Shard, Work
from s3ta_platform.snapshots import Snapshots
from s3ta_platform.storage import open_storage
from s3ta_platform.stored_shards import read_tally
from s3ta_platform.studies import Attack, Beat, attention, landscape, natural
from s3ta_platform.study_files import to_parquet as to_study
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
            return _batch(images, ids)

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
        return make_engine(model, engine, shape_CHW, job.evaluate.tile, resolve_device(job.device))

    def do(self, work: Work) -> Tally:
        """Do one piece, unless it is stored; Postponed if another driver is at it."""
        if isinstance(work, Quarantine):
            return self._quarantine(work)
        lease = self.leases.take(work.key)
        if lease is None:
            raise Postponed(f"{work} is being done by another run")
        try:
            if isinstance(work, Shard):
                stored = self.storage.exists(work.name)
                return read_tally(self.storage, work) if stored else self._shard(work, lease)
            if not self.storage.exists(work.name):
                self._look(work, lease)
            return Tally()
        finally:
            lease.release()

    def _look(self, work: Portraits | Piece | Probe, lease: Lease) -> None:
        """Work that counts nothing."""
        if isinstance(work, Probe):
            self._probe(work, lease)
            return
        if isinstance(work, Portraits):
            runs, made = 1, self._portraits(work, lease)
        else:
            runs, made = len(work.runs), self._piece(work, lease)
        self.storage.put_new(work.name, made)
        for number in range(runs):
            self.snapshots.clear(_part(work, number))

    def _shard(self, work: Shard, lease: Lease) -> Tally:
        batch, engine = self.read(work.image_ids), self.led_by(work.trajectory.source)
        run = AttackRun(engine, batch, work.trajectory, self.conditions)
        rows = self._attack(run, work, work.key, lease)
        self._store(work, rows, {})
        self.snapshots.clear(work.key)
        return Tally.of(rows)

    def _portraits(self, work: Portraits, lease: Lease) -> bytes:
        if work.skip:
            return no_gallery()
        batch = self.read(work.image_ids)
        last = replace(work.trajectory, readings=work.trajectory.readings[-1:])
        rows, attacked = self._attacked(batch, last, work, _part(work, 0), lease)
        return make_gallery(self.engine, batch, rows, attacked)

    def _piece(self, work: Piece, lease: Lease) -> bytes:
        def beat() -> None:
            pulse.beat()
            lease.beat()

        def attack(run: Trajectory) -> tuple[Rows, Tensor]:
            part = _part(work, work.runs.index(run))
            return self._attacked(self.read(work.image_ids), run, work, part, lease)

        found = self._study(work, attack, beat)
        parts = piece_parts(self.job, work.analysis, work.task, work.runs, work.image_ids)
        return to_study(found, {"key": work.key, "key_parts": parts, "torch": torch.__version__})

    def _study(self, work: Piece, attack: Attack, beat: Beat) -> dict[str, Array]:
        task, runs, seed, tile = work.task, work.runs, self.conditions.seed, self.conditions.tile
        if isinstance(task, NaturalTask):
            batch = _batch(natural_images(self.job), work.image_ids)
            return natural(self.engine, batch, task, tile=tile, beat=beat)
        batch = self.read(work.image_ids)
        if isinstance(task, LandscapeTask):
            return landscape(
                self.engine, batch, task, runs, attack, seed=seed, tile=tile, beat=beat
            )
        return attention(self.engine, batch, task, runs, attack, seed=seed, tile=tile, beat=beat)

    def _attacked(
        self, batch: Batch, run: Trajectory, work: Portraits | Piece, key: str, lease: Lease
    ) -> tuple[Rows, Tensor]:
        """The rows of one run, and where the images ended up; saved states lie under `key`."""
        engine = self.led_by(run.source)
        attack = AttackRun(engine, batch, run, self.conditions, keep_attacked=True)
        rows = self._attack(attack, work, key, lease)
        assert attack.attacked_NCHW is not None
        return rows, torch.from_numpy(attack.attacked_NCHW).to(self.engine.device)

    def _attack(self, run: AttackRun, work: Work, key: str, lease: Lease) -> Rows:
        """Go on where a lost worker was. The key names model, attack, images, tile and device."""
        saved = Snapshots(self.storage, 0, log.warning).latest(key)
        if saved is not None:
            step, arrays, about = saved
            if about == {"key": key, "torch": torch.__version__}:
                run.restore(arrays)
                log.info("%s: goes on at step %d", work, step)
            else:
                log.warning("%s: the saved state is of %s: done anew", work, about)
        return run.run(_Keeper(self.job, self.snapshots, key, lease))

    def _probe(self, work: Probe, lease: Lease) -> None:
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
        write_probe(self.storage, work, rows, self.job.probe_parts(work.image_ids))

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


def _batch(images: ParquetImages, ids: tuple[int, ...]) -> Batch:
    pixels, labels = images.read(ids)
    return Batch(images_BCHW=pixels, labels_B=labels, image_ids_B=np.array(ids, dtype=np.int64))


def _part(work: Portraits | Piece, number: int) -> str:
    """Under which key the states of one of its runs are saved."""
    return f"{work.key}-{number}"


class _Keeper:
    """After every step: show that the work is alive, and save its state now and then."""

    def __init__(self, job: EvaluateJob, snapshots: Snapshots, key: str, lease: Lease) -> None:
        self.every_s, self.every_steps = job.cluster.snapshot_s, job.cluster.snapshot_steps
        self.snapshots, self.key, self.lease = snapshots, key, lease
        self.saved_at, self.steps = time.monotonic(), 0

    def __call__(self, run: AttackRun) -> None:
        pulse.beat(run.done)
        self.lease.beat()
        self.steps += 1
        if self._is_due() and run.done < run.total:
            about = {"key": self.key, "torch": torch.__version__}
            self.snapshots.save(self.key, run.done, run.state(), about)
            self.saved_at, self.steps = time.monotonic(), 0

    def _is_due(self) -> bool:
        if self.every_steps is not None:
            return self.steps >= self.every_steps
        return time.monotonic() - self.saved_at >= self.every_s
