"""The fast copy of a model answers as the model does; models unfit for comparison are refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3ta.batch import Batch, to_unit
from s3ta.engine import Engine, _folded, make_engine
from s3ta.errors import UserError
from s3ta.model import PlainResNet
from s3ta.settings import Block, Denoise, Dtype, EngineSettings

Models = Callable[..., PlainResNet]
Batches = Callable[..., Batch]
SHAPE = (1, 6, 6)
PLAIN = EngineSettings(fold=False, channels_last=False)
EXTRAS: dict[str, dict[str, Any]] = {
    "squeeze-and-excite": {"squeeze_reduction": 2},
    "gaussian": {"denoise": Denoise.gaussian},
    "dot product": {"denoise": Denoise.dot_product},
    "both": {"squeeze_reduction": 2, "denoise": Denoise.gaussian},
}


def _fast_model(engine: Engine) -> nn.Module:
    assert isinstance(engine.fast, nn.Module)
    return engine.fast


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("unroll", [None, 2])
@pytest.mark.parametrize("block", list(Block))
def test_the_folded_copy_gives_the_models_logits_and_gradients(
    block: Block, unroll: int | None, channels_last: bool, tiny_model: Models, tiny_batch: Batches
) -> None:
    model = tiny_model(unroll, block=block)
    engine = make_engine(model, EngineSettings(channels_last=channels_last), SHAPE, tile=4)
    assert engine.folded
    assert not any(isinstance(m, nn.BatchNorm2d) for m in _fast_model(engine).modules())
    images = to_unit(tiny_batch(20).images_BCHW)
    x, y = images.clone().requires_grad_(), images.clone().requires_grad_()
    logits_BC, expected_BC = engine.logits(x), model(y)
    torch.testing.assert_close(logits_BC, expected_BC, rtol=1e-5, atol=1e-5)
    assert expected_BC.std(dim=0).min() > 0.01  # the images are told apart
    gradients = [
        torch.autograd.grad(F.relu(z).sum(), i)[0] for z, i in ((logits_BC, x), (expected_BC, y))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
    assert torch.equal(engine.judged(images), expected_BC)


@pytest.mark.parametrize("unroll", [None, 2])
@pytest.mark.parametrize("block", list(Block))
@pytest.mark.parametrize("extra", EXTRAS)
def test_folding_goes_on_where_a_net_squeezes_or_denoises(
    extra: str, block: Block, unroll: int | None, tiny_model: Models
) -> None:
    """One image a tile: on some processors products of so few numbers depend on the place in it."""
    model = tiny_model(unroll, block=block, vision=EXTRAS[extra])
    engine = make_engine(model, EngineSettings(), (1, 8, 8), tile=1)
    assert engine.folded
    assert not any(isinstance(m, nn.BatchNorm2d) for m in _fast_model(engine).modules())


@pytest.mark.parametrize("block", list(Block))
@pytest.mark.parametrize("extra", EXTRAS)
def test_what_squeezes_or_denoises_answers_as_before_when_folded(
    extra: str, block: Block, tiny_model: Models
) -> None:
    """In float64: softmax and gates amplify rounding, and then tolerances would hide mistakes."""
    model = tiny_model(None, block=block, vision=EXTRAS[extra]).double().requires_grad_(False)
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    fast, folded = _folded(model, images)
    assert folded
    x, y = images.clone().requires_grad_(), images.clone().requires_grad_()
    logits_BC, expected_BC = fast(x), model(y)
    torch.testing.assert_close(logits_BC, expected_BC, rtol=1e-8, atol=1e-8)
    gradients = [
        torch.autograd.grad(F.relu(z).sum(), i)[0] for z, i in ((logits_BC, x), (expected_BC, y))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)
    assert gradients[0].abs().max() > 1e-3


def test_folding_needs_the_statistics_and_not_only_the_weights(
    tiny_model: Models, tiny_batch: Batches
) -> None:
    """The models of these tests would show a BatchNorm that was dropped instead of folded."""
    model = tiny_model(None)
    images = to_unit(tiny_batch(5).images_BCHW)
    expected_BC = model(images)
    for part in ("running_mean", "running_var", "weight", "bias"):
        changed = tiny_model(None)
        with torch.no_grad():
            getattr(changed.vision.bn1, part).add_(0.1)
        assert (changed(images) - expected_BC).abs().max() > 1e-3


@pytest.mark.parametrize("settings", [EngineSettings(), PLAIN], ids=["folded", "plain"])
@pytest.mark.parametrize("training", [True, False])
def test_the_given_model_is_left_as_it_was(
    training: bool, settings: EngineSettings, tiny_model: Models
) -> None:
    model = tiny_model(2).train(training)
    model.vision.bn1.train(not training)
    model.vision.conv1.weight.requires_grad_(False)
    names = [type(m) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    engine = make_engine(model, settings, SHAPE, tile=4)
    assert [m.training for m in model.modules()] == modes
    assert [type(m) for m in model.modules()] == names
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters()} - {"vision.conv1.weight"}
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for side in (engine.judge, _fast_model(engine)):
        assert not any(m.training for m in side.modules())
        assert not any(p.requires_grad for p in side.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in side.modules())
    with torch.no_grad():
        model.vision.conv1.weight.zero_()
    assert engine.judge.get_parameter("vision.conv1.weight").any()


class _Net(nn.Module):
    """conv, BatchNorm and linear layers, put together by `body`."""

    def __init__(self, body: Callable[["_Net", Tensor], Tensor], norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.body = nn.Conv2d(1, 4, 3, padding=1), norm, body
        self.fc = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(self, images).mean(dim=(2, 3)))  # type: ignore[no-any-return]


def _norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4)
    for name, low, high in (("weight", 0.5, 2.0), ("bias", -1.0, 1.0)):
        setattr(norm, name, nn.Parameter(torch.linspace(low, high, 4)))
    norm.running_mean, norm.running_var = torch.linspace(-1, 1, 4), torch.linspace(0.1, 2, 4)
    return norm


def test_a_convolution_behind_its_batchnorm_is_folded() -> None:
    net = _Net(lambda net, x: net.norm(net.conv(x)), _norm())
    assert make_engine(net, EngineSettings(), SHAPE, tile=4).folded


UNFIT = {
    "read twice": lambda net, x: net.norm(y := net.conv(x)) + y,
    "called twice": lambda net, x: net.norm(net.conv(x)) + net.conv(x + 1),
    "normalised twice": lambda net, x: net.norm(net.norm(net.conv(x))),
    "something between": lambda net, x: net.norm(F.relu(net.conv(x))),
    "the other way round": lambda net, x: net.conv(net.norm(x.expand(-1, 4, -1, -1))[:, :1]),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_convolution_whose_output_is_used_otherwise_is_not_folded(case: str) -> None:
    net = _Net(UNFIT[case], _norm())
    engine = make_engine(net, EngineSettings(), SHAPE, tile=4)
    assert not engine.folded
    assert any(isinstance(m, nn.BatchNorm2d) for m in _fast_model(engine).modules())
    images = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(engine.logits(images), net.eval()(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [EngineSettings(), EngineSettings(dtype=Dtype.bfloat16)])
def test_a_model_without_batchnorm_is_said_not_to_be_folded(settings: EngineSettings) -> None:
    net = _Net(lambda net, x: net.norm(net.conv(x)), nn.ReLU())
    assert not make_engine(net, settings, SHAPE, tile=4).folded


def test_folding_can_be_left_out(tiny_model: Models) -> None:
    assert not make_engine(tiny_model(None), PLAIN, SHAPE, tile=4).folded


def test_bfloat16_answers_are_near_and_the_judges_are_exact(
    tiny_model: Models, tiny_batch: Batches
) -> None:
    model, images = tiny_model(2), to_unit(tiny_batch(20).images_BCHW)
    engine = make_engine(model, EngineSettings(dtype=Dtype.bfloat16), SHAPE, tile=4)
    fast_BC, exact_BC = engine.logits(images), model(images)
    assert fast_BC.dtype == torch.float32
    assert 1e-4 < (fast_BC - exact_BC).abs().max() < 0.1 * exact_BC.abs().max()
    assert torch.equal(engine.judged(images), exact_BC)


# Models whose answers depend on something else than the image.


class _Answers(nn.Module):
    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Tensor:
        return self.answer(images.flatten(1)[:, :3])


def _favours(x: Tensor) -> Tensor:
    """Answers by the image's place in the batch."""
    return x + 1e-7 * torch.arange(len(x), dtype=x.dtype)[:, None]


