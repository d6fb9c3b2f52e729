"""Whole sweeps on Ray as a user starts them: the curriculum under kills, six trials under halving.

The toy of test_tune_over_train.py shows the same without a model, and step by step.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from drill import Run, ended
from mlflow import MlflowClient
from test_tune_over_train import BYSTANDER, python

from s3ta_platform import checkpoints
from s3ta_platform.compose import compose
from s3ta_platform.plan import Plan, make_plan, trial_state
from s3ta_platform.storage import open_storage
from s3ta_platform.train import train
from s3ta_platform.trials import checkpoint_prefix, checkpoint_steps, read_history

pytestmark = pytest.mark.sweeps

HEAD = """
defaults:
  - schema
  - data: fashion_mnist_sample
  - model: small_s3ta
  - train: small_adversarial
  - attack@evaluate.attacks.pgd: small_pgd
  - _self_
model:
  vision: {depths: [1], widths: [8], strides: [2], stem_channels: 8}
  attention: {heads: 2, key_channels: 4, basis_frequencies: 2, state: 8, query_hidden: 8}
evaluate: {images: 8, tile: 8, gallery_images: 0, attacks: {pgd: {readings: [1]}}}
"""
EPOCH_STEPS, EPOCHS = 13, 9
CURRICULUM = f"""{HEAD}
name: growing
tracking: {{store: none}}
data: {{train_images: 624}}
train:
  epochs: {EPOCHS}
  batch: 48
  microbatch: 8
  attack: {{steps: 2}}
  curriculum:
    - {{unroll: 2, attack_steps: 6}}
    - {{from_epoch: 3, unroll: 4, attack_steps: 3, epsilon_255: 16}}
    - {{from_epoch: 6, unroll: 8}}
cluster: {{cpus: 2, stage_workers: [1, 2, 2], checkpoint_steps: 5, hang_s: 60}}
"""
HALVED = f"""{HEAD}
name: halved
sweep:
  grid: {{train.learning_rate: [0.001, 0.01, 0.02, 0.05, 0.1, 0.2]}}
  asha: {{metric: train/loss, best: min, reduction_factor: 2}}
data: {{train_images: 192}}
train: {{epochs: 2, batch: 32, microbatch: 8, warmup_epochs: 0, attack: {{steps: 1}}}}
cluster: {{cpus: 2}}
"""


@pytest.fixture(scope="module", autouse=True)
def _places() -> Iterator[None]:
    """Short paths for Ray's sockets, and one thread a process."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tempfile.mkdtemp(prefix="sweeps-", dir="/tmp")
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("TMPDIR", folder)
        patch.setenv("OMP_NUM_THREADS", "1")
        root = Path(__file__).parents[2]
        for place in (root / "platform", root):
            patch.setenv("PYTHONPATH", str(place), prepend=os.pathsep)
        yield
        shutil.rmtree(folder, ignore_errors=True)


def written(folder: Path, text: str) -> Path:
    file = folder / "sweep.yaml"
    file.write_text(text)
    return file


def planned(file: Path, root: Path) -> Plan:
    return make_plan(compose(file, [f"results={root}"]))


