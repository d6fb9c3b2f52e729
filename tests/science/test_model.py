"""S3TA and the plain ResNet behind one interface."""

from collections.abc import Callable

import pytest
import torch

from s3ta.errors import UserError
from s3ta.model import S3TA, PlainResNet, build, parameters
from s3ta.settings import AttentionSettings, ModelSettings

Models = Callable[..., S3TA]
Settings = Callable[..., ModelSettings]
IMAGES = torch.rand(3, 1, 6, 10, generator=torch.Generator().manual_seed(0))


def test_the_number_of_parameters_does_not_depend_on_the_unroll(tiny_settings: Settings) -> None:
    counts = {parameters(build(tiny_settings(k), 5, seed=0)) for k in (1, 2, 16)}
    assert len(counts) == 1


def test_the_paper_head_adds_30_to_41_million_parameters() -> None:
    settings = ModelSettings(attention=AttentionSettings(), unroll=16)
    with torch.device("meta"):
        model = S3TA(settings, 1000)
        plain = PlainResNet(ModelSettings(), 1000)
    # Queries 4 x (512 + 64), answers 4 x (1536 + 64), 1024 everywhere else; no fc of the ResNet.
    query = 1024 * 1024 + 1024 + 4 * 576 * (1024 + 1)
    core = 4 * 1024 * (4 * 1600 + 1024 + 2)
    readout = 1024 * 1024 + 1024 + 1000 * (1024 + 1)
    vision = parameters(plain) - 1000 * (2048 + 1)
    assert parameters(model) == vision + query + core + readout + 2 * 1024
    assert 30e6 < parameters(model) - parameters(plain) < 41e6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reading_step_j_of_a_longer_unroll_equals_unrolling_j(
    dtype: torch.dtype, tiny_model: Models
) -> None:
    model, images = tiny_model(4).to(dtype), IMAGES.to(dtype)
    trace = model.trace(images)
    assert trace.logits_BTC.dtype == dtype
    assert trace.logits_BTC.shape == (3, 4, 5)
    for j in range(1, 5):
        assert torch.equal(trace.logits_BTC[:, j - 1], model(images, unroll=j))
    assert torch.equal(model.trace(images, unroll=2).logits_BTC, trace.logits_BTC[:, :2])
    assert torch.equal(model(images), trace.logits_BTC[:, -1])
    # The steps are not all the same answer.
    assert (trace.logits_BTC[:, 0] - trace.logits_BTC[:, 1]).abs().amax() > 1e-3


def test_at_least_one_glance_is_taken(tiny_model: Models) -> None:
    model = tiny_model(2)
    for call in (model, model.trace):
        with pytest.raises(UserError, match=r"unroll is 0: .* at least one glance"):
            call(IMAGES, unroll=0)


def test_maps_lie_on_the_feature_grid_and_sum_to_one(tiny_model: Models) -> None:
    maps_BTQHW = tiny_model(3).trace(IMAGES).maps_BTQHW
    assert maps_BTQHW.shape == (3, 3, 2, 3, 5)
    assert (maps_BTQHW >= 0).all()
    torch.testing.assert_close(maps_BTQHW.sum(dim=(3, 4)), torch.ones(3, 3, 2))


@pytest.mark.parametrize("unroll", [None, 2])
def test_an_image_equal_to_the_mean_enters_as_zeros(unroll: int | None, tiny_model: Models) -> None:
    model = tiny_model(unroll, channels=3)
    images = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1).expand(2, 3, 4, 4).clone()
    images[1, 1] += 0.3  # one standard deviation of the second channel
    entered: list[torch.Tensor] = []
    model.vision.conv1.register_forward_pre_hook(lambda _, inputs: entered.extend(inputs))
    model(images)
    assert not entered[0][0].any()
    expected = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1).expand(3, 4, 4)
    torch.testing.assert_close(entered[0][1], expected)


def test_the_resnet_averages_its_last_map_into_one_linear_layer(
    tiny_model: Callable[..., PlainResNet],
) -> None:
    model = tiny_model(None)
    features_BCHW = model.vision.features((IMAGES - 0.4) / 0.2)
    weight, bias = (model.get_parameter(f"vision.fc.{name}") for name in ("weight", "bias"))
    expected = torch.einsum("bchw,kc->bk", features_BCHW, weight) / 15 + bias
    torch.testing.assert_close(model(IMAGES), expected)


@pytest.mark.parametrize("unroll", [None, 2])
def test_weights_are_a_function_of_the_seed_and_the_global_generator_is_left_alone(
    unroll: int | None, tiny_settings: Settings
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build(tiny_settings(unroll), 5, seed=1).state_dict()
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    again = build(tiny_settings(unroll), 5, seed=1).state_dict()
    other = build(tiny_settings(unroll), 5, seed=2).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["vision.conv1.weight"], other["vision.conv1.weight"])


def test_models_of_any_unroll_load_one_anothers_weights(tiny_settings: Settings) -> None:
    two, four = (build(tiny_settings(k), 5, seed=k) for k in (2, 4))
    four.load_state_dict(two.state_dict())
    assert isinstance(four, S3TA)
    assert torch.equal(four.eval()(IMAGES, unroll=2), two.eval()(IMAGES))


def test_settings_of_the_image_are_not_among_the_weights(tiny_settings: Settings) -> None:
    names = build(tiny_settings(2), 5, seed=0).state_dict().keys()
    assert not {"mean", "std"} & set(names)
