"""The ImageNet recipe's augmentation: draws -> what is done to one image in one epoch. Pure numpy.

As in [55]'s public code (fb.resnet.torch's recipe in tensorpack): a random crop, resized; then
brightness, contrast, saturation and lighting in random order; then a flip. Every draw belongs to
the image and the epoch. What is applied to pixels, and how, is in s3ta_platform/photos.py.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from s3ta.draws import Key, Purpose

Floats = npt.NDArray[np.float64]

TRIES = 10
AREA = (0.08, 1.0)
"""Shares of the image's area."""
ASPECT = (3 / 4, 4 / 3)
JITTER = 0.4
"""Factors of brightness, contrast and saturation are uniform on 1 -+ this."""
LIGHTING = 0.1
"""Standard deviation of the three lighting draws."""

LUMA_C = np.array([0.299, 0.587, 0.114])
"""ITU-R 601: what red, green and blue weigh in a grey."""
# Krizhevsky et al. 2012, sec. 4.1: principal components of the RGB values of ImageNet's training
# images in [0, 1], with the numbers of fb.resnet.torch (there: eigval, and eigvec by columns).
EIGENVALUES_3 = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS_C3 = np.array(
    [
        [-0.5675, 0.7192, 0.4009],
        [-0.5808, -0.0045, -0.8140],
        [-0.5836, -0.6948, 0.4203],
    ]
)

_BORDERS = (5 * TRIES, 5 * TRIES + 4, 5 * TRIES + 7, 5 * TRIES + 11)
"""Between an image's draws: tries of the crop, order, factors, two pairs for normal draws, flip."""


@dataclass(frozen=True)
class Crop:
    """A part of an image, in whole pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Colour:
    """What is done to an image's colours, one step after the other."""

    order: tuple[int, ...] = (0, 1, 2, 3)
    """Of 0 brightness, 1 contrast, 2 saturation, 3 lighting."""
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    lighting_C: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Added to red, green and blue; images in [0, 1]."""

    def affine(self, mean_C: Floats) -> Floats:
        """All steps together, (3, 4): pixel -> A[:, 0] + A[:, 1:] pixel.

        mean_C: the image's mean colour before, in [0, 1].
        Brightness scales; contrast blends with the mean colour as it is by then, per channel ([55];
        fb.resnet.torch: with the mean grey); saturation blends with each pixel's grey; lighting
        adds. Nothing is clipped in between.
        """
        affine_C4 = np.eye(3, 4, 1)
        for step in self.order:
            if step == 0:
                affine_C4 *= self.brightness
            elif step == 1:
                by_then_C = affine_C4[:, 0] + affine_C4[:, 1:] @ mean_C
                affine_C4 *= self.contrast
                affine_C4[:, 0] += (1 - self.contrast) * by_then_C
            elif step == 2:
                grey_4 = (1 - self.saturation) * (LUMA_C @ affine_C4)
                affine_C4 *= self.saturation
                affine_C4 += grey_4
            else:
                affine_C4[:, 0] += self.lighting_C
        return affine_C4


@dataclass(frozen=True)
class Distortion:
    """All draws of one image in one epoch."""

    crop_draws: tuple[float, ...]
    """Uniform on [0, 1), five for each try."""
    colour: Colour
    flip: bool

    def crop(self, width: int, height: int) -> Crop:
        """Which part of an image of that size is shown.

        Ten tries ([55], after fb.resnet.torch): an area uniform on 8-100 % of the image's, an
        aspect uniform on 3/4-4/3, width and height rounded half up, exchanged in half the cases;
        the first that fits, at a place uniform over all that there are. (tensorpack leaves out the
        last row and column of places.) Otherwise the largest square in the middle, which is their
        short side resized, then the centre.
        """
        for at in range(0, 5 * TRIES, 5):
            area, aspect, exchange, x, y = self.crop_draws[at : at + 5]
            pixels = width * height * _between(AREA, area)
            ratio = _between(ASPECT, aspect)
            w, h = (int(math.sqrt(pixels * r) + 0.5) for r in (ratio, 1 / ratio))
            if exchange < 0.5:
                w, h = h, w
            if 0 < w <= width and 0 < h <= height:
                return Crop(int(x * (width - w + 1)), int(y * (height - h + 1)), w, h)
        side = min(width, height)
        return Crop((width - side) // 2, (height - side) // 2, side, side)


def draw_distortion(seed: int, epoch: int, image_id: int) -> Distortion:
    """What happens to an image in an epoch."""
    words = Key(seed, Purpose.DISTORTION, epoch).bits(image_id, _BORDERS[-1] + 1)
    draws = ((words >> np.uint64(11)) * 2.0**-53).tolist()  # uniform on [0, 1)
    order, factors, normal = (draws[a:b] for a, b in pairwise(_BORDERS))
    brightness, contrast, saturation = (1 + JITTER * (2 * u - 1) for u in factors)
    along_3 = LIGHTING * np.array(_normal(*normal)[:3])
    red, green, blue = lighting(along_3).tolist()
    colour = Colour(
        order=tuple(sorted(range(4), key=order.__getitem__)),
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        lighting_C=(red, green, blue),
    )
    return Distortion(tuple(draws[: 5 * TRIES]), colour, flip=draws[-1] < 0.5)


def lighting(along_3: Floats) -> Floats:
    """What is added to red, green and blue (3,), for so much along each principal component."""
    return EIGENVECTORS_C3 @ (EIGENVALUES_3 * along_3)


def _between(ends: tuple[float, float], uniform: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * uniform


def _normal(u1: float, u2: float, u3: float, u4: float) -> list[float]:
    """Four standard normal draws from four uniform ones on [0, 1) (Box and Muller)."""
    found = []
    for radius, angle in ((u1, u2), (u3, u4)):
        length, turn = math.sqrt(-2 * math.log(1 - radius)), 2 * math.pi * angle
        found += [length * math.cos(turn), length * math.sin(turn)]
    return found
