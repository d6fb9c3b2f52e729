"""SPSA: unbiased at the present point, of the known accuracy, and each image's own."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from s3ta.attacks import Losses, look
from s3ta.draws import Key, Purpose
from s3ta.engine import frozen
from s3ta.model import S3TA
from s3ta.objective import attack_loss
from s3ta.settings import Loss
from s3ta.spsa import CHUNK, Directions, estimate, look_around

Models = Callable[..., S3TA]
KEY = Key(3, Purpose.SPSA)
CPU = torch.device("cpu")
WEIGHTS = torch.linspace(-1, 2, 24).view(1, 2, 3, 4)
POINTS = torch.rand(4, 2, 3, 4, generator=torch.Generator().manual_seed(0))


def _linear(points: Tensor, slots: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.zeros(len(points), 2), (points * WEIGHTS).flatten(1).sum(1)


def _quadratic(points: Tensor, slots: Tensor | None) -> tuple[Tensor, Tensor]:
    """Its gradient, 2 w x, is another one at every point."""
    return torch.zeros(len(points), 2), (points.square() * WEIGHTS).flatten(1).sum(1)


def _estimate(losses: Losses, pairs: int, image_id: int = 7, delta: float = 0.01) -> Tensor:
    directions = Directions(KEY, image_id, 24, CPU)
    return estimate(losses, POINTS[0].double(), 0, directions, pairs, delta).double()


@pytest.mark.parametrize(
    ("losses", "gradient"),
    [(_linear, WEIGHTS[0]), (_quadratic, 2 * WEIGHTS[0] * POINTS[0])],
    ids=["linear", "quadratic"],
)
def test_it_converges_to_the_gradient_at_the_present_point(
    losses: Losses, gradient: Tensor
) -> None:
    """An error per number of |g| / sqrt(n): differences of a quadratic are exact."""
    for pairs in (256, 4096):
        error = _estimate(losses, pairs) - gradient
        allowed = 4.5 * float(gradient.norm()) / np.sqrt(pairs)
        assert error.abs().max() < allowed
    # It tells where it is: the point of another image is far away.
    assert (error.abs().max() < 0.5 * (2 * WEIGHTS[0] * (POINTS[1] - POINTS[0])).abs().max()) or (
        losses is _linear
    )


def test_one_pair_is_the_formula_itself() -> None:
    signs = Directions(KEY, 7, 24, CPU).chunk(0)[0].view(2, 3, 4).double()
    slope = float((WEIGHTS[0] * signs).sum())  # of a linear function, along the direction
    expected = slope * signs
    torch.testing.assert_close(_estimate(_linear, 1), expected, rtol=1e-5, atol=1e-5)


def test_the_last_chunk_counts_in_part() -> None:
    pairs = CHUNK + 5
    signs = torch.cat([Directions(KEY, 7, 24, CPU).chunk(i) for i in range(2)])[:pairs].double()
    slopes = signs @ WEIGHTS.view(-1).double()
    expected = (slopes @ signs / pairs).view(2, 3, 4)
    torch.testing.assert_close(_estimate(_linear, pairs), expected, rtol=1e-5, atol=1e-5)


def test_signs_are_fair_independent_and_the_draws_of_key_and_image() -> None:
    whole = torch.cat([Directions(KEY, 7, 1000, CPU).chunk(i) for i in range(8)])
    assert set(whole.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(whole.mean())) < 4.5 / whole.numel() ** 0.5
    products = whole @ whole.T / 1000  # of different pairs: 0, with a deviation of 1/sqrt(1000)
    assert (products - torch.eye(len(whole))).abs().max() < 5.5 / 1000**0.5
    for other in (Directions(KEY, 8, 1000, CPU), Directions(Key(4, Purpose.SPSA), 7, 1000, CPU)):
        assert (other.chunk(0) != whole[:CHUNK]).any()
    bits = KEY.bits(7, 500).view(np.uint8)
    first = np.unpackbits(bits, bitorder="little")[: CHUNK * 1000].reshape(CHUNK, 1000)
    assert torch.equal(whole[:CHUNK], torch.from_numpy(first).float() * 2 - 1)


def test_words_that_are_skipped_are_those_that_come_before() -> None:
    assert KEY.bits(7, 12)[8:].tolist() == KEY.bits(7, 4, skip=2).tolist()


def test_only_the_slots_asked_for_get_a_gradient_and_each_from_its_own_loss() -> None:
    def losses(points: Tensor, slots: Tensor | None) -> tuple[Tensor, Tensor]:
        factors = torch.tensor([1.0, 10.0, 100.0, 1000.0])
        own = factors if slots is None else factors[slots]
        return _linear(points, None)[0], own * _linear(points, None)[1]

    slots = np.array([3, 1])
    seen = look_around(losses, POINTS, slots, [(KEY, 7), (KEY, 7)], 64, 0.01)
    assert seen.gradient is not None
    assert (seen.gradient[[0, 2]] == 0).all()
    assert torch.equal(seen.losses_B, losses(POINTS, None)[1])
    # The same image id and so the same directions, on a linear function: only the factor differs.
    torch.testing.assert_close(seen.gradient[3], 100 * seen.gradient[1], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("loss", [Loss.cross_entropy, Loss.margin])
def test_on_s3ta_its_cosine_with_the_gradient_follows_the_dimension_law(
    loss: Loss, tiny_model: Models
) -> None:
    """E cos = sqrt(n / (n + D - 1)): 0.57 for 17 pairs in 36 dimensions, 0.89 for 128."""
    images = torch.rand(96, 1, 6, 6, generator=torch.Generator().manual_seed(5))
    labels_B, targets_B = torch.arange(96) % 5, (torch.arange(96) + 1) % 5
    with frozen(tiny_model(2)) as model:

        def losses(points: Tensor, slots: Tensor | None) -> tuple[Tensor, Tensor]:
            logits_BC = model(points)
            labels = labels_B if slots is None else labels_B[slots]
            targets = targets_B if slots is None else targets_B[slots]
            return logits_BC, attack_loss(loss, logits_BC, labels, targets)

        true = look(losses, images)
        for pairs in (17, 128):
            keys = [(KEY, i) for i in range(96)]
            seen = look_around(losses, images, np.arange(96), keys, pairs, 1e-3)
            assert true.gradient is not None
            assert seen.gradient is not None
            cosines = torch.cosine_similarity(seen.gradient.flatten(1), true.gradient.flatten(1))
            law = (pairs / (pairs + 36 - 1)) ** 0.5
            assert float(cosines.mean()) == pytest.approx(law, rel=0.06)
            # Unbiased: along the gradient it is as long as that.
            length = (seen.gradient.flatten(1) * true.gradient.flatten(1)).sum(1)
            ratio = length / true.gradient.flatten(1).square().sum(1)
            assert float(ratio.mean()) == pytest.approx(1, rel=0.08)
