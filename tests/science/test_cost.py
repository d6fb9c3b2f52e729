"""Costs in closed form against counted ones, and against published sizes."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from s3ta.cost import multiply_adds, parameter_count
from s3ta.model import build, parameters
from s3ta.settings import (
    AttentionSettings,
    Basis,
    Block,
    Denoise,
    ModelSettings,
    Queries,
    VisionSettings,
)

USUAL = [1, 2, 2, 2]


def _drawn(seed: int) -> tuple[ModelSettings, tuple[int, int], int]:
    """Any small model, image size and number of classes."""
    r = random.Random(seed)
    stages = r.randint(1, 3)
    vision = VisionSettings(
        block=r.choice(list(Block)),
        depths=[r.randint(1, 2) for _ in range(stages)],
        widths=[r.randint(3, 9) for _ in range(stages)],
        strides=[r.randint(1, 3) for _ in range(stages)],
        stem_channels=r.randint(2, 9),
        stem_kernel=r.choice([1, 3, 7]),
        stem_stride=r.randint(1, 3),
        stem_pool=r.random() < 0.5,
        widen=r.choice([1.0, 1.3]),
        squeeze_reduction=r.choice([None, 2, 3]),
        denoise=r.choice([None, *Denoise]),
    )
    attention = AttentionSettings(
        queries=r.choice(list(Queries)),
        heads=r.randint(1, 3),
        key_channels=r.randint(1, vision.channels - 1),
        basis=r.choice(list(Basis)),
        basis_frequencies=r.randint(1, 3),
        state=r.randint(2, 9),
        query_hidden=r.randint(2, 9),
        readout_hidden=r.randint(2, 9),
    )
    attended = r.random() < 0.7
    settings = ModelSettings(
        vision=vision,
        attention=attention if attended else None,
        unroll=r.randint(1, 4) if attended else 1,
        mlp_head=[] if attended else r.choice([[], [7], [5, 9]]),
        mean=[0.5],
        std=[0.5],
    )
    return settings, (r.randint(5, 40), r.randint(5, 40)), r.randint(2, 11)


@pytest.mark.parametrize("seed", range(60))
def test_any_small_model_costs_what_is_counted(seed: int) -> None:
    settings, size, classes = _drawn(seed)
    with torch.device("meta"):
        model = build(settings, classes, seed=0).eval().requires_grad_(False)
        images = torch.empty(1, 1, *size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    assert 2 * multiply_adds(settings, size, classes) == counter.get_total_flops()
    assert parameter_count(settings, classes) == parameters(model)


def test_the_drawn_models_have_every_kind() -> None:
    drawn = [_drawn(seed)[0] for seed in range(60)]
    attended = [s.attention for s in drawn if s.attention is not None]
    assert {a.queries for a in attended} == set(Queries)
    assert {a.basis for a in attended} == set(Basis)
    assert {s.vision.denoise for s in drawn} == {None, *Denoise}
    assert any(s.mlp_head for s in drawn)


def test_an_image_may_be_given_by_its_side() -> None:
    settings = ModelSettings()
    assert multiply_adds(settings, 64, 10) == multiply_adds(settings, (64, 64), 10)
    assert multiply_adds(settings, 64, 10) < multiply_adds(settings, (64, 96), 10)


def test_a_step_of_attention_costs_the_same_whichever_it_is() -> None:
    def cost(k: int) -> int:
        settings = ModelSettings(attention=AttentionSettings(), unroll=k)
        return multiply_adds(settings, 224, 1000)

    step = cost(2) - cost(1)
    # The query network, 4 heads over 784 places, and the LSTM, written out.
    query = 1024 * 1024 + 1024 * 4 * 576
    attended = 4 * 784 * (576 + 1600)
    assert step == query + attended + 4 * 1024 * (4 * 1600 + 1024)
    assert [cost(k) - cost(1) for k in (4, 16)] == [3 * step, 15 * step]


# Sizes that others state, in millions and billions.


def _g(settings: ModelSettings) -> float:
    return multiply_adds(settings, 224, 1000) / 1e9


def _m(settings: ModelSettings) -> float:
    return parameter_count(settings, 1000) / 1e6


@pytest.mark.parametrize(
    ("depths", "strides", "millions", "billions"),
    [
        ([3, 4, 6, 3], USUAL, 25.557, 4.09),  # torchvision's documentation
        ([3, 4, 23, 3], USUAL, 44.549, 7.80),
        ([3, 8, 36, 3], USUAL, 60.193, 11.51),
        ([3, 8, 36, 3], [1, 2, 1, 1], 60.193, 46.16),
    ],
)
def test_resnets_have_their_published_sizes(
    depths: list[int], strides: list[int], millions: float, billions: float
) -> None:
    settings = ModelSettings(vision=VisionSettings(depths=depths, strides=strides))
    assert _m(settings) == pytest.approx(millions, abs=5e-4)
    assert _g(settings) == pytest.approx(billions, abs=5e-3)


def test_denoising_adds_11_15_million_parameters_and_5_96_billion_multiply_adds() -> None:
    plain = ModelSettings(vision=VisionSettings(strides=USUAL))
    denoise = ModelSettings(vision=VisionSettings(strides=USUAL, denoise=Denoise.gaussian))
    assert _m(denoise) - _m(plain) == pytest.approx(11.15, abs=5e-3)
    assert _g(denoise) - _g(plain) == pytest.approx(5.96, abs=5e-3)


def test_squeeze_and_excite_adds_a_tenth_of_the_parameters_and_hardly_a_multiply_add() -> None:
    """[26]: 66.8 million; a tenth more, with 2 / 16 of the sum over blocks of channels squared."""
    plain = ModelSettings(vision=VisionSettings(strides=USUAL))
    squeeze = ModelSettings(vision=VisionSettings(strides=USUAL, squeeze_reduction=16))
    assert _m(squeeze) == pytest.approx(66.8, abs=0.05)
    blocks = zip([3, 8, 36, 3], [256, 512, 1024, 2048], strict=True)
    added = sum(n * (2 * c * c // 16 + c + c // 16) for n, c in blocks)
    assert round((_m(squeeze) - _m(plain)) * 1e6) == added
    assert _g(squeeze) - _g(plain) < 0.01


def test_s3tas_head_has_30_to_41_million_parameters_and_1_2_to_1_6_percent_of_the_work() -> None:
    plain, s3ta = ModelSettings(), ModelSettings(attention=AttentionSettings(), unroll=16)
    assert 30 < _m(s3ta) - _m(plain) < 41
    assert 0.012 < (_g(s3ta) - _g(plain)) / _g(plain) < 0.016
    assert _m(s3ta) == _m(replace(s3ta, unroll=2))


def test_a_model_of_ones_own_has_no_cost_by_its_settings() -> None:
    with pytest.raises(ValueError, match=r"model\.factory"):
        multiply_adds(ModelSettings(factory="mine:build"), 224, 1000)


def test_costs_need_no_torch() -> None:
    code = "import s3ta.cost, sys; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
