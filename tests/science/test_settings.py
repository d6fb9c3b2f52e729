"""Bad values are refused with the key, the value and the constraint."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3ta.errors import UserError
from s3ta.settings import (
    AttackSettings,
    AttentionSettings,
    Basis,
    Block,
    Denoise,
    Goal,
    LinearitySettings,
    Loss,
    Mode,
    ModelSettings,
    Objective,
    Queries,
    StageSettings,
    TrainAttackSettings,
    TrainSettings,
    VisionSettings,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("kind", "values", "key", "shown", "constraint"),
    [
        (
            VisionSettings,
            {"depths": [3, 0, 1, 1]},
            "model.vision.depths",
            "[3, 0, 1, 1]",
            "at least 1",
        ),
        (VisionSettings, {"widths": []}, "model.vision.widths", "[]", "at least 1"),
        (VisionSettings, {"strides": [1, 2]}, "model.vision", "[1, 2]", "as many depths as widths"),
        (VisionSettings, {"stem_channels": 0}, "model.vision.stem_channels", "0", "at least 1"),
        (VisionSettings, {"stem_kernel": 4}, "model.vision.stem_kernel", "4", "an odd number"),
        (VisionSettings, {"widen": 0.0}, "model.vision.widen", "0.0", "positive and finite"),
        (VisionSettings, {"widen": NAN}, "model.vision.widen", "nan", "positive and finite"),
        (VisionSettings, {"widen": 0.001}, "model.vision.widen", "0.001", "each width at least 1"),
        (
            VisionSettings,
            {"squeeze_reduction": 257},
            "model.vision.squeeze_reduction",
            "257",
            "from 1 to 256, the channels of the narrowest stage",
        ),
        (
            VisionSettings,
            {"squeeze_reduction": 0},
            "model.vision.squeeze_reduction",
            "0",
            "from 1 to",
        ),
        (
            VisionSettings,
            {"block": Block.basic, "widths": [1, 2, 2, 2], "denoise": Denoise.gaussian},
            "model.vision.denoise",
            "gaussian",
            "null or dot_product",
        ),
        (AttentionSettings, {"heads": 0}, "model.attention.heads", "0", "at least 1"),
        (AttentionSettings, {"state": -2}, "model.attention.state", "-2", "at least 1"),
        (ModelSettings, {"unroll": 0}, "model.unroll", "0", "at least 1"),
        (ModelSettings, {"unroll": 4}, "model.unroll", "4", "1 for a model without attention"),
        (
            ModelSettings,
            {"attention": AttentionSettings(key_channels=2048)},
            "model.attention.key_channels",
            "2048",
            "less than the last feature map's 2048 channels",
        ),
        (ModelSettings, {"mlp_head": [8, 0]}, "model.mlp_head", "[8, 0]", "at least 1, or empty"),
        (
            ModelSettings,
            {"mlp_head": [8], "attention": AttentionSettings()},
            "model.mlp_head",
            "[8]",
            "empty for a model with attention",
        ),
        (ModelSettings, {"mean": [0.5]}, "model.mean and model.std", "[0.5]", "one number each"),
        (ModelSettings, {"std": [0.1, 0.0, 0.1]}, "model.std", "0.0", "positive"),
        (
            ModelSettings,
            {"factory": "mine"},
            "model.factory",
            "'mine'",
            "package.module:function",
        ),
        (
            ModelSettings,
            {"factory": ":build"},
            "model.factory",
            "':build'",
            "package.module:function",
        ),
        (
            ModelSettings,
            {"factory": "mine:build", "attention": AttentionSettings()},
            "model.attention",
            "set",
            "absent where model.factory",
        ),
        (
            ModelSettings,
            {"factory": "mine:build", "input_range": [255, 0]},
            "model.input_range",
            "[255, 0]",
            "two finite numbers",
        ),
        (ModelSettings, {"input_range": [0, 255]}, "model.input_range", "[0, 255]", "unless"),
        (AttackSettings, {"epsilon_255": 0}, "attack.epsilon_255", "0", "above 0 and at most 255"),
        (AttackSettings, {"epsilon_255": NAN}, "attack.epsilon_255", "nan", "above 0"),
        (AttackSettings, {"readings": []}, "attack.readings", "[]", "at least 1"),
        (AttackSettings, {"readings": [0, 10]}, "attack.readings", "[0, 10]", "at least 1"),
        (AttackSettings, {"readings": [100, 10]}, "attack.readings", "[100, 10]", "ascending"),
        (AttackSettings, {"readings": [10, 10]}, "attack.readings", "[10, 10]", "without repeats"),
        (TrainAttackSettings, {"steps": -1}, "train.attack.steps", "-1", "at least 0"),
        (
            TrainAttackSettings,
            {"epsilon_255": 256},
            "train.attack.epsilon_255",
            "256",
            "at most 255",
        ),
        (
            TrainAttackSettings,
            {"clean_start_share": 1.5},
            "train.attack.clean_start_share",
            "1.5",
            "between 0 and 1",
        ),
        (TrainSettings, {"epochs": 0}, "train.epochs", "0", "at least 1"),
        (
            TrainSettings,
            {"batch": 100},
            "train.batch",
            "100",
            "a multiple of train.microbatch (32)",
        ),
        (TrainSettings, {"learning_rate": -0.1}, "train.learning_rate", "-0.1", "positive"),
        (TrainSettings, {"learning_rate": NAN}, "train.learning_rate", "nan", "positive"),
        (TrainSettings, {"momentum": 1.0}, "train.momentum", "1.0", "below 1"),
        (TrainSettings, {"label_smoothing": 1.0}, "train.label_smoothing", "1.0", "below 1"),
        (TrainSettings, {"batchnorm_decay": -0.1}, "train.batchnorm_decay", "-0.1", "at least 0"),
        (TrainSettings, {"weight_decay": -1e-4}, "train.weight_decay", "-0.0001", "at least 0"),
        (TrainSettings, {"warmup_epochs": -1.0}, "train.warmup_epochs", "-1.0", "at least 0"),
        (TrainSettings, {"seed": -1}, "train.seed", "-1", "from 0 to 2^63 - 1"),
        (TrainSettings, {"pairing_weight": -0.5}, "train.pairing_weight", "-0.5", "at least 0"),
        (TrainSettings, {"pairing_weight": NAN}, "train.pairing_weight", "nan", "finite"),
        (
            TrainSettings,
            {"objective": Objective.alp, "attack": TrainAttackSettings(steps=0)},
            "train.attack.steps",
            "0",
            "at least 1, in every stage, where train.objective is alp (plain",
        ),
        (
            TrainSettings,
            {"objective": Objective.llr, "curriculum": [StageSettings(attack_steps=0)]},
            "train.attack.steps",
            "0",
            "at least 1, in every stage, where train.objective is llr",
        ),
        (
            TrainSettings,
            {"curriculum": [StageSettings(from_epoch=5)]},
            "train.curriculum",
            "[5]",
            "from 0 at the first",
        ),
        (
            TrainSettings,
            {"curriculum": [StageSettings(from_epoch=e) for e in (0, 70, 35)]},
            "train.curriculum",
            "[0, 70, 35]",
            "ascends, without repeats",
        ),
        (
            TrainSettings,
            {"curriculum": [StageSettings(from_epoch=e) for e in (0, 35, 35)]},
            "train.curriculum",
            "[0, 35, 35]",
            "without repeats",
        ),
        (
            TrainSettings,
            {"epochs": 70, "curriculum": [StageSettings(from_epoch=e) for e in (0, 70)]},
            "train.curriculum",
            "[0, 70]",
            "below train.epochs (70)",
        ),
        (StageSettings, {"from_epoch": -1}, "train.curriculum.from_epoch", "-1", "at least 0"),
        (StageSettings, {"unroll": 0}, "train.curriculum.unroll", "0", "at least 1, or null"),
        (
            StageSettings,
            {"attack_steps": -1},
            "train.curriculum.attack_steps",
            "-1",
            "at least 0, or null",
        ),
        (
            StageSettings,
            {"epsilon_255": 0},
            "train.curriculum.epsilon_255",
            "0",
            "above 0 and at most 255",
        ),
        (
            LinearitySettings,
            {"slope_weight": -1},
            "train.linearity.slope_weight",
            "-1",
            "at least 0",
        ),
        (
            LinearitySettings,
            {"nonlinearity_weight": NAN},
            "train.linearity.nonlinearity_weight",
            "nan",
            "at least 0 and finite",
        ),
        (
            LinearitySettings,
            {"search_rate": 0},
            "train.linearity.search_rate",
            "0",
            "positive and finite",
        ),
    ],
)
def test_a_bad_value_is_refused_with_key_value_and_constraint(
    kind: Callable[..., object], values: dict[str, Any], key: str, shown: str, constraint: str
) -> None:
    with pytest.raises(UserError) as refused:
        kind(**values)
    message = str(refused.value)
    assert message.startswith(f"{key} is ")
    assert shown in message
    assert constraint in message
    assert "Change" in message  # the remedy


def test_the_defaults_are_the_papers_model_and_recipe() -> None:
    vision, train = VisionSettings(), TrainSettings()
    assert (vision.depths, vision.strides, vision.channels) == ([3, 8, 36, 3], [1, 2, 1, 1], 2048)
    assert (train.batch, train.microbatch, train.microbatches) == (1024, 32, 32)
    assert (train.attack.epsilon_255, train.attack.steps) == (16.0, 10)


USUAL = {"strides": [1, 2, 2, 2]}
SMALL: dict[str, Any] = {"block": Block.basic, "depths": [1], "widths": [64], "strides": [2]}
VISION_NAMES: list[tuple[dict[str, Any], str]] = [
    ({}, "ResNet-152 (1,2,1,1)"),
    (USUAL, "ResNet-152"),
    ({**USUAL, "block": Block.basic, "depths": [2, 2, 2, 2]}, "ResNet-18"),
    (SMALL, "ResNet-4"),
    ({**USUAL, "squeeze_reduction": 16}, "SE-ResNet-152"),
    ({**USUAL, "denoise": Denoise.gaussian}, "ResNet-152 denoise"),
    ({**USUAL, "denoise": Denoise.dot_product}, "ResNet-152 denoise-dot"),
    ({"widen": 1.25}, "ResNet-152 (1,2,1,1) x1.25"),
    ({**SMALL, "squeeze_reduction": 4, "denoise": Denoise.gaussian}, "SE-ResNet-4 denoise"),
]
ATTENTION_NAMES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {}, "S3TA-16"),
    ({"queries": Queries.uniform}, {}, "S3TA-16 uniform"),
    ({"queries": Queries.fixed}, {}, "S3TA-16 fixed queries"),
    ({"queries": Queries.one_shot}, {}, "S3TA-16 one-shot"),
    ({"basis": Basis.fourier, "scaled": True}, {}, "S3TA-16 fourier scaled"),
    ({"key_channels": 8}, SMALL, "S3TA-16"),
    ({}, USUAL, "S3TA-16 on ResNet-152"),
    ({"key_channels": 8}, {**SMALL, "widen": 2.0}, "S3TA-16 on ResNet-4 x2"),
    (
        {"queries": Queries.fixed},
        {"squeeze_reduction": 16},
        "S3TA-16 fixed queries on SE-ResNet-152 (1,2,1,1)",
    ),
]


@pytest.mark.parametrize(("vision", "name"), VISION_NAMES, ids=[n for _, n in VISION_NAMES])
def test_a_resnet_is_called_by_its_layers_and_what_it_has_more(
    vision: dict[str, Any], name: str
) -> None:
    settings = VisionSettings(**vision)
    assert ModelSettings(vision=settings).name == name
    assert ModelSettings(vision=settings, mlp_head=[8]).name == f"{name} MLP"


@pytest.mark.parametrize(
    ("attention", "vision", "name"), ATTENTION_NAMES, ids=[n for *_, n in ATTENTION_NAMES]
)
def test_s3ta_is_called_by_its_unroll_and_what_is_not_the_papers(
    attention: dict[str, Any], vision: dict[str, Any], name: str
) -> None:
    settings = ModelSettings(
        vision=VisionSettings(**vision), attention=AttentionSettings(**attention), unroll=16
    )
    assert settings.name == name


def test_own_models_and_attacks_have_the_names_that_tables_show() -> None:
    assert ModelSettings(factory="mine.models:build").name == "build"
    assert AttackSettings(epsilon_255=25.5).name == "pgd_targeted_eps25.5"
    cheap = AttackSettings(goal=Goal.untargeted, loss=Loss.margin, mode=Mode.until_success)
    assert cheap.name == "pgd_untargeted_margin_until_success_eps16"


def test_settings_schedules_and_augmentation_import_no_torch() -> None:
    code = (
        "import s3ta.settings, s3ta.trajectory, s3ta.schedules, s3ta.augmentation, sys; "
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
