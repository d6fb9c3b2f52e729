"""Controls of the attention: each takes one thing away, and does exactly what it says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from s3ta.basis import spatial_basis
from s3ta.engine import frozen
from s3ta.errors import UserError
from s3ta.model import S3TA, Model, OneShot, PlainResNet, parameters
from s3ta.settings import Basis, Denoise, ModelSettings, Queries

Models = Callable[..., Any]
Settings = Callable[..., ModelSettings]
RECURRENT = [Queries.state, Queries.uniform, Queries.fixed]


def _images(n: int = 2, height: int = 6, width: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, height, width, generator=generator, dtype=torch.float64)


def _places(model: S3TA | OneShot, images: Tensor) -> tuple[Tensor, Tensor]:
    """Keys (B, P, 4 + 4) and values (B, P, 8 + 4) of the tiny models."""
    features_BDHW = model.vision.features(model.normalised(images))
    height, width = features_BDHW.shape[2:]
    basis_SHW = spatial_basis(height, width, frequencies=2).double().permute(2, 0, 1)
    basis_BSHW = basis_SHW.expand(len(images), -1, -1, -1)
    halves = (features_BDHW[:, :4], features_BDHW[:, 4:])
    keys, values = (torch.cat([h, basis_BSHW], 1).flatten(2).transpose(1, 2) for h in halves)
    return keys, values


# Uniform attention.


def test_uniform_maps_are_one_over_the_places_at_every_step(tiny_model: Models) -> None:
    maps_BTQHW = tiny_model(3, queries=Queries.uniform).trace(_images().float()).maps_BTQHW
    assert torch.equal(maps_BTQHW, torch.full((2, 3, 2, 3, 5), 1 / 15))


def test_under_uniform_attention_the_controller_reads_the_mean_of_the_values_at_each_step(
    tiny_model: Models,
) -> None:
    model, images = tiny_model(3, queries=Queries.uniform).double(), _images()
    means_BV = _places(model, images)[1].mean(dim=1)
    state = (model.initial_hidden.expand(2, -1), model.initial_cell.expand(2, -1))
    for _ in range(3):
        state = model.core(torch.cat([means_BV, means_BV], dim=1), state)
    torch.testing.assert_close(model(images), model.readout(state[0]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("queries", "read"), [(Queries.uniform, False), (Queries.fixed, True), (Queries.state, True)]
)
def test_only_uniform_attention_does_not_read_the_keys(
    queries: Queries, read: bool, tiny_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(2, queries=queries)
    features = torch.randn(1, 12, 3, 5, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(model.vision, "features", lambda _: features)
    before = model(torch.zeros(1, 1, 6, 10))
    features[:, :4] += torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(torch.zeros(1, 1, 6, 10)), before) is not read


# Fixed queries.


def test_fixed_queries_give_the_same_maps_at_every_step_and_other_ones_for_other_images(
    tiny_model: Models,
) -> None:
    model, images = tiny_model(3, queries=Queries.fixed).double(), _images()
    trace = model.trace(images)
    keys_BPK, _ = _places(model, images)
    for head, query_K in enumerate(model.queries_QK):
        expected = (keys_BPK @ query_K).softmax(dim=1).view(2, 3, 5)
        for step in range(3):
            torch.testing.assert_close(trace.maps_BTQHW[:, step, head], expected)
    assert (trace.maps_BTQHW[0] - trace.maps_BTQHW[1]).abs().max() > 1e-3
    assert (trace.logits_BTC[:, 0] - trace.logits_BTC[:, 2]).abs().max() > 1e-3


def test_fixed_queries_do_not_come_from_the_state(tiny_model: Models) -> None:
    model = tiny_model(2, queries=Queries.fixed)
    before = model.trace(_images().float())
    with torch.no_grad():
        model.initial_hidden.add_(0.5)
    after = model.trace(_images().float())
    assert torch.equal(before.maps_BTQHW, after.maps_BTQHW)
    assert (before.logits_BTC - after.logits_BTC).abs().max() > 1e-3


# All queries in one shot.


def test_in_one_shot_the_mlp_reads_the_answers_of_unroll_times_heads_queries(
    tiny_model: Models,
) -> None:
    model, images = tiny_model(3, queries=Queries.one_shot).double(), _images()
    keys_BPK, values_BPV = _places(model, images)
    assert model.queries_QK.shape == (6, 8)
    maps = [(keys_BPK @ query_K).softmax(dim=1) for query_K in model.queries_QK]
    answers = [(map_BP[..., None] * values_BPV).sum(dim=1) for map_BP in maps]
    w = dict(model.readout.named_parameters())
    middle = (torch.cat(answers, 1) @ w["0.weight"].T + w["0.bias"]).clamp(min=0)
    torch.testing.assert_close(model(images), middle @ w["2.weight"].T + w["2.bias"])
    trace = model.trace(images)
    assert torch.equal(trace.logits_BTC[:, 0], model(images))
    assert trace.maps_BTQHW.shape == (2, 1, 6, 3, 5)
    torch.testing.assert_close(trace.maps_BTQHW[:, 0, 5].flatten(1), maps[5])


def test_one_shot_has_no_steps_to_choose(tiny_model: Models) -> None:
    model = tiny_model(3, queries=Queries.one_shot)
    for call in (model, model.trace):
        with pytest.raises(UserError, match=r"unroll is 3: .* one step"):
            call(_images(), unroll=3)


# A ResNet with an MLP.


def test_an_mlp_head_reads_the_pooled_features(tiny_settings: Settings) -> None:
    settings = tiny_settings(None)
    settings.mlp_head = [16, 8]
    model, images = PlainResNet(settings, 5).double().eval(), _images()
    w = dict(model.vision.fc.named_parameters())
    x = model.vision.features(model.normalised(images)).mean(dim=(2, 3))
    for layer in (0, 2):
        x = (x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"]).clamp(min=0)
    torch.testing.assert_close(model(images), x @ w["4.weight"].T + w["4.bias"])


# What all of them share.


def test_controls_differ_in_parameters_by_their_queries_alone(tiny_settings: Settings) -> None:
    full, uniform, fixed = (parameters(S3TA(tiny_settings(4, queries=q), 5)) for q in RECURRENT)
    query_network = 12 * 12 + 12 + 2 * 8 * (12 + 1)
    assert full - uniform == query_network
    assert fixed - uniform == 2 * 8


MODELS: dict[str, tuple[int | None, dict[str, Any]]] = {
    "ResNet": (None, {}),
    "squeeze-and-excite": (None, {"vision": {"squeeze_reduction": 2}}),
    "Gaussian": (None, {"vision": {"denoise": Denoise.gaussian}}),
    "dot product": (None, {"vision": {"denoise": Denoise.dot_product}}),
    "Fourier": (2, {"basis": Basis.fourier}),
    **{q.name: (2, {"queries": q}) for q in Queries},
}


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_takes_part(name: str, tiny_model: Models) -> None:
    """Training asks for the gradient of all of them: one without a part would end it."""
    unroll, settings = MODELS[name]
    model: Model = tiny_model(unroll, **settings).train()
    images = _images(4).float()
    loss = torch.nn.functional.cross_entropy(model(images), torch.arange(4))
    names, trained = zip(*model.named_parameters(), strict=True)
    for parameter, gradient in zip(names, torch.autograd.grad(loss, trained), strict=True):
        assert gradient.isfinite().all(), parameter
        assert gradient.any(), parameter


@pytest.mark.parametrize("queries", list(Queries))
def test_a_frozen_models_trace_has_gradients_of_logits_and_maps_towards_the_images(
    queries: Queries, tiny_model: Models
) -> None:
    """Against differences: what attacks on the attention, or on every step, descend on."""
    model, images = tiny_model(2, queries=queries).double(), _images(1)
    generator = torch.Generator().manual_seed(5)

    def loss(x: Tensor) -> Tensor:
        trace = model.trace(x)
        logits: Tensor = trace.logits_BTC.logsumexp(dim=2).sum()
        # One place of the last map: the sum over all places is 1 whatever the image.
        looked: Tensor = trace.maps_BTQHW[0, -1, 0, 1, 2]
        return logits + 10 * looked

    with frozen(model):
        x = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x), x)
        for _ in range(3):
            way = torch.randn(images.shape, generator=generator, dtype=torch.float64)
            change = (loss(images + 1e-6 * way) - loss(images - 1e-6 * way)) / 2e-6
            torch.testing.assert_close((gradient * way).sum(), change, rtol=1e-5, atol=1e-7)
    assert gradient.abs().max() > 1e-3