def ending(root: Path, key: str) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights and momentum at the end, and the curve without its times."""
    storage = open_storage(str(root))
    saved = checkpoints.load(storage, checkpoint_prefix(key), EPOCHS * EPOCH_STEPS)
    tensors = {f"{g}/{n}": t for g, ts in saved.tensors.items() for n, t in ts.items()}
    points = read_history(storage, key)
    return tensors, [{n: v for n, v in point.items() if n != "time"} for point in points]


def saved_at_least(root: Path, key: str, step: int) -> bool:
    return max(checkpoint_steps(open_storage(str(root)), key), default=0) >= step


# Killed within the first stage, right at its end, and within the last. Workers outlive their driver
# by seconds, in which they could reach the end of a stage: within one, all of the run is killed.
KILLS = (
    (5, 38, Run.end),
    (3 * EPOCH_STEPS, 6 * EPOCH_STEPS, Run.kill),
    (6 * EPOCH_STEPS + 2, EPOCHS * EPOCH_STEPS - 1, Run.end),
)


def test_a_curriculum_killed_in_and_between_stages_ends_in_the_bits_of_one_loop(
    tmp_path: Path,
) -> None:
    file, root = written(tmp_path, CURRICULUM), tmp_path / "killed"
    (trial,) = planned(file, root).trials
    threads = torch.get_num_threads()
    train(planned(file, tmp_path / "alone").trials[0].train)
    torch.set_num_threads(threads)
    storage, reached = open_storage(str(root)), []
    for least, _, kill in KILLS:
        with ended(Run(file, root)) as run:
            run.until(partial(saved_at_least, root, trial.key, least), seconds=600)
            kill(run)
            run.expect_gone()
        reached.append(max(checkpoint_steps(storage, trial.key)))
    print(f"killed at steps {reached} of {EPOCHS * EPOCH_STEPS}")
    assert all(low <= step <= high for step, (low, high, _) in zip(reached, KILLS, strict=True))
    with ended(Run(file, root)) as run:
        run.finish(seconds=900)
    killed, alone = ending(root, trial.key), ending(tmp_path / "alone", trial.key)
    assert killed[1] == alone[1]
    assert [point["stage"] for point in alone[1]] == [0] * 39 + [1] * 39 + [2] * 39
    assert killed[0].keys() == alone[0].keys()
    assert all(torch.equal(tensor, alone[0][name]) for name, tensor in killed[0].items())
    assert trial_state(storage, trial).complete


def test_six_trials_under_halving_on_two_cores_end_and_leave_nothing(tmp_path: Path) -> None:
    """Beside a second Ray; once they are over nothing is done again."""
    file, root = written(tmp_path, HALVED), tmp_path / "r"
    other = python("-c", BYSTANDER)
    try:
        with ended(Run(file, root)) as run:
            output = run.finish(seconds=900)
    finally:
        out, err = other.communicate("\n", timeout=60)
    assert (other.returncode, out.split(), err) == (0, ["42", "42"], "")
    plan = planned(file, root)
    states = {trial.key: trial_state(plan.storage, trial) for trial in plan.trials}
    stopped = [key for key, state in states.items() if state.stopped]
    assert all(state.over for state in states.values())
    assert 1 <= len(stopped) <= 5
    for key in stopped:
        why = states[key].stopped
        assert why is not None
        assert why.cutoff is not None
        assert (states[key].step, why.epoch) == (6, 1)
        assert why.value > why.cutoff
    assert output.count("stopped after epoch 1") == len(stopped)
    expect_nothing_left(root)
    expect_true_runs(root, set(stopped), 6)
    before = files(root)
    with ended(Run(file, root)) as run:
        assert "Nothing to compute" in run.finish()
    assert files(root) == before


def expect_nothing_left(root: Path) -> None:
    """At the end the driver had to remove its mailbox and an actor of Ray's own, nothing else."""
    logs = "".join(file.read_text(errors="replace") for file in root.glob("logs/*.log"))
    removed = re.findall(r"-- removed (.+) [0-9a-f]+\n", logs)
    assert sorted(removed) == ["Mailbox", "_AutoscalingCoordinatorActor"]


def expect_true_runs(root: Path, stopped: set[str], steps: int) -> None:
    """One finished run for each trial; each step is there once."""
    client = MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
    experiment: Any = client.get_experiment_by_name("s3ta")
    runs = [
        r for r in client.search_runs([experiment.experiment_id]) if "config_key" in r.data.tags
    ]
    assert len({run.data.tags["config_key"] for run in runs}) == len(runs) == 6
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        early = run.data.tags["config_key"] in stopped
        assert (run.data.tags["stopped_early"] != "no") == early
        points = client.get_metric_history(run.info.run_id, "train/loss")
        assert [p.step for p in points] == [*range(1, (steps if early else 2 * steps) + 1)]
        assert ("eval/nominal" in run.data.metrics) != early


def files(root: Path) -> dict[str, int]:
    found = [p for part in ("trials", "evaluations") for p in (root / part).rglob("*.*")]
    return {str(p): p.stat().st_mtime_ns for p in found if p.is_file()}
