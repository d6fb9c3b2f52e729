"""Crops, colours and flips: worked out on paper, against closed forms, and drawn per image."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from s3ta.augmentation import (
    EIGENVALUES_3,
    EIGENVECTORS_C3,
    Colour,
    Crop,
    Distortion,
    Floats,
    draw_distortion,
    lighting,
)

WHOLE, SQUARE = 1.0, 3 / 7
"""Draws of an area of 100 %, and of an aspect of 3/4 + 3/7 (4/3 - 3/4) = 1."""
DRAWN = [draw_distortion(5, 2, image_id) for image_id in range(4000)]


def _distortion(*tries: tuple[float, ...]) -> Distortion:
    """The tries given; those after them never fit."""
    filled = [*tries, *[(WHOLE, 0.0, 0.9, 0.0, 0.0)] * (10 - len(tries))]
    return Distortion(tuple(itertools.chain(*filled)), Colour(), flip=False)


# Crops of an image of 100 x 50 pixels.


@pytest.mark.parametrize(
    ("draws", "crop"),
    [
        # Half the area: 2500 pixels, a square. 51 places across, 1 down.
        ((0.42 / 0.92, SQUARE, 0.0, 0.0, 0.0), Crop(0, 0, 50, 50)),
        ((0.42 / 0.92, SQUARE, 0.0, 0.5, 0.9), Crop(25, 0, 50, 50)),
        ((0.42 / 0.92, SQUARE, 0.9, 1 - 2**-53, 1 - 2**-53), Crop(50, 0, 50, 50)),
        # 8 %: 400 pixels at 3/4: 17.3 x 23.1, rounded; exchanged below a half.
        ((0.0, 0.0, 0.5, 0.0, 0.0), Crop(0, 0, 17, 23)),
        ((0.0, 0.0, 0.49, 0.0, 0.0), Crop(0, 0, 23, 17)),
        ((0.0, 0.0, 0.5, 0.25, 0.75), Crop(21, 21, 17, 23)),  # 84 / 4 and 28 * 3/4
        # 8 % at 4/3: 23.1 x 17.3.
        ((0.0, 1.0, 0.5, 0.0, 0.0), Crop(0, 0, 23, 17)),
    ],
)
def test_a_crop_is_worked_out_from_its_draws(draws: tuple[float, ...], crop: Crop) -> None:
    assert _distortion(draws).crop(100, 50) == crop


def test_the_first_try_that_fits_is_taken() -> None:
    too_high = (WHOLE, SQUARE, 0.0, 0.0, 0.0)  # 71 x 71
    fits = (0.42 / 0.92, SQUARE, 0.0, 0.5, 0.0)
    other = (0.0, 0.0, 0.5, 0.0, 0.0)
    assert _distortion(too_high, too_high, fits, other).crop(100, 50) == Crop(25, 0, 50, 50)
    assert _distortion(*[too_high] * 9, other).crop(100, 50) == Crop(0, 0, 17, 23)


def test_after_ten_tries_it_is_the_largest_square_in_the_middle() -> None:
    assert _distortion().crop(100, 50) == Crop(25, 0, 50, 50)
    assert _distortion().crop(51, 98) == Crop(0, 23, 51, 51)


def test_a_tiny_image_has_a_crop_of_at_least_a_pixel() -> None:
    for distortion in DRAWN[:500]:
        for width, height in ((1, 1), (1, 9), (3, 2)):
            crop = distortion.crop(width, height)
            assert 0 < crop.width <= width - crop.left
            assert 0 < crop.height <= height - crop.top


def _share_near(found: int, expected: float) -> None:
    """A share of the 4000, within 4 standard deviations."""
    n = len(DRAWN)
    assert abs(found / n - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


def test_areas_have_their_closed_form_distribution() -> None:
    """An area A of a square image with aspect r fits if A <= min(r, 1/r). So its density is flat up
    to 3/4, and from there on (1/A - A) / (7/12) of that: in all 0.67 + 0.118169."""
    side = 100_000
    areas = np.array([c.width * c.height for c in (d.crop(side, side) for d in DRAWN)]) / side**2
    mass = 0.67 + 12 / 7 * (0.5625 / 2 - 0.5 - math.log(0.75))
    assert mass == pytest.approx(0.788169, abs=1e-6)
    assert 0.08 <= areas.min() < 0.082
    for area in (0.2, 0.35, 0.5, 0.65, 0.75):
        _share_near(int((areas <= area).sum()), (area - 0.08) / mass)
    upper = 12 / 7 * ((0.9**2 - 1) / 2 - math.log(0.9))
    _share_near(int((areas > 0.9).sum()), upper / mass)


def test_aspects_and_places_have_their_closed_form_distributions() -> None:
    """Below 3/4 of the area every aspect fits: P(max(r, 1/r) <= t) = (t - 1/t) / (7/12)."""
    side = 100_000
    crops = [d.crop(side, side) for d in DRAWN]
    small = [c for c in crops if c.width * c.height <= 0.7 * side**2]
    aspects = np.array([c.width / c.height for c in small])
    longer = np.maximum(aspects, 1 / aspects)
    assert 1.33 < longer.max() < 1.33334
    for t in (1.05, 1.1, 1.2, 1.3):
        expected = (t - 1 / t) * 12 / 7
        spread = math.sqrt(expected * (1 - expected) / len(small))
        assert abs((longer <= t).mean() - expected) < 4 * spread
    assert abs((aspects > 1).mean() - 0.5) < 4 * 0.5 / math.sqrt(len(small))
    for places in (
        [c.left / (side - c.width) for c in small],
        [c.top / (side - c.height) for c in small],
    ):
        for quantile in (0.1, 0.5, 0.9):
            spread = math.sqrt(quantile * (1 - quantile) / len(small))
            assert abs((np.array(places) <= quantile).mean() - quantile) < 4 * spread


# Colours. A pixel (0.5, 0.25, 0.1), in an image whose mean is (0.4, 0.3, 0.2).

PIXEL, MEAN = np.array([0.5, 0.25, 0.1]), np.array([0.4, 0.3, 0.2])


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        (Colour(), [0.5, 0.25, 0.1]),
        (Colour(brightness=1.2), [0.6, 0.3, 0.12]),
        (Colour(contrast=0.6), [0.46, 0.27, 0.14]),
        (Colour(contrast=1.4), [0.54, 0.23, 0.06]),
        # Its grey is 0.299 * 0.5 + 0.587 * 0.25 + 0.114 * 0.1 = 0.30765.
        (Colour(saturation=0.5), [0.403825, 0.278825, 0.203825]),
        (Colour(saturation=0.0), [0.30765] * 3),
        (Colour(lighting_C=(0.1, 0.0, -0.2)), [0.6, 0.25, -0.1]),
        # Brighter first, its mean is brighter too: 1.2 (0.46, 0.27, 0.14).
        (Colour(order=(0, 1, 2, 3), brightness=1.2, contrast=0.6), [0.552, 0.324, 0.168]),
        (Colour(order=(3, 0, 1, 2), brightness=2.0, lighting_C=(0.1, 0, 0)), [1.2, 0.5, 0.2]),
        (Colour(order=(0, 3, 1, 2), brightness=2.0, lighting_C=(0.1, 0, 0)), [1.1, 0.5, 0.2]),
        (Colour(order=(3, 2, 0, 1), saturation=0.0, lighting_C=(1, 0, 0)), [0.60665] * 3),
    ],
)
def test_colours_by_hand(colour: Colour, expected: list[float]) -> None:
    assert (colour.affine(MEAN) @ [1, *PIXEL]).tolist() == pytest.approx(expected)


def _in_turn(image_PC: Floats, colour: Colour) -> Floats:
    """Each step on all pixels, as one would write it down."""
    grey = np.array([0.299, 0.587, 0.114])
    steps: list[Callable[[Floats], Floats]] = [
        lambda x: x * colour.brightness,
        lambda x: x.mean(axis=0) + colour.contrast * (x - x.mean(axis=0)),
        lambda x: (x @ grey)[:, None] + colour.saturation * (x - (x @ grey)[:, None]),
        lambda x: x + np.array(colour.lighting_C),
    ]
    for index in colour.order:
        image_PC = steps[index](image_PC)
    return image_PC


def test_all_steps_together_are_the_steps_one_after_the_other_in_every_order() -> None:
    image_PC = np.random.default_rng(0).uniform(size=(20, 3))
    for index, order in enumerate(itertools.permutations(range(4))):
        colour = replace(DRAWN[index].colour, order=order)
        change_C4 = colour.affine(image_PC.mean(axis=0))
        together_PC = np.column_stack([np.ones(20), image_PC]) @ change_C4.T
        np.testing.assert_allclose(together_PC, _in_turn(image_PC, colour))


def test_lighting_goes_along_the_principal_components_of_imagenets_colours() -> None:
    assert lighting(np.array([1.0, 0.0, 0.0])).tolist() == pytest.approx(
        [0.2175 * -0.5675, 0.2175 * -0.5808, 0.2175 * -0.5836]
    )
    assert lighting(np.array([0.0, 0.0, 2.0])).tolist() == pytest.approx(
        [0.009 * 0.4009, 0.009 * -0.8140, 0.009 * 0.4203]
    )
    # They are orthonormal, as far as four digits go.
    np.testing.assert_allclose(EIGENVECTORS_C3.T @ EIGENVECTORS_C3, np.eye(3), atol=2e-3)


# Draws.


def test_factors_lightings_orders_and_flips_have_their_distributions() -> None:
    colours = [d.colour for d in DRAWN]
    n = len(colours)
    for name in ("brightness", "contrast", "saturation"):
        factors = np.array([getattr(c, name) for c in colours])
        assert 0.6 <= factors.min() < 0.602
        assert 1.398 < factors.max() < 1.4
        assert abs(factors.mean() - 1) < 4 * 0.8 / math.sqrt(12 * n)
        assert abs((factors < 0.8).mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n)
    orders = [c.order for c in colours]
    for order in itertools.permutations(range(4)):
        _share_near(orders.count(order), 1 / 24)
    _share_near(sum(d.flip for d in DRAWN), 0.5)
    # Back along the components: three independent normal draws of standard deviation 0.1.
    added = np.array([c.lighting_C for c in colours])
    along = np.linalg.solve(EIGENVECTORS_C3, added.T) / EIGENVALUES_3[:, None]
    np.testing.assert_allclose(np.cov(along), 0.01 * np.eye(3), atol=4 * 0.01 * math.sqrt(2 / n))
    assert (np.abs(along.mean(axis=1)) < 4 * 0.1 / math.sqrt(n)).all()
    for row in along:
        _share_near(int((np.abs(row) < 0.1).sum()), 0.682689)
        _share_near(int((np.abs(row) < 0.2).sum()), 0.954500)


def test_draws_belong_to_seed_epoch_and_image() -> None:
    assert draw_distortion(5, 2, 17) == DRAWN[17]
    others = [draw_distortion(6, 2, 17), draw_distortion(5, 3, 17), DRAWN[18]]
    numbers = {
        (d.crop_draws[0], d.colour.brightness, d.colour.lighting_C) for d in [DRAWN[17], *others]
    }
    assert len(numbers) == 4


def test_the_draws_of_an_image_never_change() -> None:
    drawn = draw_distortion(0, 1, 2)
    assert drawn.crop(500, 375) == Crop(8, 63, 341, 288)
    assert drawn.colour.order == (3, 1, 0, 2)
    assert drawn.colour.brightness == pytest.approx(1.2517191694114076, rel=1e-14)
    assert drawn.colour.saturation == pytest.approx(1.175169711627789, rel=1e-14)
    assert drawn.colour.lighting_C[0] == pytest.approx(0.0046468441358599715, rel=1e-12)
    assert not drawn.flip
