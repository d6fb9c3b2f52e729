"""Stored evaluations made by hand: no model, no attack, but rows that are consistent."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from s3ta.draws import Key, Purpose
from s3ta.settings import AttackSettings, EngineSettings, Goal
from s3ta.trajectory import Trajectory, trajectories
from s3ta_platform.evaluation_record import EvaluationRecord, write_record
from s3ta_platform.record import RESULT_VERSION, content_key, plain
from s3ta_platform.results import SweepResult, TrialResult
from s3ta_platform.rows import about, merge_rows, read_rows, to_parquet
from s3ta_platform.storage import Storage
from s3ta_platform.tables import csv_text

CLASSES = 10
TRIAL_A, TRIAL_B = "a" * 16, "b" * 16
PGD = AttackSettings(epsilon_255=16, readings=[10, 20, 50])
"""Two trajectories: 10 steps are a run of their own."""

Array = npt.NDArray[Any]
Rows = dict[str, Array]


@dataclass(kw_only=True)
class Evaluation:
    """What is made up. An image falls at a step (from then on it is wrong), and is perhaps hit
    (from then on it is predicted as its target); -1 for never."""

    trial: str = TRIAL_A
    model: str = "S3TA-4"
    digest: str = ""
    images: int = 60
    falls: Mapping[int, int] = field(default_factory=dict)
    """Image id -> step; by default it is drawn from the digest."""
    hits: Mapping[int, int] = field(default_factory=dict)
    clean_wrong: Sequence[int] = (3, 17, 41)
    quarantined: Sequence[int] = ()
    attacks: Sequence[AttackSettings] = (PGD,)
    seed: int = 1
    halfwidth: float | None = None
    shard_images: int = 20
    images_digest: str = "test images"

    def __post_init__(self) -> None:
        self.digest = self.digest or hashlib.sha256(self.trial.encode()).hexdigest()
        if not self.falls:
            draws = Key(int(self.digest[:8], 16), Purpose.ORDER).uniform(range(self.images), (2,))
            falls = (draws[:, 0] * 100).astype(int)
            self.falls = {i: int(step) for i, step in enumerate(falls) if step <= 50}
            late = {i: step + int(draws[i, 1] * 30) for i, step in self.falls.items()}
            self.hits = {i: step for i, step in late.items() if step <= 50}

    @property
    def image_ids(self) -> list[int]:
        order: list[int] = Key(self.seed, Purpose.SUBSET).permutation(self.images).tolist()
        return order

    def key_parts(self, trajectory: Trajectory, ids: Sequence[int]) -> dict[str, Any]:
        return {
            "result_version": RESULT_VERSION,
            "model": self.digest,
            "trajectory": trajectory,
            "image_ids": list(ids),
            "images": {"digest": self.images_digest, "image_size": None},
            "seed": self.seed,
            "tile": 32,
            "engine": EngineSettings(),
            "device": "cpu-1",
        }

    def rows(self, trajectory: Trajectory, image_ids: Sequence[int]) -> Rows:
        """Rows of these images under one trajectory."""
        targeted, readings = trajectory.goal is Goal.random_target, trajectory.readings
        ids = np.array([i for i in image_ids if i not in self.quarantined], dtype=np.int64)
        labels = ids % CLASSES
        targets = (
            Key(self.seed, Purpose.EVAL_TARGET).wrong_classes(ids, labels, CLASSES)
            if targeted
            else np.full(len(ids), -1)
        )
        other = np.array([min({0, 1, 2} - {*pair}) for pair in zip(labels, targets, strict=True)])
        fall = np.array([self.falls.get(int(i), -1) for i in ids])
        hit = np.array([self.hits.get(int(i), -1) if targeted else -1 for i in ids])
        clean = np.where(np.isin(ids, list(self.clean_wrong)), (labels + 1) % CLASSES, labels)
        parts = []
        for step in readings:
            fallen, is_hit = (fall >= 0) & (fall <= step), (hit >= 0) & (hit <= step)
            prediction = np.where(is_hit, targets, np.where(fallen, other, labels))
            parts.append(
                {
                    "image_id": ids,
                    "label": labels,
                    "target": targets,
                    "clean_prediction": clean,
                    "prediction": prediction,
                    "attack_prediction": prediction,
                    "correct": prediction == labels,
                    "fooled": prediction == targets,
                    "loss": np.full(len(ids), 0.5),
                    "margin": np.full(len(ids), -1.0),
                    "linf_255": np.full(len(ids), trajectory.epsilon * 255),
                    "pixel_min": np.zeros(len(ids)),
                    "pixel_max": np.ones(len(ids)),
                    "first_error_step": np.where(fallen, fall, -1),
                    "first_target_step": np.where(is_hit, hit, -1),
                    "restart": np.zeros(len(ids), int),
                    "step": np.full(len(ids), step),
                }
            )
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def record(self) -> EvaluationRecord:
        """With a shard per trajectory and piece of the permutation."""
        ids, shards = self.image_ids, []
        for attack in self.attacks:
            for trajectory in trajectories(attack):
                for first in range(0, self.images, self.shard_images):
                    piece = ids[first : first + self.shard_images]
                    shards.append(
                        {
                            "key": content_key(**self.key_parts(trajectory, piece)),
                            "attack": attack.name,
                            "trajectory": plain(trajectory),
                            "first": first,
                            "images": len(piece),
                        }
                    )
        return EvaluationRecord(
            trial=self.trial,
            model=self.model,
            model_digest=self.digest,
            images_digest=self.images_digest,
            image_ids=ids,
            classes=CLASSES,
            seed=self.seed,
            tile=32,
            halfwidth=self.halfwidth,
            shards=shards,
        )

    def store(self, storage: Storage, *, finished: int | None = None) -> EvaluationRecord:
        """Store the record and its shards, those that begin before `finished` images."""
        record, end = self.record(), self.images if finished is None else finished
        write_record(storage, record)
        by_plain = {json.dumps(plain(t)): t for a in self.attacks for t in trajectories(a)}
        for shard in record.shards:
            if shard["first"] < end:
                piece = record.image_ids[shard["first"] : shard["first"] + shard["images"]]
                trajectory = by_plain[json.dumps(shard["trajectory"])]
                put_shard(storage, self, shard["attack"], trajectory, piece)
        trained = {"step": 7, "model_digest": self.digest, "parameters": 1000}
        storage.put_new(f"trials/{self.trial}/trained.json", json.dumps(trained).encode())
        put_checkpoint(storage, self.trial, 7)
        return record


def put_shard(
    storage: Storage, made: Evaluation, attack: str, trajectory: Trajectory, ids: Sequence[int]
) -> str:
    """Store the rows of these images; gives the file's name."""
    parts = plain(made.key_parts(trajectory, ids))
    head = {
        "key": content_key(**parts),
        "key_parts": parts,
        "attack": attack,
        "quarantined": {str(i): "the worker died" for i in made.quarantined if i in ids},
        "folded": True,
        "torch": "2.9",
    }
    name = f"evaluations/{head['key']}.parquet"
    storage.put_new(name, to_parquet(made.rows(trajectory, ids), head))
    return name


