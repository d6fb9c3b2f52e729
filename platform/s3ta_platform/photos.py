"""Training photos: an encoded image and its draws -> augmented pixels, fast.

The steps, of which each is a part of the result:
1. The crop is drawn for the file's size. A JPEG whose crop is at least 2, 4 or 8 times as large as
   the result, on both sides, is decoded that much smaller (libjpeg's DCT scaling); the crop's
   numbers are divided by it and rounded down.
2. The crop is resized to a square: bicubic, with as much blur as it shrinks (as Pillow's, whose
   results differ in rounding), by torch's kernel for bytes, which takes a quarter of the time.
3. Colours change by one affine map, are rounded half up and clipped to 0..255, once.
4. Left and right are exchanged, or not.
"""

from collections.abc import Sequence

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from torch import Tensor

from s3ta.augmentation import Colour, Crop, Distortion, draw_distortion
from s3ta_platform.data import ParquetImages, Pixels, open_image
from s3ta_platform.data_files import Integers


def read_distorted(
    images: ParquetImages, ids: Sequence[int] | Integers, seed: int, epoch: int
) -> tuple[Pixels, Integers]:
    """As `images.read`, of colour images of a set size, each distorted as drawn for the epoch."""
    size = images.shape_CHW[-1]
    drawn = [draw_distortion(seed, epoch, int(i)) for i in ids]
    by_id = {int(i): distortion for i, distortion in zip(ids, drawn, strict=True)}
    # One kind of work after the other, not one image: so each finds its code in the caches.
    images_BCHW, labels_B = images.read(
        ids, lambda encoded, image_id: cropped(encoded, size, by_id[image_id])
    )
    for image_CHW, distortion in zip(images_BCHW, drawn, strict=True):
        recolour(image_CHW, distortion)
    return images_BCHW, labels_B


def cropped(encoded: bytes | None, size: int, distortion: Distortion) -> Pixels:
    """One PNG or JPEG file as uint8 (3, size, size), cropped as drawn.

    Raises whatever Pillow raises for bad bytes.
    """
    crop, pixels_HWC = _jpeg(encoded, size, distortion) or _any(encoded, distortion)
    pixels_CHW: Pixels = resized(torch.from_numpy(pixels_HWC), crop, size).numpy()
    return pixels_CHW


def recolour(image_CHW: Pixels, distortion: Distortion) -> None:
    """Change colours, and exchange left and right, in place."""
    planes_CHW = torch.from_numpy(image_CHW)
    changed_CHW = _coloured(planes_CHW, distortion.colour)
    planes_CHW.copy_(changed_CHW.flip(-1) if distortion.flip else changed_CHW)


def _jpeg(encoded: bytes | None, size: int, distortion: Distortion) -> tuple[Crop, Pixels] | None:
    """The crop, and the pixels (H, W, 3) that it counts; None for what Pillow has to look at.

    libjpeg-turbo, as in Pillow, but without the way through Pillow's own memory.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        if colours != "YCbCr":
            return None
        crop = distortion.crop(width, height)
        times = min(crop.width, crop.height) // size
        scale = next(s for s in (8, 4, 2, 1) if times >= s or s == 1)
        least = {"min_height": -(-height // scale), "min_width": -(-width // scale)}
        pixels_HWC = simplejpeg.decode_jpeg(encoded, **least)
    except (TypeError, ValueError):  # no bytes, no JPEG, or one with something wrong
        return None
    sides = (crop.left, crop.top, crop.width, crop.height)
    return Crop(*(number // scale for number in sides)), pixels_HWC


def _any(encoded: bytes | None, distortion: Distortion) -> tuple[Crop, Pixels]:
    """The same for any file, in its full size."""
    with open_image(encoded) as image:
        return distortion.crop(*image.size), np.array(image.convert("RGB"))


def resized(pixels_HWC: Tensor, crop: Crop, size: int) -> Tensor:
    """A crop's colours as uint8 (3, size, size)."""
    bottom, right = crop.top + crop.height, crop.left + crop.width
    cut_1CHW = pixels_HWC[crop.top : bottom, crop.left : right].permute(2, 0, 1)[None]
    new_1CHW = F.interpolate(cut_1CHW, (size, size), mode="bicubic", antialias=True)
    return new_1CHW[0].contiguous()


def _coloured(planes_CHW: Tensor, colour: Colour) -> Tensor:
    """Bytes (3, H, W) with changed colours."""
    values_CP = planes_CHW.flatten(1).float()
    matrix, shift = colour.affine(values_CP.mean(dim=1).numpy().astype(np.float64) / 255)
    # With a half added, cutting off is rounding; numpy does it several times as fast as torch.
    change = torch.from_numpy(np.column_stack([shift * 255 + 0.5, matrix]).astype(np.float32))
    values_CP = torch.addmm(change[:, :1], change[:, 1:], values_CP).clamp_(0, 255)
    return torch.from_numpy(values_CP.numpy().astype(np.uint8)).view(planes_CHW.shape)