def _by_neighbour(x: Tensor) -> Tensor:
    """Answers alike where all images are, and by the next image where they are not."""
    return x + 1e-3 * (x.roll(1, dims=0) - x)


class _RandomGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient + torch.rand_like(gradient)


REFUSED = {
    "dropout": (lambda x: F.dropout(x, 0.5, training=True), "random"),
    "noise": (lambda x: x + 1e-6 * torch.rand_like(x), "random"),
    "a random gradient": (_RandomGradient.apply, "random"),
    "its place": (_favours, "place or company in a tile of 4"),
    "its neighbour": (_by_neighbour, "place or company in a tile of 4"),
    "batch statistics": (lambda x: (x - x.mean(0)) / x.std(0), "place or company"),
}


@pytest.mark.parametrize("settings", [EngineSettings(), PLAIN], ids=["folded", "plain"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_answers_by_more_than_the_image_is_refused(
    case: str, settings: EngineSettings
) -> None:
    answer, words = REFUSED[case]
    with pytest.raises(UserError, match=words):
        make_engine(_Answers(answer), settings, SHAPE, tile=4)
    make_engine(_Answers(lambda x: x), settings, SHAPE, tile=4)


def test_batchnorm_without_running_statistics_is_refused(tiny_model: Models) -> None:
    model = tiny_model(None)
    model.vision.bn1.track_running_stats = False
    model.vision.bn1.running_mean = model.vision.bn1.running_var = None
    with pytest.raises(UserError, match="place or company"):
        make_engine(model, EngineSettings(), SHAPE, tile=4)


def test_dropout_that_is_off_in_test_mode_is_no_reason_to_refuse() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 4)).train()
    assert not make_engine(net, EngineSettings(), SHAPE, tile=4).folded


def test_answers_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="no numbers"):
        make_engine(_Answers(lambda x: x / 0 * 0), PLAIN, SHAPE, tile=4)