def put_checkpoint(storage: Storage, trial: str, step: int) -> None:
    folder, content = f"trials/{trial}/checkpoints/{step:010d}", b"weights"
    line = {
        "file": "model.safetensors",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    manifest = {"meta": {"trial": trial}, "files": {"model.safetensors": line}}
    storage.put_new(f"{folder}/model.safetensors", content)
    storage.put_new(f"{folder}/manifest.json", json.dumps(manifest).encode())


def put_table(
    root: Path, storage: Storage, records: Sequence[EvaluationRecord], stop: int | None = None
) -> Path:
    """The table of a report, made as a report makes it; `stop`: of so many images only."""

    def rows(record: EvaluationRecord) -> pa.Table:
        end = len(record.image_ids) if stop is None else stop
        shards = [s for s in record.shards if s["first"] < end]
        merged = merge_rows(
            storage, ((s["attack"], f"evaluations/{s['key']}.parquet") for s in shards)
        )
        return merged.filter(pc.is_in(merged["image_id"], pa.array(record.image_ids[:end])))

    trials = [
        TrialResult(
            key=record.trial,
            name=record.model,
            parameters=1000,
            unroll=None,
            settings={},
            history=[],
            rows=rows(record),
            planned=len(record.image_ids),
            halfwidth=None if stop is None else record.halfwidth,
        )
        for record in records
    ]
    sweep = SweepResult(
        name="made", title="made", claim="", class_names=(), images=60, trials=trials
    )
    file = root / "sweeps" / "made" / "table.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(csv_text(sweep))
    return file


def rewrite(storage: Storage, name: str, **changes: Any) -> None:
    """Change columns of a stored file, with a digest that fits: a forgery, not damage.

    Each change takes the columns and gives the new one, or `head` what the file says of itself.
    """
    table = read_rows(storage, name)
    head: dict[str, Any] = about(table)
    rows: Rows = {n: np.array(table[n].to_numpy()) for n in table.column_names}
    for column, change in changes.items():
        if column == "head":
            head |= change
        else:
            rows[column] = np.asarray(change(rows))
    storage.delete(name)
    kept = {k: v for k, v in head.items() if k not in ("format", "sha256")}
    storage.put_new(name, to_parquet(rows, kept))
