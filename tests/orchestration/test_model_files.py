"""The models that experiments choose by name are what their first line says, and fit to be used."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from s3ta.cost import multiply_adds, parameter_count
from s3ta.engine import make_engine
from s3ta.model import build, parameters
from s3ta.settings import EngineSettings, ModelSettings
from s3ta.vision import batchnorms
from s3ta_platform.compose import compose, groups_folder

FILES = {file.stem: file for file in sorted((groups_folder() / "model").glob("*.yaml"))}
SMALL = [name for name in FILES if name.startswith("small_")]

FULL_SIZE = {
    "resnet50": ("ResNet-50", 25_557_032, 4_089_184_256),
    "resnet101": ("ResNet-101", 44_549_160, 7_801_405_440),
    "resnet152": ("ResNet-152", 60_192_808, 11_513_626_624),
    "resnet152_wide_map": ("ResNet-152 (1,2,1,1)", 60_192_808, 46_156_742_656),
    "resnet152_mlp": ("ResNet-152 (1,2,1,1) MLP", 94_073_408, 46_190_613_936),
    "resnet152_widened": ("ResNet-152 (1,2,1,1) x1.25", 93_360_440, 72_082_391_040),
    "se_resnet152": ("SE-ResNet-152", 66_821_848, 11_520_204_800),
    "denoise152": ("ResNet-152 denoise", 71_341_608, 17_472_678_912),
    "s3ta": ("S3TA-16", 94_048_552, 46_807_015_424),
    "s3ta_fourier": ("S3TA-16 fourier", 94_048_552, 46_807_015_424),
    "s3ta_uniform": ("S3TA-16 uniform", 90_637_352, 46_752_489_472),
    "s3ta_fixed": ("S3TA-16 fixed queries", 90_639_656, 46_752_489_472),
    "s3ta_one_shot": ("S3TA-16 one-shot", 164_064_296, 46_369_759_232),
}
"""Name, parameters for 1000 classes, multiply-adds of one forward pass at 224 x 224."""


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSettings]:
    """Every file of experiments/model, composed as an experiment would."""
    file = tmp_path_factory.mktemp("models") / "mine.yaml"
    file.write_text(
        "defaults: [schema, {data: fashion_mnist_sample}, {model: small_resnet}, _self_]\n"
        "name: mine\n"
    )
    return {name: compose(file, [f"model={name}"]).experiment.model for name in FILES}


def _size_and_classes(name: str) -> tuple[int, int]:
    return (28, 10) if name in SMALL else (224, 1000)


@pytest.mark.parametrize("name", FILES)
def test_a_model_costs_what_is_counted(name: str, chosen: dict[str, ModelSettings]) -> None:
    settings, (size, classes) = chosen[name], _size_and_classes(name)
    with torch.device("meta"):
        model = build(settings, classes, seed=0).eval().requires_grad_(False)
        images = torch.empty(1, settings.channels, size, size)
    with FlopCounterMode(display=False) as counter:
        model(images)
    assert 2 * multiply_adds(settings, size, classes) == counter.get_total_flops()
    assert parameter_count(settings, classes) == parameters(model)


def test_full_size_models_have_their_names_and_sizes(chosen: dict[str, ModelSettings]) -> None:
    found = {
        name: (s.name, parameter_count(s, 1000), multiply_adds(s, 224, 1000))
        for name, s in chosen.items()
        if name not in SMALL
    }
    assert found == FULL_SIZE


def test_no_two_models_have_one_name(chosen: dict[str, ModelSettings]) -> None:
    names = [settings.name for settings in chosen.values()]
    assert len(set(names)) == len(FILES)


def test_the_small_models_that_were_there_keep_their_names(
    chosen: dict[str, ModelSettings],
) -> None:
    assert chosen["small_resnet"].name == "ResNet-8"
    assert chosen["small_s3ta"].name == "S3TA-4"


@pytest.mark.parametrize("name", FILES)
def test_the_first_line_says_how_large_a_model_is(
    name: str, chosen: dict[str, ModelSettings]
) -> None:
    line, (size, classes) = FILES[name].read_text().splitlines()[0], _size_and_classes(name)
    said = re.search(r"([\d.]+) (M|k) parameters", line)
    assert line.startswith("# ")
    assert said is not None
    unit = {"M": 1e6, "k": 1e3}[said[2]]
    assert f"{parameter_count(chosen[name], classes) / unit:.{_digits(said[1])}f}" == said[1]
    work = re.search(r"([\d.]+) G multiply-adds", line)
    assert (work is None) == (name in SMALL)
    if work is not None:
        billions = multiply_adds(chosen[name], size, classes) / 1e9
        assert f"{billions:.{_digits(work[1])}f}" == work[1]


def _digits(number: str) -> int:
    return len(number.partition(".")[2])


@pytest.mark.parametrize(
    ("control", "model"),
    [
        ("resnet152_mlp", "s3ta"),
        ("resnet152_widened", "s3ta"),
        ("small_resnet_mlp", "small_s3ta"),
        ("small_resnet_widened", "small_s3ta"),
    ],
)
def test_controls_of_equal_size_have_as_many_parameters_to_one_percent(
    control: str, model: str, chosen: dict[str, ModelSettings]
) -> None:
    classes = _size_and_classes(control)[1]
    counts = [parameter_count(chosen[name], classes) for name in (control, model)]
    assert counts[0] == pytest.approx(counts[1], rel=0.01)


def test_small_files_mirror_the_full_sized_ones(chosen: dict[str, ModelSettings]) -> None:
    """The same control, of the same part of the same kind of model."""
    mirrors = {
        "resnet152_mlp": "small_resnet_mlp",
        "resnet152_widened": "small_resnet_widened",
        "se_resnet152": "small_se_resnet",
        "denoise152": "small_denoise",
        **{name: f"small_{name}" for name in FULL_SIZE if name.startswith("s3ta")},
    }
    for name, mirror in mirrors.items():
        full, small = chosen[name], chosen[mirror]
        assert (full.vision.widen != 1) == (small.vision.widen != 1), mirror
        assert bool(full.mlp_head) == bool(small.mlp_head), mirror
        assert bool(full.vision.squeeze_reduction) == bool(small.vision.squeeze_reduction), mirror
        assert full.vision.denoise is small.vision.denoise, mirror
        assert (full.attention is None) == (small.attention is None), mirror
        if full.attention is not None and small.attention is not None:
            assert full.attention.queries is small.attention.queries
            assert full.attention.basis is small.attention.basis


@pytest.mark.parametrize("name", SMALL)
def test_small_models_can_be_attacked_with_batchnorm_folded(
    name: str, chosen: dict[str, ModelSettings]
) -> None:
    """The engine refuses a model whose answers depend on an image's place or company."""
    model = build(chosen[name], 10, seed=0)
    with torch.no_grad():
        for norm in batchnorms(model):  # else blocks that start as the identity stay out of it
            norm.weight.fill_(0.5)
    assert make_engine(model, EngineSettings(), (1, 28, 28), tile=32).folded


def test_the_small_models_start_from_the_weights_they_always_had(
    chosen: dict[str, ModelSettings],
) -> None:
    """Stored trials would otherwise differ from new ones of the same seed."""
    expected = {
        "small_resnet": {
            "vision.conv1.weight": (0.1793237, 0.1201702),
            "vision.fc.weight": (0.0048933, 0.0073418),
        },
        "small_s3ta": {
            "vision.conv1.weight": (0.1793237, 0.1201702),
            "core.weight_ih": (-0.0741186, -0.0765299),
            "initial_cell": (-0.0282817, -0.0543743),
            "readout.2.weight": (-0.0095502, -0.0153621),
        },
    }
    for name, weights in expected.items():
        state = build(chosen[name], 10, seed=3).state_dict()
        for key, first in weights.items():
            assert state[key].flatten()[:2].tolist() == pytest.approx(first, abs=1e-6), key
