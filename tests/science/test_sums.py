"""Sums over microbatches: exact, so that no order of additions shows; checked with fractions."""

import functools
import math
from fractions import Fraction
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s3ta.settings import Sums, TrainSettings
from s3ta.sums import LIMIT, StepReport, StepSums

NUMBERS = 200


def settings(microbatches: int, sums: Sums = Sums.exact) -> TrainSettings:
    return TrainSettings(batch=microbatches, microbatch=1, sums=sums)


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Linear(NUMBERS, 1, bias=False, dtype=dtype)


class Given(torch.autograd.Function):
    """A loss of this value with this gradient by the weight, whatever that is."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gradient: Tensor, value: float) -> Tensor:
        ctx.gradient = gradient.view_as(weight)
        return weight.new_tensor(value)

    @staticmethod
    def backward(ctx: Any, _: Any) -> Any:
        return ctx.gradient, None, None


def add(sums: StepSums, index: int, gradient: Tensor, loss: float = 0.5) -> None:
    given: Any = Given.apply(sums.parameters[0], gradient, loss)  # type: ignore[no-untyped-call]
    sums.add(index, given, torch.tensor(1))


def summed(
    terms: list[Tensor], workers: list[list[int]], mode: Sums = Sums.exact
) -> tuple[Tensor, StepReport]:
    """The gradient that is applied, when microbatches are dealt out so and added in this order."""
    net = model(terms[0].dtype)
    buffers = []
    for share in workers:
        sums = StepSums(net, settings(len(terms), mode))
        for index in share:
            add(sums, index, terms[index])
        buffers.append(sums.flat)
    total = buffers[0]
    for other in buffers[1:]:
        total = total + other
    sums.flat = total
    report = sums.apply()
    gradient = next(net.parameters()).grad
    assert gradient is not None
    return gradient.flatten(), report


def terms_of_all_magnitudes(count: int, seed: int = 0) -> list[Tensor]:
    """From 2^-70 to 2^24, of both signs, some of which cancel to the last bit."""
    rng = np.random.default_rng(seed)
    mantissas = rng.uniform(1, 2, (count, NUMBERS)) * rng.choice([-1, 1], (count, NUMBERS))
    values = (mantissas * 2.0 ** rng.integers(-70, 24, (count, NUMBERS))).astype(np.float32)
    values[1, :50] = -values[0, :50]
    return [torch.from_numpy(row) for row in values]


DEALINGS = [
    [[0, 1, 2, 3, 4, 5, 6, 7]],
    [[7, 6, 5, 4, 3, 2, 1, 0]],
    [[0, 2, 4, 6], [1, 3, 5, 7]],
    [[1, 3, 5, 7], [0, 2, 4, 6]],
    [[0, 3, 6], [1, 4, 7], [2, 5]],
    [[4], [1, 0, 7], [6, 2, 3, 5]],
]


def test_terms_of_all_magnitudes_give_the_same_bits_in_every_order() -> None:
    terms = terms_of_all_magnitudes(8)
    first, _ = summed(terms, DEALINGS[0])
    for dealing in DEALINGS[1:]:
        assert torch.equal(summed(terms, dealing)[0], first)


@pytest.mark.parametrize("mode", list(Sums))
@pytest.mark.parametrize("microbatches", [1, 8])
def test_the_pieces_in_which_sums_are_made_do_not_show(
    microbatches: int, mode: Sums, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms, dealing = terms_of_all_magnitudes(8)[:microbatches], [[*range(microbatches)]]
    whole = summed(terms, dealing, mode)
    monkeypatch.setattr("s3ta.sums.PIECE", 7)
    pieces = summed(terms, dealing, mode)
    assert torch.equal(pieces[0], whole[0])
    assert pieces[1] == whole[1]
    terms[-1][NUMBERS - 1] = -LIMIT
    assert summed(terms, dealing, mode)[1].not_finite == (microbatches - 1,)


def test_float64_alone_would_not_be_exact_for_these_terms() -> None:
    doubles = [t.double() for t in terms_of_all_magnitudes(8)]
    ends = {
        tuple(functools.reduce(torch.add, (doubles[i] for i in order)).tolist())
        for order in list(permutations(range(8)))[:200]
    }
    assert len(ends) > 1


def test_the_mean_is_the_true_mean_rounded_once() -> None:
    terms = terms_of_all_magnitudes(8, seed=1)
    mean, _ = summed(terms, DEALINGS[0])
    for place in range(NUMBERS):
        true = sum((Fraction(float(t[place])) for t in terms), Fraction(0)) / 8
        allowed = abs(true) * (Fraction(2) ** -24 + Fraction(2) ** -50) + Fraction(2) ** -59
        assert abs(Fraction(float(mean[place])) - true) <= allowed


def test_the_largest_sum_of_the_most_microbatches_is_exact() -> None:
    """4096 terms just below the limit, each of which leaves nearly the most that is fine."""
    term = LIMIT - 2.0**-16 + 2.0**-17 * (1 - 2.0**-12)
    net = model(torch.float64)
    sums = StepSums(net, settings(4096))
    for index in range(4096):
        add(sums, index, torch.full((NUMBERS,), term, dtype=torch.float64))
    found = sum((Fraction(float(row[0])) for row in sums.flat), Fraction(0))
    coarse_and_fine = Fraction(round(term * 2**58), 2**58)
    assert found == 4096 * coarse_and_fine
    assert abs(coarse_and_fine - Fraction(term)) <= Fraction(2) ** -59
    assert sums.report().not_finite == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, LIMIT, -LIMIT])
@pytest.mark.parametrize("mode", list(Sums))
def test_a_microbatch_that_is_not_finite_is_named_by_its_place(bad: float, mode: Sums) -> None:
    terms = [torch.ones(NUMBERS) for _ in range(8)]
    terms[2][17] = bad
    terms[5][3] = bad
    for dealing in DEALINGS:
        assert summed(terms, dealing, mode)[1].not_finite == (2, 5)


def test_a_single_microbatch_is_cut_off_where_those_that_are_added_up_are() -> None:
    """At 2^-58, so its bits are those of a sum with nothing else in it."""
    term = terms_of_all_magnitudes(2)[0]
    gradient, report = summed([term], [[0]])
    for found, given in zip(gradient.tolist(), term.tolist(), strict=True):
        assert found == float(np.float32(Fraction(round(Fraction(given) * 2**58), 2**58)))
    assert not torch.equal(gradient, term)
    assert torch.equal(summed([term], [[0]], Sums.fast)[0], term)
    assert report == StepReport(0.5, 1.0)
    nothing = torch.zeros(NUMBERS)
    assert torch.equal(summed([term, nothing], [[0, 1]])[0] * 2, gradient)


@pytest.mark.parametrize("mode", list(Sums))
def test_a_single_microbatch_can_be_not_finite(mode: Sums) -> None:
    term = torch.ones(NUMBERS)
    term[7] = LIMIT
    assert summed([term], [[0]], mode)[1].not_finite == (0,)


def test_a_loss_that_is_not_finite_counts_too() -> None:
    sums = StepSums(model(), settings(3))
    for index, loss in enumerate([0.5, math.nan, 0.5]):
        add(sums, index, torch.ones(NUMBERS), loss)
    assert sums.report().not_finite == (1,)


def test_wishes_and_marks_travel_with_the_sum() -> None:
    one, other = (StepSums(model(), settings(2)) for _ in range(2))
    add(one, 0, torch.ones(NUMBERS), loss=1.0)
    add(other, 1, torch.ones(NUMBERS), loss=2.0)
    for sums, kind in ((one, 1), (other, 0), (other, 1)):
        sums.wish(kind)
    one.mark(1)
    one.flat += other.flat
    assert one.report() == StepReport(1.5, 1.0, not_finite=(1,), wishes=(1, 2))
    one.reset()
    assert one.report() == StepReport(0.0, 0.0)


@pytest.mark.parametrize("mode", list(Sums))
def test_a_step_holds_nothing_of_the_step_before(mode: Sums) -> None:
    one, other = (StepSums(model(), settings(2, mode)) for _ in range(2))
    add(one, 0, torch.full((NUMBERS,), 3.0))
    add(one, 1, torch.full((NUMBERS,), torch.nan))
    one.wish(1)
    one.reset()
    for sums in (one, other):
        add(sums, 1, torch.full((NUMBERS,), 5.0))
        add(sums, 0, torch.full((NUMBERS,), 0.1))
    assert torch.equal(one.flat, other.flat)
    for sums in (one, other):
        assert sums.report() == sums.apply() == StepReport(0.5, 1.0)
    assert torch.equal(one.parameters[0].grad, other.parameters[0].grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("microbatches", [1, 3])
def test_gradients_lie_as_their_parameters_do(microbatches: int) -> None:
    """Channels-last convolutions beside a linear layer: each number at its own place."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.Conv2d(5, 4, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    net.to(memory_format=torch.channels_last)
    sums = StepSums(net, settings(microbatches))
    images, parameters = torch.rand(microbatches, 1, 3, 6, 6), list(net.parameters())
    for index, image in enumerate(images):
        sums.add(index, net(image).square().sum(), torch.tensor(1))
    sums.apply()
    mean = sum(net(image).square().sum() for image in images) / microbatches
    for p, true in zip(parameters, torch.autograd.grad(mean, parameters), strict=True):
        assert p.grad is not None
        assert p.grad.stride() == p.stride()
        torch.testing.assert_close(p.grad, true)


def test_the_fast_mode_is_near_and_depends_on_the_order() -> None:
    terms = [torch.from_numpy(row) for row in np.random.default_rng(0).normal(size=(8, NUMBERS))]
    terms = [t.float() for t in terms]
    exact, _ = summed(terms, DEALINGS[0])
    fast = [summed(terms, dealing, Sums.fast)[0] for dealing in DEALINGS]
    assert not all(torch.equal(end, fast[0]) for end in fast)
    for end in fast:
        torch.testing.assert_close(end, exact, rtol=0, atol=1e-6)
