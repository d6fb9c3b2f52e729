"""Attention reads what it says it reads, and the controller carries its state."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from s3ta.attention import attend
from s3ta.basis import spatial_basis
from s3ta.model import S3TA

Models = Callable[..., S3TA]


def _images(n: int = 2, height: int = 6, width: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, height, width, generator=generator, dtype=torch.float64)


def test_uniform_keys_give_the_mean_of_the_values() -> None:
    values_BPV = torch.arange(24.0).view(2, 4, 3) ** 2
    answers, maps = attend(torch.randn(2, 5, 6), torch.ones(2, 4, 6), values_BPV)
    torch.testing.assert_close(maps, torch.full((2, 5, 4), 0.25))
    torch.testing.assert_close(answers, values_BPV.mean(1, keepdim=True).expand(2, 5, 3))


def test_one_planted_key_gives_the_value_of_its_place() -> None:
    keys, values = torch.zeros(1, 5, 2), torch.randn(1, 5, 3)
    keys[0, 3] = torch.tensor([1.0, 0.0])
    queries = torch.tensor([[[200.0, 7.0], [-200.0, 7.0]]])
    answers, maps = attend(queries, keys, values)
    torch.testing.assert_close(answers[0, 0], values[0, 3])
    # The opposite query avoids exactly that place.
    torch.testing.assert_close(maps[0, 1], torch.tensor([0.25, 0.25, 0.25, 0.0, 0.25]))


def test_scale_multiplies_the_attention_logits_before_the_softmax() -> None:
    keys = torch.tensor([[[0.0], [1.0]]])
    _, maps = attend(torch.tensor([[[6.0]]]), keys, torch.zeros(1, 2, 1), scale=0.5)
    torch.testing.assert_close(maps[0, 0, 1], torch.sigmoid(torch.tensor(3.0)))


@pytest.mark.parametrize("scaled", [False, True])
def test_the_scaled_model_divides_by_the_root_of_the_query_length(
    scaled: bool, tiny_settings: Callable[..., object]
) -> None:
    model = S3TA(tiny_settings(1, scaled=scaled), 5)  # type: ignore[arg-type]
    assert model.scale == ((4 + 4) ** -0.5 if scaled else 1.0)


def test_the_map_changes_from_step_to_step(tiny_model: Models) -> None:
    maps_BTQHW = tiny_model(3).double().trace(_images()).maps_BTQHW
    assert (maps_BTQHW[:, 0] - maps_BTQHW[:, 1]).abs().amax() > 1e-3
    assert (maps_BTQHW[:, 1] - maps_BTQHW[:, 2]).abs().amax() > 1e-3


def test_the_first_query_comes_from_the_learned_initial_state(tiny_model: Models) -> None:
    model = tiny_model(1).double()
    before = model.trace(_images()).maps_BTQHW
    with torch.no_grad():
        model.initial_hidden.add_(0.5)
    assert (model.trace(_images()).maps_BTQHW - before).abs().amax() > 1e-3


def test_the_second_query_comes_from_the_carried_state(tiny_model: Models) -> None:
    """The initial cell reaches a map only through the hidden state carried to step 2."""
    model = tiny_model(2).double()
    before = model.trace(_images()).maps_BTQHW
    with torch.no_grad():
        model.initial_cell.add_(1.0)
    after = model.trace(_images()).maps_BTQHW
    assert torch.equal(before[:, 0], after[:, 0])
    assert (before[:, 1] - after[:, 1]).abs().amax() > 1e-3


@pytest.mark.parametrize("place", [(0, 0), (1, 3), (2, 0), (0, 4)])
def test_a_feature_at_a_place_ends_at_that_place_of_the_map(
    place: tuple[int, int], tiny_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(2)
    features = torch.zeros(1, 12, 3, 5)
    features[0, 0, *place] = 1.0  # the first key channel
    monkeypatch.setattr(model.vision, "features", lambda _: features)
    with torch.no_grad():
        model.get_parameter("query.2.weight").zero_()
        model.get_parameter("query.2.bias").zero_()
        # Head 0 looks for that channel, head 1 for nothing.
        model.get_parameter("query.2.bias")[0] = 100.0
    maps_BTQHW = model.trace(torch.zeros(1, 1, 6, 10)).maps_BTQHW
    assert maps_BTQHW.shape == (1, 2, 2, 3, 5)
    planted_HW = torch.zeros(3, 5)
    planted_HW[place] = 1.0
    torch.testing.assert_close(maps_BTQHW[0, :, 0], planted_HW.expand(2, 3, 5))
    torch.testing.assert_close(maps_BTQHW[0, :, 1], torch.full((2, 3, 5), 1 / 15))


def test_forward_equals_the_equations_written_out_place_by_place(tiny_model: Models) -> None:
    model, images = tiny_model(2).double(), _images()
    expected = torch.stack([_by_hand(model, image, steps=2) for image in images])
    torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)


def _by_hand(model: S3TA, image: Tensor, steps: int) -> Tensor:
    w, keys = {name: p.detach() for name, p in model.named_parameters()}, 4
    # The buffers are float32 numbers.
    mean, std = torch.tensor(0.4).double(), torch.tensor(0.2).double()
    features_DHW = model.vision.features((image[None] - mean) / std)[0]
    _, height, width = features_DHW.shape
    assert height != width
    basis = spatial_basis(height, width, 2).double()
    hidden, cell = w["initial_hidden"], w["initial_cell"]
    for _ in range(steps):
        middle = (w["query.0.weight"] @ hidden + w["query.0.bias"]).clamp(min=0)
        queries = (w["query.2.weight"] @ middle + w["query.2.bias"]).view(2, keys + 4)
        answers = []
        for query in queries:
            weights, values = [], []
            for i in range(height):
                for j in range(width):
                    feature = features_DHW[:, i, j]
                    weights.append(torch.exp(query @ torch.cat([feature[:keys], basis[i, j]])))
                    values.append(torch.cat([feature[keys:], basis[i, j]]))
            total = torch.stack(weights).sum()
            answers.append(sum(a / total * v for a, v in zip(weights, values, strict=True)))
        gates = w["core.weight_ih"] @ torch.cat(answers) + w["core.bias_ih"]  # type: ignore[arg-type]
        gates = gates + w["core.weight_hh"] @ hidden + w["core.bias_hh"]
        enter, forget, new, leave = gates.chunk(4)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
        hidden = torch.sigmoid(leave) * torch.tanh(cell)
    middle = (w["readout.0.weight"] @ hidden + w["readout.0.bias"]).clamp(min=0)
    return w["readout.2.weight"] @ middle + w["readout.2.bias"]


# Mistakes of public replications.


def test_queries_and_read_out_take_the_hidden_state_and_not_the_cell(tiny_model: Models) -> None:
    """A replication keeps the other vector as h."""
    model, images = tiny_model(3).double(), _images()
    asked: list[Tensor] = []
    read: list[Tensor] = []
    left: list[tuple[Tensor, Tensor]] = []
    model.get_submodule("query").register_forward_pre_hook(lambda _, args: asked.extend(args))
    model.readout.register_forward_pre_hook(lambda _, args: read.extend(args))
    model.core.register_forward_hook(lambda _, args, output: left.append(output))
    model(images)
    hidden = [h for h, _ in left]
    assert torch.equal(asked[0], model.initial_hidden.expand(2, -1))
    assert torch.equal(asked[1], hidden[0])
    assert torch.equal(asked[2], hidden[1])
    assert [torch.equal(x, hidden[2]) for x in read] == [True]
    # torch gives (h, c); |h| < 1 is what a gate times a tanh can be, c is another vector.
    assert all((h - c).abs().max() > 1e-3 and h.abs().max() < 1 for h, c in left)


def test_the_state_handed_to_a_step_is_the_one_that_the_step_before_left(
    tiny_model: Models,
) -> None:
    """A replication starts every step from zeros."""
    model = tiny_model(3).double()
    entered: list[tuple[Tensor, Tensor]] = []
    left: list[tuple[Tensor, Tensor]] = []
    model.core.register_forward_pre_hook(lambda _, args: entered.append(args[1]))
    model.core.register_forward_hook(lambda _, args, output: left.append(output))
    model(_images())
    assert len(entered) == 3
    for (h_in, c_in), (h_out, c_out) in zip(entered[1:], left, strict=False):
        assert torch.equal(h_in, h_out)
        assert torch.equal(c_in, c_out)


def test_moving_the_image_moves_the_map(
    tiny_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replication reshapes (C, H, W) to (P, C), which scrambles places and channels.

    Without the basis in the query, a map on moved features is the moved map.
    """
    model = tiny_model(1).double()
    with torch.no_grad():
        for head in (0, 1):
            model.get_parameter("query.2.weight")[head * 8 + 4 : head * 8 + 8] = 0
            model.get_parameter("query.2.bias")[head * 8 + 4 : head * 8 + 8] = 0
    features = torch.randn(1, 12, 3, 5, generator=torch.Generator().manual_seed(2)).double()
    monkeypatch.setattr(model.vision, "features", lambda _: features)
    before = model.trace(torch.zeros(1, 1, 6, 10).double()).maps_BTQHW
    moved = features.roll((1, 2), dims=(2, 3))
    monkeypatch.setattr(model.vision, "features", lambda _: moved)
    after = model.trace(torch.zeros(1, 1, 6, 10).double()).maps_BTQHW
    torch.testing.assert_close(after, before.roll((1, 2), dims=(3, 4)))
    assert (after - before).abs().max() > 1e-3
