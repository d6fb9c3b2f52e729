"""Training losses against numbers worked out on paper, and against finite differences."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from s3ta.batch import Batch
from s3ta.model import S3TA, PlainResNet
from s3ta.objective import cross_entropy
from s3ta.objectives import least_linear, linearity, paired
from s3ta.settings import LinearitySettings
from s3ta.threat import LinfBall

Models = Callable[..., PlainResNet | S3TA]
Batches = Callable[..., Batch]
PUBLIC = LinearitySettings(loss_weight=2, nonlinearity_weight=4, slope_weight=4 * 0.3)
LN2, LN3 = math.log(2), math.log(3)


# Adversarial logit pairing. Logits (0, ln 3) are probabilities (1/4, 3/4); (0, 0) are (1/2, 1/2).


def test_pairing_two_classes_by_hand() -> None:
    clean_BC = torch.tensor([[0.0, LN3], [0.0, 0.0]], dtype=torch.float64)
    attacked_BC = torch.tensor([[0.0, 0.0], [0.0, LN3]], dtype=torch.float64)
    losses_B = paired(clean_BC, attacked_BC, torch.tensor([1, 0]), pairing_weight=0.5)
    # (-ln 3/4 - ln 1/2) / 2 + 0.5 (0 + ln^2 3) / 2, and (-ln 1/2 - ln 1/4) / 2 + the same.
    assert losses_B.tolist() == pytest.approx([0.79215187, 1.34145801], abs=1e-8)
    assert losses_B[0].item() == pytest.approx((math.log(4 / 3) + LN2) / 2 + LN3**2 / 4)


def test_pairing_smooths_both_halves_and_averages_the_distance_over_classes() -> None:
    clean_BC = torch.tensor([[0.0, 0.0, LN2]])  # probabilities 1/4, 1/4, 1/2
    attacked_BC = torch.tensor([[0.0, 0.0, 0.0]])
    (loss,) = paired(clean_BC, attacked_BC, torch.tensor([2]), 3.0, label_smoothing=0.3)
    smooth = 0.7 * LN2 + 0.1 * (2 * math.log(4) + LN2)
    assert loss.item() == pytest.approx((smooth + LN3) / 2 + 3.0 * LN2**2 / 3)


def test_pairing_identical_logits_is_cross_entropy() -> None:
    logits_BC = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    labels_B = torch.tensor([0, 1, 2, 3, 0])
    losses_B = paired(logits_BC, logits_BC.clone(), labels_B, 0.5, 0.1)
    assert torch.equal(losses_B, cross_entropy(logits_BC, labels_B, 0.1))


def test_the_mean_of_pairing_is_cross_entropy_over_both_halves_and_the_mean_squared_error() -> None:
    generator = torch.Generator().manual_seed(1)
    clean_BC, attacked_BC = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    labels_B = torch.tensor([3, 1, 2, 3, 0, 0])
    both = F.cross_entropy(torch.cat([clean_BC, attacked_BC]), labels_B.repeat(2))
    expected = both + 0.5 * F.mse_loss(clean_BC, attacked_BC)
    mean = paired(clean_BC, attacked_BC, labels_B, 0.5).mean()
    torch.testing.assert_close(mean, expected, rtol=1e-14, atol=0)


# Local linearity. One pixel x, logits (0, w x), label 0: l(x) = ln(1 + e^(w x)), l'(x) = w s(w x).


def _logistic(w: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x_B1: torch.cat([torch.zeros_like(x_B1), w * x_B1], dim=1)


def _label_0(logits_BC: Tensor) -> Tensor:
    return cross_entropy(logits_BC, torch.zeros(len(logits_BC), dtype=torch.int64))


def test_linearity_of_a_logistic_loss_by_hand() -> None:
    """At w = 2, x = 0, d = 1/2: l(x) = ln 2, l(x + d) = ln(1 + e), d l'(x) = 1/2."""
    w = torch.tensor(2.0, dtype=torch.float64)
    x, d = torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), 0.5, dtype=torch.float64)
    found = linearity(_logistic(w), _label_0, x, d)
    assert found.loss_B.item() == pytest.approx(0.69314718, abs=1e-8)
    assert found.nonlinearity_B.item() == pytest.approx(0.12011451, abs=1e-8)
    assert found.slope_B.item() == pytest.approx(0.5)
    assert found.moved_BC.tolist() == [[0.0, 1.0]]
    assert found.weighted(PUBLIC).item() == pytest.approx(2.46675239, abs=1e-8)
    # Downhill the slope is negative, and counts by its size; g is the same by symmetry.
    downhill = linearity(_logistic(w), _label_0, x, -d)
    assert downhill.slope_B.item() == pytest.approx(0.5)
    assert downhill.nonlinearity_B.item() == pytest.approx(0.12011451, abs=1e-8)


def test_the_slope_is_no_constant_in_the_loss() -> None:
    """d/dw: 0 of l(x), d s(1) of l(x + d), d s(0) of the slope, as x = 0; with s(1) = 0.73105858.

    4 (0.36552929 - 0.25) + 1.2 * 0.25; with a constant slope it would be 4 * 0.36552929.
    """
    w = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    x, d = torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), 0.5, dtype=torch.float64)
    loss = linearity(_logistic(w), _label_0, x, d).weighted(PUBLIC).mean()
    (gradient,) = torch.autograd.grad(loss, w)
    assert gradient.item() == pytest.approx(0.76211716, abs=1e-8)


