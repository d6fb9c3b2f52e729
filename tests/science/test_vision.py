"""The ResNet: torchvision's names, the paper's sizes, and a BatchNorm that moves nothing itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from s3ta.settings import Block, VisionSettings
from s3ta.vision import BasicBlock, BatchNorm, Bottleneck, ResNet

PAPER_STRIDES, USUAL_STRIDES = [1, 2, 1, 1], [1, 2, 2, 2]
DATA = Path(__file__).parent / "data"


def _resnet(depths: list[int], strides: list[int], **vision: Any) -> ResNet:
    settings = VisionSettings(depths=depths, strides=strides, **vision)
    with torch.device("meta"):
        return ResNet(settings, channels=3, classes=1000)


PUBLISHED: dict[str, dict[str, Any]] = {
    "torchvision_resnet18": {"depths": [2, 2, 2, 2], "block": Block.basic},
    "torchvision_resnet50": {"depths": [3, 4, 6, 3]},
    "torchvision_resnet101": {"depths": [3, 4, 23, 3]},
    "torchvision_resnet152": {"depths": [3, 8, 36, 3]},
    "timm_resnet50": {"depths": [3, 4, 6, 3]},
    "timm_resnet101": {"depths": [3, 4, 23, 3]},
    "timm_resnet152": {"depths": [3, 8, 36, 3]},
    "timm_seresnet152": {"depths": [3, 8, 36, 3], "squeeze_reduction": 16},
}


@pytest.mark.parametrize("strides", [USUAL_STRIDES, PAPER_STRIDES])
@pytest.mark.parametrize("published", PUBLISHED)
def test_weights_have_the_names_and_shapes_of_published_ones(
    published: str, strides: list[int]
) -> None:
    """The lists were written by those libraries: data/*.json say by which release and call."""
    listed = json.loads((DATA / f"{published}.json").read_text())["shapes"]
    own = _resnet(strides=strides, **PUBLISHED[published]).state_dict()
    assert {name: list(values.shape) for name, values in own.items()} == listed


@pytest.mark.parametrize(
    ("strides", "size", "giga_multiply_adds"),
    [(PAPER_STRIDES, 28, 46.16), (USUAL_STRIDES, 7, 11.51)],
)
def test_resnet_152_has_the_known_map_and_cost(
    strides: list[int], size: int, giga_multiply_adds: float
) -> None:
    model = _resnet([3, 8, 36, 3], strides).eval()
    images = torch.empty(1, 3, 224, 224, device="meta")
    assert model.features(images).shape == (1, 2048, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    assert counter.get_total_flops() / 2 / 1e9 == pytest.approx(giga_multiply_adds, abs=0.005)


def test_the_stride_sits_on_the_3x3_convolution_of_a_bottleneck() -> None:
    block = Bottleneck(8, 4, stride=2)
    assert [c.stride for c in (block.conv1, block.conv2, block.conv3)] == [(1, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize("block", [BasicBlock(8, 8, 1), Bottleneck(8, 2, 1)])
def test_a_new_block_is_the_identity_on_what_a_relu_gives(block: nn.Module) -> None:
    x = torch.rand(2, 8, 5, 4)
    assert torch.equal(block.train()(x), x)


def test_a_block_adds_branch_and_shortcut_before_the_relu() -> None:
    block, x = BasicBlock(3, 3, 1).eval(), -torch.rand(2, 3, 5, 4)
    assert not block(x).any()  # relu(0 + x), where 0 + relu(..) of a pre-activation net gives x
    with torch.no_grad():
        block.bn2.bias.add_(2.0)
    torch.testing.assert_close(block(x), x + 2)


def test_widening_multiplies_every_width_and_the_stems() -> None:
    model = _resnet([1, 1, 1, 1], USUAL_STRIDES, widen=1.25)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert shapes["conv1.weight"] == (80, 3, 7, 7)
    assert [shapes[f"layer{i}.0.conv2.weight"][0] for i in (1, 2, 3, 4)] == [80, 160, 320, 640]
    assert shapes["fc.weight"] == (1000, 2560)


def test_convolutions_start_with_variance_two_over_fan_out() -> None:
    torch.manual_seed(0)
    settings = VisionSettings(block=Block.basic, depths=[1], widths=[128], strides=[1])
    weight = ResNet(settings).get_parameter("layer1.0.conv1.weight")  # 64 -> 128, 3 x 3
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)


def test_the_final_layer_starts_small_and_unbiased() -> None:
    torch.manual_seed(0)
    settings = VisionSettings(block=Block.basic, depths=[1], widths=[64], strides=[1])
    model = ResNet(settings, classes=1000)
    assert model.get_parameter("fc.weight").std().item() == pytest.approx(0.01, rel=0.02)
    assert not model.get_parameter("fc.bias").any()


def _twins() -> tuple[BatchNorm, nn.BatchNorm2d]:
    ours, theirs = BatchNorm(4), nn.BatchNorm2d(4)
    with torch.no_grad():
        ours.weight.copy_(torch.tensor([1.0, 0.5, 2.0, -1.0]))
        ours.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 3.0]))
        ours.get_buffer("running_mean").copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
        ours.get_buffer("running_var").copy_(torch.tensor([0.5, 1.0, 1.5, 2.0]))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_batchnorm_in_training_normalises_as_pytorchs_but_leaves_its_statistics_alone() -> None:
    ours, theirs = _twins()
    before = {k: v.clone() for k, v in ours.named_buffers()}
    x = torch.randn(3, 4, 5, 2) * 3 + 1
    assert torch.equal(ours.train()(x), theirs.train()(x))
    assert all(torch.equal(v, before[k]) for k, v in ours.named_buffers())
    assert ours.seen is not None
    mean, var = ours.seen
    torch.testing.assert_close(mean, x.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(var, x.var(dim=(0, 2, 3), unbiased=True))


def test_what_batchnorm_has_seen_moves_running_statistics_as_pytorchs_do() -> None:
    ours, theirs = _twins()
    x = torch.randn(3, 4, 5, 2) * 3 + 1
    ours.train()(x), theirs.train()(x)
    assert ours.seen is not None
    for name, seen in zip(("running_mean", "running_var"), ours.seen, strict=True):
        expected = 0.9 * ours.get_buffer(name) + 0.1 * seen
        torch.testing.assert_close(theirs.get_buffer(name), expected)


def test_batchnorm_in_evaluation_equals_pytorchs() -> None:
    ours, theirs = _twins()
    x = torch.randn(3, 4, 5, 2)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert ours.seen is None
