"""From YAML to typed experiments: what wins, what a sweep becomes, and what wrong keys are told."""

from pathlib import Path
from typing import Any

import pytest

from s3ta.errors import UserError
from s3ta.settings import Block, Goal
from s3ta_platform.compose import Composed, compose, groups_folder
from s3ta_platform.explain import in_words, type_at, unknown_key
from s3ta_platform.schema import Executor

HEAD = """
defaults:
  - schema
  - data: fashion_mnist_sample
  - model: small_s3ta
  - train: small_adversarial
  - attack@evaluate.attacks.pgd: small_pgd
  - cluster: inline
  - _self_
name: mine
"""


def written(folder: Path, more: str = "", head: str = HEAD) -> Path:
    file = folder / "mine.yaml"
    file.write_text(head + more)
    return file


def sweep(folder: Path, more: str, *overrides: str) -> Composed:
    return compose(written(folder, more), overrides)


def test_a_file_anywhere_finds_the_packaged_groups(tmp_path: Path) -> None:
    e = compose(written(tmp_path)).experiment
    assert e.model.vision.block is Block.basic, "from small_resnet, through small_s3ta"
    assert e.model.attention is not None
    assert e.train.attack.epsilon_255 == 25.5
    assert e.evaluate.attacks["pgd"].goal is Goal.random_target
    assert e.cluster.executor is Executor.inline


def test_a_path_with_odd_characters_is_found(tmp_path: Path) -> None:
    odd = tmp_path / "a b (1), [x]='$y'"
    odd.mkdir()
    assert compose(written(odd)).experiment.name == "mine"


def test_groups_beside_the_file_come_before_the_packaged_ones(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "small_adversarial.yaml").write_text("epochs: 77\n")
    assert compose(written(tmp_path)).experiment.train.epochs == 77


def test_the_file_wins_over_its_groups_and_an_override_over_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "train: {epochs: 9, batch: 64}\n")
    e = compose(file, ["train.batch=96"]).experiment
    assert (e.train.epochs, e.train.batch) == (9, 96)


def test_without_self_the_file_wins_all_the_same(tmp_path: Path) -> None:
    file = written(tmp_path, "train: {epochs: 9}\n", HEAD.replace("  - _self_\n", ""))
    assert compose(file).experiment.train.epochs == 9


def test_a_file_without_a_sweep_is_one_trial(tmp_path: Path) -> None:
    trials = compose(written(tmp_path)).trials
    assert [t.point for t in trials] == [{}]


def test_a_grid_is_the_product_in_the_files_order(tmp_path: Path) -> None:
    grid = "sweep: {grid: {model.unroll: [4, 2], train.seed: [1, 0]}}\n"
    found = sweep(tmp_path, grid).trials
    assert [(t.experiment.model.unroll, t.experiment.train.seed) for t in found] == [
        (4, 1),
        (4, 0),
        (2, 1),
        (2, 0),
    ]


def test_a_group_of_a_point_comes_before_its_single_values(tmp_path: Path) -> None:
    points = "sweep: {points: [{model.unroll: 3, model: small_s3ta}, {model: small_resnet}]}\n"
    first, second = sweep(tmp_path, points).trials
    assert first.experiment.model.unroll == 3
    assert second.experiment.model.attention is None


@pytest.mark.parametrize(
    ("value", "setting", "expected"),
    [
        ("{train: {epochs: 3, attack: {steps: 1}}}", "train.attack.steps", 1),
        ("{data.train_images: null}", "data.train_images", None),
        ("{train.decay_epochs: [1, 2.5]}", "train.decay_epochs", [1.0, 2.5]),
        ('{about.title: "Über \\"k\\", it\'s = [1]"}', "about.title", 'Über "k", it\'s = [1]'),
        ("{model.vision.stem_pool: true}", "model.vision.stem_pool", True),
        ("{train.weight_decay: 1e-4}", "train.weight_decay", 1e-4),
        ("{train.schedule: step}", "train.schedule.name", "step"),
    ],
)
def test_a_point_may_hold_any_value(
    tmp_path: Path, value: str, setting: str, expected: object
) -> None:
    point = sweep(tmp_path, f"sweep: {{points: [{value}]}}\n").trials[0]
    found: Any = point.experiment
    for name in setting.split("."):
        found = getattr(found, name)
    assert found == expected


def test_an_override_is_common_to_all_points(tmp_path: Path) -> None:
    found = sweep(tmp_path, "sweep: {grid: {model.unroll: [1, 2]}}\n", "train.epochs=7").trials
    assert [t.experiment.train.epochs for t in found] == [7, 7]


def test_an_axis_cannot_be_overridden(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"override 'model.unroll=3': .* varied by this sweep"):
        sweep(tmp_path, "sweep: {grid: {model.unroll: [1, 2]}}\n", "model.unroll=3")


def test_a_mistake_is_laid_to_the_override_that_made_it(tmp_path: Path) -> None:
    file = written(tmp_path, "train: {epochs: 3}\n")
    with pytest.raises(UserError, match=r"^override 'train.epochs=0': train.epochs is 0"):
        compose(file, ["name=other", "train.epochs=0"])
    with pytest.raises(UserError, match=r"mine.yaml: train.epochs is 'x'"):
        compose(written(tmp_path, "train: {epochs: x}\n"), ["name=other"])


def test_a_mistake_inside_a_group_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    group = tmp_path / "train" / "small_adversarial.yaml"
    group.write_text("epoch: 77\n")
    with pytest.raises(UserError, match=r"in train/small_adversarial.yaml: train.epoch is no"):
        compose(written(tmp_path))
    group.write_text("epochs: [\n")
    with pytest.raises(UserError, match=r"train/small_adversarial.yaml, line 2"):
        compose(written(tmp_path))


def test_an_unknown_key_names_the_nearest_one() -> None:
    assert "Did you mean train.batch?" in unknown_key("train.bach")
    assert "Did you mean train.attack.steps?" in unknown_key("train.steps")
    assert "Did you mean" not in unknown_key("train.zzz")
    assert "train.attack has: goal, epsilon_255, steps" in unknown_key("train.attack.zzz")
    assert "evaluate.attacks has: pgd." in unknown_key("evaluate.attacks.zzz", ["pgd"])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("train.epochs", "a whole number"),
        ("train.learning_rate", "a number"),
        ("data.train_images", "a whole number, or null"),
        ("train.schedule", "one of step, cosine"),
        ("evaluate.attacks.any.readings", "a [list] of whole numbers"),
        ("evaluate.attacks.any.readings[3]", "a whole number"),
        ("sweep.grid.train.epochs", "a [list] of values"),
        ("about.title", "a text"),
        ("model.vision.stem_pool", "true or false"),
    ],
)
def test_a_type_is_said_in_words(path: str, words: str) -> None:
    assert in_words(type_at(path)) == words


def test_every_packaged_group_fits_the_schema(tmp_path: Path) -> None:
    homes = {"attack": "attack@evaluate.attacks.pgd"}
    groups = ("attack", "cluster", "data", "model", "tracking", "train")
    files = sorted(f for group in groups for f in (groups_folder() / group).glob("*.yaml"))
    assert len(files) >= 30
    for file in files:
        group = file.parent.name
        overrides = [f"{homes.get(group, group)}={file.stem}", "name=tried"]
        compose(
            written(tmp_path, head=HEAD.replace("  - _self_", "  - tracking: local\n  - _self_")),
            overrides,
        )
