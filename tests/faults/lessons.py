"""A training that is disturbed: an experiment, where it is, and how two of them are compared."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from diary import Diary
from drill import Run

from s3ta_platform import checkpoints
from s3ta_platform.compose import compose
from s3ta_platform.jobs import TrainJob
from s3ta_platform.plan import make_plan
from s3ta_platform.ray_backend import OnRay
from s3ta_platform.storage import open_storage
from s3ta_platform.trials import checkpoint_prefix, checkpoint_steps, read_history, trained_name

EPOCHS, EPOCH_STEPS = 10, 13
STEPS = EPOCHS * EPOCH_STEPS
EXPERIMENT = f"""
defaults:
  - schema
  - data: fashion_mnist_sample
  - model: small_s3ta
  - train: small_adversarial
  - attack@evaluate.attacks.pgd: small_pgd
  - tracking: none
  - _self_
name: lessons
model:
  vision: {{depths: [1], widths: [8], strides: [2], stem_channels: 8}}
  attention: {{heads: 2, key_channels: 4, basis_frequencies: 2, state: 8, query_hidden: 8}}
  unroll: 2
data: {{train_images: 624}}
train: {{epochs: {EPOCHS}, batch: 48, microbatch: 8, attack: {{steps: 2}}}}
evaluate: {{images: 8, tile: 8, gallery_images: 0, attacks: {{pgd: {{readings: [1]}}}}}}
cluster: {{cpus: 2, train_workers: 2, checkpoint_steps: 7, hang_s: 60}}
"""

Weights = dict[str, torch.Tensor]


def training_job(file: Path, root: Path, *overrides: str) -> TrainJob:
    (trial,) = make_plan(compose(file, [f"results={root}", *overrides])).trials
    return trial.train


def key_of(file: Path) -> str:
    return training_job(file, file.parent / "nowhere").key


def saved(root: Path, key: str) -> int:
    """The step of the last checkpoint."""
    return max(checkpoint_steps(open_storage(str(root)), key), default=0)


def being_written(root: Path, key: str) -> list[Path]:
    """The folders of checkpoints that are not complete, behind the last that is."""
    folders = sorted((root / checkpoint_prefix(key)).glob("[0-9]*"))
    last = max((f for f in folders if (f / "manifest.json").exists()), default=Path())
    return [f for f in folders if f.name > last.name and not (f / "manifest.json").exists()]


def expect_same(found: Path, reference: Path, key: str) -> None:
    """Bit-equal weights, momentum and curve, and the same record of the trained model."""
    one, other = _ending(found, key), _ending(reference, key)
    assert one[0].keys() == other[0].keys()
    for name, tensor in one[0].items():
        assert torch.equal(tensor, other[0][name]), name
    assert one[1:] == other[1:]


def _ending(root: Path, key: str) -> tuple[Weights, list[dict[str, float]], object]:
    storage = open_storage(str(root))
    step = checkpoints.latest(storage, checkpoint_prefix(key))
    assert step == STEPS
    groups = checkpoints.load(storage, checkpoint_prefix(key), step).tensors
    weights = {f"{group}/{name}": t for group, ts in groups.items() for name, t in ts.items()}
    curve = [
        {name: value for name, value in point.items() if name != "time"}
        for point in read_history(storage, key)
    ]
    assert [point["step"] for point in curve] == [*range(1, STEPS + 1)]
    return weights, curve, json.loads(storage.get(trained_name(key)))


def is_over(run: Run) -> bool:
    return run.process.poll() is not None


def wait(run: Run, seconds: float) -> None:
    """So long, or until it is over."""
    began = time.monotonic()
    run.until(lambda: is_over(run) or time.monotonic() - began >= seconds)


@contextmanager
def training(job: TrainJob, diary: Diary, scratch: Path) -> Iterator[None]:
    """In a thread of this process, on the cluster; at the end of the block it has ended."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(OnRay(job.cluster, str(scratch)).train, job, diary)
        try:
            yield
        finally:
            diary.calm()
        done.result(timeout=180)
