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
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

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
    with open_image(encoded) as image:
        image.decodermaxblock = len(encoded or b"")  # all at once, not in pieces of 64 kB
        crop, pixels_HWC = _decoded(image, size, distortion)
    pixels_CHW: Pixels = resized(pixels_HWC, crop, size).numpy()
    return pixels_CHW


def recolour(image_CHW: Pixels, distortion: Distortion) -> None:
    """Change colours, and exchange left and right, in place."""
    changed_CHW = coloured(torch.from_numpy(image_CHW), distortion.colour)
    image_CHW[:] = changed_CHW[:, :, ::-1] if distortion.flip else changed_CHW


def _decoded(image: Image.Image, size: int, distortion: Distortion) -> tuple[Crop, Tensor]:
    """The crop, and the pixels that it counts: uint8 (H, W, 3 or 4), of which three are colours."""
    crop = distortion.crop(*image.size)
    if image.mode != "RGB":
        return crop, torch.from_numpy(np.array(image.convert("RGB")))
    if image.format == "JPEG":
        crop = _shrunk(image, crop, size)
    image.load()
    if not hasattr(image, "__arrow_c_array__"):  # before Pillow 11.3
        return crop, torch.from_numpy(np.array(image))
    try:
        shared = from_dlpack(pa.array(image).flatten().__dlpack__())
    except ValueError:  # a large image's rows lie in several pieces
        return crop, torch.from_numpy(np.array(image))
    return crop, shared.view(image.height, image.width, -1)


def _shrunk(image: Image.Image, crop: Crop, size: int) -> Crop:
    """Have a JPEG decoded as small as its crop allows; the crop in what will be its pixels."""
    times = min(crop.width, crop.height) // size
    scale = next(s for s in (8, 4, 2, 1) if times >= s or s == 1)
    if scale > 1:
        image.draft("RGB", (image.width // scale, image.height // scale))
    return Crop(*(number // scale for number in (crop.left, crop.top, crop.width, crop.height)))


def resized(pixels_HWC: Tensor, crop: Crop, size: int) -> Tensor:
    """A crop's colours as uint8 (3, size, size)."""
    bottom, right = crop.top + crop.height, crop.left + crop.width
    cut_1CHW = pixels_HWC[crop.top : bottom, crop.left : right].permute(2, 0, 1)[None]
    new_1CHW = F.interpolate(cut_1CHW, (size, size), mode="bicubic", antialias=True)
    return new_1CHW[0, :3].contiguous()


def coloured(planes_CHW: Tensor, colour: Colour) -> Pixels:
    """Bytes (3, H, W) with changed colours."""
    values_CP = planes_CHW.flatten(1).float()
    matrix, shift = colour.affine(values_CP.mean(dim=1).numpy().astype(np.float64) / 255)
    matrix_CC, shift_C = (torch.from_numpy(a.astype(np.float32)) for a in (matrix, shift * 255))
    # With a half added, cutting off is rounding; numpy does it several times as fast as torch.
    values_CP = torch.addmm(shift_C[:, None] + 0.5, matrix_CC, values_CP).clamp_(0, 255)
    pixels_CP: Pixels = values_CP.numpy().astype(np.uint8)
    return pixels_CP.reshape(planes_CHW.shape)
