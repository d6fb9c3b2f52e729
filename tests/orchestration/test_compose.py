"""From YAML to typed experiments: what wins, what a sweep becomes, and what wrong keys are told."""

from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from s3ta.errors import UserError
from s3ta.settings import (
    Augmentation,
    Block,
    Goal,
    Objective,
    StageSettings,
    TrainAttackSettings,
    TrainSettings,
)
from s3ta_platform.compose import Composed, compose, groups_folder
from s3ta_platform.explain import in_words, type_at, unknown_key
from s3ta_platform.schema_cluster import Executor

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


@pytest.mark.parametrize("value", ["results", "'a b'", "s3://bucket/x-1"])
def test_a_folder_of_results_beside_the_file_is_no_group(tmp_path: Path, value: str) -> None:
    for name in ("results", "name"):
        (tmp_path / name).mkdir()
    e = compose(written(tmp_path), [f"results={value}", "name=other"]).experiment
    assert (e.results, e.name) == (value.strip("'"), "other")


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


def test_a_curriculum_is_a_list_of_stages_in_a_file_a_point_or_an_override(tmp_path: Path) -> None:
    stages = [StageSettings(unroll=2), StageSettings(from_epoch=1, unroll=4, attack_steps=3)]
    text = "[{unroll: 2}, {from_epoch: 1, unroll: 4, attack_steps: 3}]"
    assert compose(written(tmp_path, f"train: {{curriculum: {text}}}\n")).experiment.train == (
        replace(compose(written(tmp_path)).experiment.train, curriculum=stages)
    )
    override = compose(written(tmp_path), [f"train.curriculum={text}"]).experiment
    assert override.train.curriculum == stages
    none, some = sweep(tmp_path, f"sweep: {{grid: {{train.curriculum: [[], {text}]}}}}\n").trials
    assert none.experiment.train.curriculum == []
    assert some.experiment.train.curriculum == stages


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{unrol: 2}]", "train.curriculum.unrol is no setting. Did you mean train.curriculum.un"),
        ("[{unroll: x}]", "train.curriculum.unroll is 'x', but must be a whole number, or null"),
        ("[4]", r"train.curriculum\[0\] is 4, but must be a section with any of from_epoch"),
        ("{unroll: 2}", r"a section stands where a \[list\] must"),
        ("[{from_epoch: 1}]", r"train.curriculum is \[1\]: .* from 0 at the first"),
    ],
)
def test_a_mistake_inside_a_list_of_sections_is_told(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        compose(written(tmp_path, f"train: {{curriculum: {text}}}\n"))


def test_an_unroll_in_a_curriculum_needs_attention(tmp_path: Path) -> None:
    stages = ["model=small_resnet", "train.curriculum=[{unroll: 2}]"]
    with pytest.raises(UserError, match=r"train.curriculum is \[2\]: it must be without an unroll"):
        compose(written(tmp_path), stages)
    steps = compose(
        written(tmp_path), ["model=small_resnet", "train.curriculum=[{attack_steps: 2}]"]
    )
    assert steps.experiment.train.curriculum == [StageSettings(attack_steps=2)]


COLOUR = ["model.mean=[0.5,0.5,0.5]", "model.std=[0.5,0.5,0.5]"]


@pytest.mark.parametrize("more", [[], ["data.image_size=28"], COLOUR])
def test_the_imagenet_augmentation_needs_colours_and_a_size(
    tmp_path: Path, more: list[str]
) -> None:
    with pytest.raises(
        UserError, match=r"train.augmentation is 'imagenet'.*data.image_size is set"
    ):
        compose(written(tmp_path), [*more, "train.augmentation=imagenet"])


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
        ("train.curriculum[1].unroll", "a whole number, or null"),
        ("train.curriculum.epsilon_255", "a number, or null"),
        ("about.title", "a text"),
        ("model.vision.stem_pool", "true or false"),
    ],
)
def test_a_type_is_said_in_words(path: str, words: str) -> None:
    assert in_words(type_at(path)) == words


def test_the_recipes_are_what_they_are_called(tmp_path: Path) -> None:
    def recipe(name: str) -> TrainSettings:
        photos = [*COLOUR, "data.image_size=28", f"train={name}"]
        return compose(written(tmp_path), photos).experiment.train

    paper = TrainSettings(augmentation=Augmentation.imagenet)
    assert recipe("paper") == paper
    assert recipe("paper_30_steps") == replace(paper, attack=TrainAttackSettings(steps=30))
    xie = recipe("denoise")
    assert (xie.epochs, xie.batch, xie.microbatches, xie.attack.steps) == (110, 4096, 128, 30)
    assert xie.learning_rate == 0.1 * xie.batch / 256
    assert recipe("plain") == replace(paper, objective=Objective.plain)
    assert recipe("alp") == replace(paper, objective=Objective.alp)
    assert recipe("llr") == replace(
        paper,
        objective=Objective.llr,
        attack=TrainAttackSettings(epsilon_255=4, steps=2),
        label_smoothing=0.0,
    )
    small = recipe("small_adversarial")
    for name in ("plain", "alp"):
        assert recipe(f"small_{name}") == replace(small, objective=Objective[name])
    llr = recipe("small_llr")
    assert (llr.objective, llr.attack) == (Objective.llr, small.attack)


def test_every_packaged_group_fits_the_schema(tmp_path: Path) -> None:
    groups = ("cluster", "data", "model", "tracking", "train")
    files = sorted(f for group in groups for f in (groups_folder() / group).glob("*.yaml"))
    attacks = sorted((groups_folder() / "attack").glob("*.yaml"))
    assert min(len(files), len(attacks)) >= 20
    for file, attack in zip_longest(files, attacks, fillvalue=attacks[0]):
        group = file.parent.name
        overrides = [f"attack@evaluate.attacks.pgd={attack.stem}", "name=tried"]
        if group != "attack":
            overrides.append(f"{group}={file.stem}")
        if group == "cluster":
            overrides.append("train.batch=256")  # no fewer microbatches than workers
        if group == "train":
            overrides += [*COLOUR, "data.image_size=28"]  # for the recipes that are for photos
        compose(
            written(tmp_path, head=HEAD.replace("  - _self_", "  - tracking: local\n  - _self_")),
            overrides,
        )
