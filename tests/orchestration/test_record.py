"""Content keys: what decides a result is in them, and nothing else."""

import json
from dataclasses import fields, replace
from enum import Enum
from typing import Any

import pytest
from tiny import model, train_job

from s3ta.settings import (
    AttackSettings,
    Denoise,
    Dtype,
    EngineSettings,
    ModelSettings,
    StageSettings,
    TrainSettings,
)
from s3ta.trajectory import trajectories
from s3ta_platform.jobs import EvaluateJob
from s3ta_platform.record import content_key, plain, trial_parts
from s3ta_platform.schema import DataSettings
from s3ta_platform.schema_cluster import ClusterSettings
from s3ta_platform.schema_evaluate import EvaluateSettings

DATA = DataSettings(train="a.parquet", test="b.parquet", train_images=624)
TRAIN = train_job("nowhere").train


def key(
    model_: ModelSettings | None = None,
    train: TrainSettings = TRAIN,
    data: DataSettings = DATA,
    digest: str = "d",
) -> str:
    return content_key(**trial_parts(model_ or model(), train, data, digest))


def test_the_key_of_fixed_settings_never_changes() -> None:
    """If this fails, every stored result is lost: raise RESULT_VERSION only on purpose."""
    assert key() == "489caebf84487e4f"
    assert key() == key()


def test_a_key_does_not_depend_on_the_order_of_names() -> None:
    assert content_key(a=1, b={"x": 1, "y": 2}) == content_key(b={"y": 2, "x": 1}, a=1)
    assert content_key(a=[1, 2]) != content_key(a=[2, 1])


def other(value: Any) -> Any:
    """Another value of the same kind that the checks accept."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, Enum):
        return next(member for member in type(value) if member is not value)
    if isinstance(value, int):
        return value * 2 + 2
    if isinstance(value, float):
        return value / 2 + 0.013
    return None


def variants(settings: Any) -> dict[str, Any]:
    """The settings with one field changed, for every field, however deep."""
    found = {}
    for f in fields(settings):
        value = getattr(settings, f.name)
        if hasattr(value, "__dataclass_fields__"):
            for name, changed in variants(value).items():
                found[f"{f.name}.{name}"] = replace(settings, **{f.name: changed})
        elif f.name in OWN_MODELS:
            continue
        elif f.name in LISTS:
            found[f.name] = replace(settings, **LISTS[f.name])
        else:
            found[f.name] = replace(settings, **{f.name: other(value)})
    return found


LISTS: dict[str, dict[str, Any]] = {
    "depths": {"depths": [1, 2]},
    "widths": {"widths": [8, 24]},
    "strides": {"strides": [2, 2]},
    "mean": {"mean": [0.3]},
    "std": {"std": [0.3]},
    "decay_epochs": {"decay_epochs": [1.0]},
    "squeeze_reduction": {"squeeze_reduction": 4},
    "denoise": {"denoise": Denoise.gaussian},
    "mlp_head": {"mlp_head": [8], "attention": None, "unroll": 1},
    "curriculum": {"curriculum": [StageSettings(unroll=3)]},
    "stem_kernel": {"stem_kernel": 5},
    "batch": {"batch": 96},
    "microbatch": {"microbatch": 16},
}
"""Fields whose other value must fit to their neighbours', or that have none."""

OWN_MODELS = ("factory", "input_range")
"""Of models that are not trained here."""


def test_every_setting_of_model_and_training_is_in_the_key() -> None:
    models = {f"model.{n}": key(model_=m) for n, m in variants(model()).items()}
    trains = {f"train.{n}": key(train=t) for n, t in variants(TRAIN).items()}
    assert len(models) == 24
    assert len(trains) == 32
    keys = {"as it is": key(), **models, **trains}
    same = [n for n in keys if n != "as it is" and keys[n] == keys["as it is"]]
    assert same == []
    assert len(set(keys.values())) == len(keys)


def test_the_mlp_head_is_in_the_key_of_a_model_without_attention() -> None:
    plain_model = replace(model(), attention=None, unroll=1)
    assert key(replace(plain_model, mlp_head=[8])) != key(plain_model)


@pytest.mark.parametrize(
    "change", [{"from_epoch": 1}, {"unroll": 2}, {"attack_steps": 2}, {"epsilon_255": 2.0}]
)
def test_every_setting_of_a_curriculums_stage_is_in_the_key(change: dict[str, Any]) -> None:
    second = StageSettings(from_epoch=2)
    one, other = (
        key(train=replace(TRAIN, curriculum=[StageSettings(), stage]))
        for stage in (second, replace(second, **change))
    )
    assert one != other


@pytest.mark.parametrize("change", [{"train_images": 8}, {"subset_seed": 3}, {"image_size": 14}])
def test_the_choice_of_training_images_is_in_the_key(change: dict[str, Any]) -> None:
    assert key(data=replace(DATA, **change)) != key()


def test_the_content_of_the_training_files_is_in_the_key_and_their_place_is_not() -> None:
    assert key(digest="e") != key()
    moved = replace(DATA, train="/elsewhere/a.parquet", test="c.parquet")
    assert key(data=moved) == key()


JOB = EvaluateJob(
    trial="t",
    model=model(),
    model_digest="m",
    checkpoint_step=5,
    data=DATA,
    test_digest="d",
    classes=10,
    evaluate=EvaluateSettings(attacks={"pgd": AttackSettings(readings=[2, 16])}),
    root="here",
    threads=1,
    device="cpu",
    device_class="cpu-1",
    cluster=ClusterSettings(),
)
SHORT, LONG = trajectories(JOB.evaluate.attacks["pgd"])


def test_the_key_of_a_shard_never_changes() -> None:
    assert JOB.key(LONG, (1, 2)) == "3441918815739e04"


@pytest.mark.parametrize(
    "change",
    [
        {"model_digest": "n"},
        {"test_digest": "e"},
        {"device_class": "cuda"},
        {"data": replace(DATA, image_size=14)},
        {"evaluate": replace(JOB.evaluate, seed=2)},
        {"evaluate": replace(JOB.evaluate, tile=16)},
        {"evaluate": replace(JOB.evaluate, engine=EngineSettings(fold=False))},
        {"evaluate": replace(JOB.evaluate, engine=EngineSettings(dtype=Dtype.bfloat16))},
    ],
)
def test_what_decides_a_shard_is_in_its_key(change: dict[str, Any]) -> None:
    assert replace(JOB, **change).key(LONG, (1, 2)) != JOB.key(LONG, (1, 2))


def test_the_attack_and_the_images_are_in_a_shards_key() -> None:
    stronger = replace(JOB.evaluate.attacks["pgd"], epsilon_255=17)
    keys = {
        JOB.key(LONG, (1, 2)),
        JOB.key(SHORT, (1, 2)),
        JOB.key(LONG, (1, 3)),
        JOB.key(trajectories(stronger)[-1], (1, 2)),
    }
    assert len(keys) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"trial": "u"},
        {"root": "there"},
        {"checkpoint_step": 6},
        {"evaluate": replace(JOB.evaluate, shard_steps=3, images=9, gallery_images=0)},
    ],
)
def test_what_decides_no_row_is_not_in_its_key(change: dict[str, Any]) -> None:
    assert replace(JOB, **change).key(LONG, (1, 2)) == JOB.key(LONG, (1, 2))


def test_settings_become_what_json_can_hold() -> None:
    text = json.loads(json.dumps(plain(model())))
    assert text["vision"]["block"] == "basic"
    assert text["vision"]["depths"] == [1, 1]
