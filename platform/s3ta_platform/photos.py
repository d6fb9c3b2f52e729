"""Training photos: an encoded image and its draws -> augmented pixels, fast.

The steps, of which each is a part of the result:
1. The crop is drawn for the file's size. A JPEG whose crop is at least 2, 4 or 8 times as large as
   the result, on both sides, is decoded that much smaller (libjpeg's DCT scaling); the crop's
   numbers are divided by it and rounded down.
2. The crop is resized to a square: bicubic, with as much blur as it shrinks (as Pillow's, whose
   results differ in rounding), by torch's kernel for bytes, which takes a quarter of the time.
3. Left and right are exchanged, or not.
4. Colours change by one affine map, are rounded half up and clipped to 0..255, once.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F

from s3ta.augmentation import Colour, Crop, Distortion, draw_distortion
from s3ta_platform.data import ParquetImages, Pass
from s3ta_platform.data_files import Integers
from s3ta_platform.image_files import Pixels, open_image


def read_distorted(
    images: ParquetImages, ids: Sequence[int] | Integers, seed: int, epoch: int
) -> tuple[Pixels, Integers]:
    """As `images.read`, of colour images of a set size, each distorted as drawn for the epoch."""
    drawn = {int(i): draw_distortion(seed, epoch, int(i)) for i in ids}
    images_BCHW, labels_B = images.read(ids, passes(images.shape_CHW[-1], drawn))
    recolour(images_BCHW, [drawn[int(i)].colour for i in ids])
    return images_BCHW, labels_B


def passes(size: int, drawn: Mapping[int, Distortion]) -> tuple[Pass, Pass, Pass]:
    """From PNG and JPEG files to uint8 (3, size, size), cropped and flipped as drawn per image id.

    They raise whatever Pillow raises for bad bytes.
    """

    def look(encoded: bytes | None, image_id: int) -> _Photo:
        return _looked_at(encoded, size, drawn[image_id])

    def cut(photo: _Photo, image_id: int) -> Pixels:
        return _cut(photo, size, drawn[image_id])

    def fit(pixels_HWC: Pixels, image_id: int) -> Pixels:
        pixels_CHW = resized(pixels_HWC, size).transpose(2, 0, 1)
        return pixels_CHW[:, :, ::-1] if drawn[image_id].flip else pixels_CHW

    return look, cut, fit


class _Photo(NamedTuple):
    encoded: bytes | None
    crop: Crop | None = None
    """Of the pixels as they will be decoded; None for what Pillow has to look at."""
    height: int = 0
    width: int = 0
    """At least so large is a JPEG decoded."""


def _looked_at(encoded: bytes | None, size: int, distortion: Distortion) -> _Photo:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except (TypeError, ValueError):  # no bytes, or no JPEG
        colours = ""
    if colours != "YCbCr":
        return _Photo(encoded)
    crop = distortion.crop(width, height)
    times = min(crop.width, crop.height) // size
    scale = next(s for s in (8, 4, 2, 1) if times >= s or s == 1)
    sides = (crop.left, crop.top, crop.width, crop.height)
    smaller = Crop(*(number // scale for number in sides))
    return _Photo(encoded, smaller, -(-height // scale), -(-width // scale))


def _cut(photo: _Photo, size: int, distortion: Distortion) -> Pixels:
    """The crop alone, (h, w, 3), in memory of its own.

    By libjpeg-turbo, as in Pillow, but without the way through Pillow's own memory.
    """
    encoded, crop, height, width = photo
    if crop:
        try:
            pixels_HWC = simplejpeg.decode_jpeg(encoded, min_height=height, min_width=width)
            return _cropped(pixels_HWC, crop)
        except ValueError:  # something is wrong in it
            pass
    with open_image(encoded) as image:
        crop, pixels_HWC = distortion.crop(*image.size), np.array(image.convert("RGB"))
    # At once, because in full size the crops of all images may be too much to keep.
    return resized(_cropped(pixels_HWC, crop), size)


def _cropped(pixels_HWC: Pixels, crop: Crop) -> Pixels:
    bottom, right = crop.top + crop.height, crop.left + crop.width
    return np.ascontiguousarray(pixels_HWC[crop.top : bottom, crop.left : right])


def resized(pixels_HWC: Pixels, size: int) -> Pixels:
    """C-contiguous pixels as uint8 (size, size, 3)."""
    if pixels_HWC.shape[:2] == (size, size):
        return pixels_HWC
    # With strides from `reshape`, torch sees channels last, and keeps them so.
    one_1HWC = torch.from_numpy(pixels_HWC.reshape(1, *pixels_HWC.shape))
    new_1CHW = F.interpolate(
        one_1HWC.permute(0, 3, 1, 2), (size, size), mode="bicubic", antialias=True
    )
    found_HWC: Pixels = new_1CHW.numpy()[0].transpose(1, 2, 0)
    return found_HWC


def recolour(images_BCHW: Pixels, colours: Sequence[Colour]) -> None:
    """Change the colours of C-contiguous images, in place."""
    batch, _, height, width = images_BCHW.shape
    pixels = height * width
    planes_BCP = images_BCHW.reshape(batch, 3, pixels)
    sums_BC = images_BCHW.sum(axis=3, dtype=np.uint32).sum(axis=2)
    means_BC = (sums_BC / pixels).astype(np.float32)  # so rounded it is a part of the result
    changes_BC4 = np.empty((len(colours), 3, 4))
    for change_C4, colour, mean_C in zip(changes_BC4, colours, means_BC, strict=True):
        change_C4[...] = colour.affine(mean_C.astype(np.float64) / 255)
    changes_BC4[:, :, 0] = changes_BC4[:, :, 0] * 255 + 0.5  # so that cutting off is rounding
    values_4P, changed_CP = torch.ones(4, pixels), torch.empty(3, pixels)
    # numpy casts several times as fast as torch, which multiplies and clips faster.
    numbers_CP, new_CP = values_4P[1:].numpy(), changed_CP.numpy()
    changes = torch.from_numpy(changes_BC4.astype(np.float32))
    for planes_CP, change in zip(planes_BCP, changes, strict=True):
        numbers_CP[...] = planes_CP
        torch.mm(change, values_4P, out=changed_CP).clamp_(0, 255)
        planes_CP[...] = new_CP