def test_a_linear_loss_is_linear_everywhere() -> None:
    generator = torch.Generator().manual_seed(2)
    images, offsets = torch.randn(2, 7, 1, 3, 3, generator=generator, dtype=torch.float64)
    weights = torch.randn(9, generator=generator, dtype=torch.float64, requires_grad=True)
    found = linearity(lambda x: x.flatten(1) @ weights + 3, lambda z: z, images, offsets)
    torch.testing.assert_close(
        found.nonlinearity_B, torch.zeros_like(found.nonlinearity_B), rtol=0, atol=1e-14
    )
    slopes_B = (offsets.flatten(1) @ weights).abs()
    torch.testing.assert_close(found.slope_B, slopes_B, rtol=1e-12, atol=0)


@pytest.mark.parametrize("unroll", [None, 2])
@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 4, 1.2)])
def test_the_gradient_for_the_weights_is_that_of_finite_differences(
    unroll: int | None, weights: tuple[float, ...], tiny_model: Models, tiny_batch: Batches
) -> None:
    """In float64, with BatchNorm in training mode: the second backpropagation is right."""
    model, batch = tiny_model(unroll).double().train(), tiny_batch(4)
    images = torch.from_numpy(batch.images_BCHW).double() / 255
    offsets = torch.from_numpy(tiny_batch(4, first_id=50).images_BCHW).double() / 255 - 0.5
    labels_B = torch.from_numpy(batch.labels_B)
    mix = LinearitySettings(
        loss_weight=weights[0], nonlinearity_weight=weights[1], slope_weight=weights[2]
    )

    def loss() -> Tensor:
        found = linearity(model, lambda z: cross_entropy(z, labels_B, 0.1), images, offsets / 8)
        return found.weighted(mix).mean()

    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(3)
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    pairs = zip(gradients, along, strict=True)
    slope = sum((g * v).sum().item() for g, v in pairs if g is not None)
    ends = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for p, v in zip(parameters, along, strict=True):
                p.add_(v, alpha=step)
        ends.append(loss().item())
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)


# The search. l(x) = sum of x^2 per image: g = sum of d^2, largest at the corners of the ball.


def _squares(x: Tensor) -> Tensor:
    return x.square().flatten(1).sum(dim=1)


def test_the_search_climbs_to_the_corner_on_its_side_of_the_start() -> None:
    images = torch.tensor([0.5, 0.5, 0.02, 0.98]).view(4, 1, 1, 1)
    ball = LinfBall.around(images, 0.1)
    start = images + torch.tensor([0.01, -0.01, -0.01, 0.01]).view(4, 1, 1, 1)
    offsets = least_linear(_squares, images, ball, start, steps=3, rate=0.1)
    # 0.1 to either side, or as far as the image range goes.
    assert offsets.flatten().tolist() == pytest.approx([0.1, -0.1, -0.02, 0.02])


def test_the_search_takes_adams_steps_on_a_constant_tangent_plane() -> None:
    """Three steps written out; l(x) and its gradient are computed once, at the image."""
    images = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    start = images + torch.tensor([0.001, -0.03], dtype=torch.float64)
    calls = []

    def cubes(x: Tensor) -> Tensor:
        calls.append(x.detach().flatten().tolist())
        return (x - 0.4).pow(3).flatten(1).sum(dim=1)

    found = least_linear(cubes, images, LinfBall.around(images, 0.4), start, steps=3, rate=0.1)
    assert len(calls) == 4
    assert calls[0] == [0.5, 0.5]
    x = [0.501, 0.47]
    m, v = [0.0, 0.0], [0.0, 0.0]
    for n in (1, 2, 3):
        g = sum((a - 0.4) ** 3 - 0.1**3 - 3 * 0.1**2 * (a - 0.5) for a in x)
        for i, a in enumerate(x):
            gradient = math.copysign(1, g) * (3 * (a - 0.4) ** 2 - 3 * 0.1**2)
            m[i], v[i] = 0.9 * m[i] + 0.1 * gradient, 0.999 * v[i] + 0.001 * gradient**2
            step = 0.1 * (m[i] / (1 - 0.9**n)) / ((v[i] / (1 - 0.999**n)) ** 0.5 + 1e-8)
            x[i] = min(max(a + step, 0.1), 0.9)
    assert found.flatten().tolist() == pytest.approx([a - 0.5 for a in x], rel=1e-9)


def test_the_search_of_an_image_is_its_own(tiny_model: Models, tiny_batch: Batches) -> None:
    model, batch = tiny_model(2).double(), tiny_batch(4)
    images = torch.from_numpy(batch.images_BCHW).double() / 255
    start = (images + 0.02).clamp(max=1)
    labels_B = torch.from_numpy(batch.labels_B)

    def search(part: slice) -> Tensor:
        x, ball = images[part], LinfBall.around(images[part], 0.06)
        return least_linear(
            lambda at: cross_entropy(model(at), labels_B[part]), x, ball, start[part], 4, 0.01
        )

    whole = search(slice(0, 4))
    assert (whole.abs() <= 0.06 + 1e-12).all()
    torch.testing.assert_close(search(slice(1, 3)), whole[1:3], rtol=0, atol=1e-9)

    def gap(offsets: Tensor) -> Tensor:
        found = linearity(model, lambda z: cross_entropy(z, labels_B), images, offsets)
        return found.nonlinearity_B

    assert (gap(whole) > gap(start - images)).all()


def test_weights_are_those_of_the_setting() -> None:
    w = torch.tensor(2.0, dtype=torch.float64)
    x = torch.zeros(1, 1, dtype=torch.float64)
    found = linearity(_logistic(w), _label_0, x, x + 0.5)
    terms = (found.loss_B, found.nonlinearity_B, found.slope_B)
    for name, term in zip(("loss", "nonlinearity", "slope"), terms, strict=True):
        nothing = LinearitySettings(loss_weight=0, nonlinearity_weight=0, slope_weight=0)
        alone = replace(nothing, **{f"{name}_weight": 5.0})
        assert torch.equal(found.weighted(alone), 5 * term)
