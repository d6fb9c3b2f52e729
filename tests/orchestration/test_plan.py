"""Plans: what would run, told from the storage alone, and what can never work refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import s3ta_platform
from s3ta.errors import UserError
from s3ta.trajectory import trajectories
from s3ta_platform.compose import compose
from s3ta_platform.data import write_parquet
from s3ta_platform.plan import Plan, TrialState, check_checkpoints, make_plan, trial_state
from s3ta_platform.shards import plan_portraits, plan_shards
from s3ta_platform.trials import trained_name

SAMPLES = Path(s3ta_platform.__file__).parent / "samples" / "fashion_mnist"
HEAD = """
defaults:
  - schema
  - data: fashion_mnist_sample
  - model: small_s3ta
  - train: small_adversarial
  - attack@evaluate.attacks.pgd: small_pgd
  - tracking: none
  - _self_
name: mine
data: {train_images: 100}
train: {epochs: 3, batch: 32, microbatch: 8}
evaluate: {images: 40, tile: 8, shard_steps: 320, attacks: {pgd: {readings: [2, 20]}}}
"""


def planned(folder: Path, more: str = "", *overrides: str) -> Plan:
    file = folder / "mine.yaml"
    file.write_text(HEAD + more)
    return make_plan(compose(file, [f"results={folder}/r", *overrides]))


def test_steps_and_shards_are_counted_before_anything_is_trained(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    trial = plan.trials[0]
    assert trial.steps == 3 * (100 // 32)
    assert len(trial.test_ids) == 40
    state = trial_state(plan.storage, trial)
    # 20 steps on 3 pieces of at most 16 images; 2 steps on all 40.
    assert state == TrialState(
        trained=None, step=0, shards=3 + 1, shards_done=0, gallery_done=False
    )
    assert not (tmp_path / "r").exists()


def pretend_trained(plan: Plan) -> None:
    record = {"step": 9, "model_digest": "m", "parameters": 5}
    plan.storage.put_new(trained_name(plan.trials[0].key), json.dumps(record).encode())


def test_a_state_counts_what_is_stored_and_only_that(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    trial = plan.trials[0]
    pretend_trained(plan)
    state = trial_state(plan.storage, trial)
    assert (state.shards_done, state.gallery_done, state.complete) == (0, False, False)
    assert state.trained is not None
    job = trial.evaluation(state.trained)
    shards, portraits = plan_shards(job, trial.test_ids), plan_portraits(job, trial.test_ids)
    assert portraits is not None
    for name in [*(s.name for s in shards[1:]), portraits.name, "evaluations/other.parquet"]:
        plan.storage.put_new(name, b"x")
    state = trial_state(plan.storage, trial)
    assert (state.shards, state.shards_done, state.complete) == (4, 3, False)
    plan.storage.put_new(shards[0].name, b"x")
    assert trial_state(plan.storage, trial).complete


def test_shards_cover_every_image_once_per_trajectory(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    pretend_trained(plan)
    trial = plan.trials[0]
    trained = trial_state(plan.storage, trial).trained
    assert trained is not None
    shards = plan_shards(trial.evaluation(trained), trial.test_ids)
    assert len({s.key for s in shards}) == len(shards)
    for trajectory in trajectories(trial.experiment.evaluate.attacks["pgd"]):
        ids = [i for s in shards if s.trajectory == trajectory for i in s.image_ids]
        assert ids == trial.test_ids.tolist()


@pytest.mark.parametrize(
    "override",
    [
        "cluster.train_workers=3",
        "cluster.train_workers_min=1",
        "cluster.checkpoint_steps=5",
        "cluster.evaluate_workers=7",
        "cluster.executor=inline",
        "cluster.attempts=9",
        "tracking.store=sqlite:///elsewhere.db",
        "evaluate.shard_steps=5",
        "evaluate.images=20",
        "evaluate.attacks.pgd.readings=[3]",
        "name=other",
        "about.title=other",
    ],
)
def test_what_changes_no_model_changes_no_trial_key(tmp_path: Path, override: str) -> None:
    assert planned(tmp_path, "", override).trials[0].key == planned(tmp_path).trials[0].key


@pytest.mark.parametrize(
    "override", ["train.seed=1", "model.unroll=2", "data.train_images=99", "train.microbatch=16"]
)
def test_what_changes_the_model_changes_its_key(tmp_path: Path, override: str) -> None:
    assert planned(tmp_path, "", override).trials[0].key != planned(tmp_path).trials[0].key


def test_two_points_that_are_the_same_trial_run_once(tmp_path: Path) -> None:
    twice = "sweep: {points: [{train.seed: 0}, {train.seed: 1}, {train.seed: 0}]}\n"
    assert len(planned(tmp_path, twice).trials) == 2


@pytest.mark.parametrize(
    ("sweep", "names"),
    [
        ("{grid: {model.unroll: [2, 4]}}", ["S3TA-2", "S3TA-4"]),
        ("{grid: {train.seed: [0, 1]}}", ["S3TA-4, seed=0", "S3TA-4, seed=1"]),
        (
            "{grid: {train.curriculum: [[], [{unroll: 2}, {from_epoch: 1, unroll: 4}]]}}",
            ["S3TA-4, curriculum=none", "S3TA-4, curriculum=2-4"],
        ),
        (
            "{grid: {model.unroll: [2, 4], train.seed: [0, 1]}}",
            ["S3TA-2, seed=0", "S3TA-2, seed=1", "S3TA-4, seed=0", "S3TA-4, seed=1"],
        ),
        (
            "{points: [{model: small_s3ta}, {model: wide}]}",
            ["S3TA-4, model=small_s3ta", "S3TA-4, model=wide"],
        ),
    ],
)
def test_every_trial_has_a_name_of_its_own(tmp_path: Path, sweep: str, names: list[str]) -> None:
    (tmp_path / "model").mkdir()
    wide = "defaults: [small_s3ta]\nattention: {state: 64}\n"
    (tmp_path / "model" / "wide.yaml").write_text(wide)
    assert [t.name for t in planned(tmp_path, f"sweep: {sweep}\n").trials] == names


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.train_images=10001", "data.train_images is 10001, but .* has 10000 images"),
        ("evaluate.images=2001", "evaluate.images is 2001, but .* has 2000 images"),
        ("train.batch=128", "train.batch is 128, but there are only 100 training images"),
        ("data.classes=7", "data.classes is 7, but .* names 10 classes"),
        ("tracking.store=ftp://x", "'ftp://x' is no tracking address"),
        ("data.train=nowhere.parquet", "No Parquet file at 'nowhere.parquet'"),
    ],
)
def test_what_the_data_cannot_give_is_refused(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        planned(tmp_path, "", override)


def test_an_experiment_without_an_attack_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    lines = [x for x in HEAD.splitlines() if "attack" not in x]
    file.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"evaluate.attacks is empty: .*Add '- attack@"):
        make_plan(compose(file, [f"results={tmp_path}/r"]))


def data_set(path: Path, ids: list[int], names: list[str]) -> Path:
    """Images of the sample under other ids and class names."""
    image = pq.read_table(SAMPLES / "test.parquet", columns=["image"])["image"][0].as_py()
    write_parquet(path, [image] * len(ids), [0] * len(ids), ids, names, source="a test")
    return path


def test_files_of_two_data_sets_are_refused(tmp_path: Path) -> None:
    file = data_set(tmp_path / "other.parquet", list(range(50)), [f"a{i}" for i in range(10)])
    with pytest.raises(UserError, match="must name the same ones, in the same order"):
        planned(tmp_path, "", f"data.test={file}")


def test_training_images_are_opened_before_a_worker_does(tmp_path: Path) -> None:
    names = list(planned(tmp_path).class_names)
    file = data_set(tmp_path / "twice.parquet", [*range(99), 7, 100], names)
    with pytest.raises(UserError, match="Image id 7 occurs twice"):
        planned(tmp_path, "", f"data.train={file}")


def test_only_checkpoints_that_work_would_start_from_are_verified(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    check_checkpoints(plan)
    trial = plan.trials[0].key
    manifest: dict[str, Any] = {"meta": {"trial": "another"}, "files": {}}
    name = f"trials/{trial}/checkpoints/0000000003/manifest.json"
    plan.storage.put_new(name, json.dumps(manifest).encode())
    with pytest.raises(UserError, match=f"checkpoint of trial another.* must be of {trial}"):
        check_checkpoints(plan)
    plan.storage.delete(name)
    manifest["meta"]["trial"] = trial
    plan.storage.put_new(name, json.dumps(manifest).encode())
    check_checkpoints(plan)
