"""Squeeze-and-excite and feature denoising against their equations, and where they sit."""

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3ta.model import PlainResNet
from s3ta.settings import Block, Denoise, VisionSettings
from s3ta.vision import BasicBlock, Bottleneck, Denoising, ResNet, SqueezeExcite

Models = Callable[..., PlainResNet]
M = TypeVar("M", bound=nn.Module)


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def _varied(module: M) -> M:
    """In float64 and test mode, no weight or statistic trivial."""
    module.double().eval()
    for seed, (name, values) in enumerate(module.state_dict().items()):
        if values.is_floating_point():
            values.copy_(0.5 * _noise(*values.shape, seed=seed))
            if name.endswith("running_var"):
                values.abs_().add_(0.5)
    return module


# Squeeze-and-excite [26].


def test_gates_come_from_the_means_of_all_channels_through_relu_and_sigmoid() -> None:
    block, x = _varied(SqueezeExcite(8, reduction=4)), _noise(3, 8, 5, 4)
    w = {name: p.flatten(1) if p.ndim > 1 else p for name, p in block.named_parameters()}
    for image, out in zip(x, block(x), strict=True):
        means = image.sum(dim=(1, 2)) / 20
        inside = (w["fc1.weight"] @ means + w["fc1.bias"]).clamp(min=0)
        assert inside.shape == (2,)
        gates = 1 / (1 + torch.exp(-(w["fc2.weight"] @ inside + w["fc2.bias"])))
        torch.testing.assert_close(out, image * gates[:, None, None])


@pytest.mark.parametrize(
    ("block", "last"),
    [(BasicBlock(8, 8, 1, 4), "bn2"), (Bottleneck(8, 2, 1, 4), "bn3")],
    ids=["basic", "bottleneck"],
)
def test_squeeze_and_excite_sits_on_the_branch_behind_its_last_batchnorm_and_before_the_sum(
    block: BasicBlock | Bottleneck, last: str
) -> None:
    block.double().eval()
    x = _noise(2, 8, 5, 4)
    with torch.no_grad():
        block.get_parameter(f"{last}.bias").fill_(3.0)  # the branch is 3 everywhere: gamma is 0
        block.get_parameter("se.fc2.weight").zero_()
        block.get_parameter("se.fc2.bias").copy_(torch.linspace(-1, 1, 8))
    gates = torch.sigmoid(torch.linspace(-1, 1, 8))[:, None, None].double()
    torch.testing.assert_close(block(x), (x + 3 * gates).clamp(min=0), rtol=1e-6, atol=1e-6)


def test_every_residual_block_has_squeeze_and_excite_of_its_own_width() -> None:
    settings = VisionSettings(depths=[1, 2], widths=[8, 16], strides=[1, 2], squeeze_reduction=16)
    net = ResNet(settings)
    blocks = {n: m.fc1.out_channels for n, m in net.named_modules() if isinstance(m, SqueezeExcite)}
    assert blocks == {"layer1.0.se": 2, "layer2.0.se": 4, "layer2.1.se": 4}


def test_squeeze_and_excite_starts_with_gates_half_open() -> None:
    torch.manual_seed(0)
    block = SqueezeExcite(64, 16)
    assert not block.get_parameter("fc1.bias").any()
    assert not block.get_parameter("fc2.bias").any()
    torch.testing.assert_close(
        block(torch.zeros(1, 64, 2, 2) + 1e-6), torch.full((1, 64, 2, 2), 5e-7)
    )


# Feature denoising [55].


def _by_hand(block: Denoising, x: Tensor) -> Tensor:
    """One image (C, H, W), place by place."""
    channels, height, width = x.shape
    places = x.flatten(1).T
    w = {name: p.detach() for name, p in block.named_parameters()}
    means = []
    for here in places:
        if block.form is Denoise.gaussian:
            query = w["theta.weight"][:, :, 0, 0] @ here
            products = [query @ (w["phi.weight"][:, :, 0, 0] @ there) for there in places]
            weights = torch.exp(torch.stack(products) / (channels // 2) ** 0.5)
            weights = weights / weights.sum()
        else:
            weights = torch.stack([here @ there for there in places]) / (height * width)
        means.append(sum(a * there for a, there in zip(weights, places, strict=True)))
    mixed = torch.stack(means) @ w["conv.weight"][:, :, 0, 0].T
    mean, var = (block.bn.get_buffer(f"running_{name}") for name in ("mean", "var"))
    mixed = (mixed - mean) / (var + block.bn.eps).sqrt() * w["bn.weight"] + w["bn.bias"]
    return x + mixed.T.view(channels, height, width)


@pytest.mark.parametrize("size", [(2, 3), (5, 4)], ids=["fewer places than channels", "more"])
@pytest.mark.parametrize("form", list(Denoise))
def test_denoising_equals_its_equation_written_out_place_by_place(
    form: Denoise, size: tuple[int, int]
) -> None:
    block, x = _varied(Denoising(8, form)), _noise(2, 8, *size)
    expected = torch.stack([_by_hand(block, image) for image in x])
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)
    assert (expected - x).abs().mean() > 0.1


@pytest.mark.parametrize("form", list(Denoise))
def test_new_denoising_is_the_identity(form: Denoise) -> None:
    x = torch.rand(2, 8, 5, 4)
    assert torch.equal(Denoising(8, form).train()(x), x)


def test_denoising_starts_from_small_embeddings_without_bias() -> None:
    torch.manual_seed(0)
    block = Denoising(256, Denoise.gaussian)
    for embedding in (block.theta, block.phi):
        assert embedding.bias is None
        assert embedding.weight.shape == (128, 256, 1, 1)
        assert embedding.weight.std().item() == pytest.approx(0.01, rel=0.02)
    names = dict(Denoising(8, Denoise.dot_product).named_parameters())
    assert set(names) == {"conv.weight", "bn.weight", "bn.bias"}


@pytest.mark.parametrize("form", list(Denoise))
def test_denoising_follows_the_last_block_of_every_stage(form: Denoise, tiny_model: Models) -> None:
    net = tiny_model(None, vision={"denoise": form}).vision
    x = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    stem = F.relu(net.bn1(net.conv1(x)))
    first, second = net.get_submodule("denoise1"), net.get_submodule("denoise2")
    after1 = first(net.get_submodule("layer1")(stem))
    after2 = second(net.get_submodule("layer2")(after1))
    torch.testing.assert_close(net.features(x), after2)
    assert (first(stem) - stem).abs().max() > 0.1  # neither is the identity
    assert (second(after2) - after2).abs().max() > 0.1


def test_the_order_of_dot_products_depends_on_sizes_and_the_answer_does_not() -> None:
    """x (x^T x) is (x x^T) x: 8 channels at 4 places, then the same features at 16."""
    block = _varied(Denoising(8, Denoise.dot_product))
    x = _noise(1, 8, 2, 2)
    tiled = x.repeat(1, 1, 2, 2)
    torch.testing.assert_close(block(tiled), block(x).repeat(1, 1, 2, 2))


@pytest.mark.parametrize("block", list(Block))
def test_without_extras_a_net_has_none(block: Block) -> None:
    settings = VisionSettings(block=block, depths=[1], widths=[8], strides=[1])
    kinds = {type(m) for m in ResNet(settings).modules()}
    assert not kinds & {SqueezeExcite, Denoising}
