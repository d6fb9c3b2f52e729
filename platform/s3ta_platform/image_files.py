"""One PNG or JPEG file -> pixels, as evaluation sees them. Imports no torch.

Legend: C channels, H W pixels.
"""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]


def open_image(encoded: bytes | None) -> ImageFile.ImageFile:
    """One PNG or JPEG file of 8 bits per channel, not yet decoded; close it.

    Raises whatever Pillow raises for bad bytes.
    """
    if encoded is None:
        raise ValueError("no image")
    try:
        image = Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG"))
    except UnidentifiedImageError as error:  # whose message is the address of our BytesIO
        raise ValueError("neither PNG nor JPEG") from error
    if image.mode == "F" or image.mode.startswith("I"):  # convert() would clip, not scale
        image.close()
        raise ValueError(f"more than 8 bits per channel, mode {image.mode}")
    image.info.pop("transparency", None)  # else convert() blends or warns, by mode
    return image


def decode(encoded: bytes | None, channels: int, size: int | None) -> Pixels:
    """One PNG or JPEG file as uint8 CHW. EXIF is ignored, transparency dropped.

    Raises whatever Pillow raises for bad bytes.
    """
    with open_image(encoded) as image:
        pixels = image.convert("L" if channels == 1 else "RGB")
    if size:
        pixels = _centre(pixels, size)
    pixels_HWC = np.asarray(pixels, dtype=np.uint8).reshape(pixels.height, pixels.width, channels)
    return np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1))


def _centre(image: Image.Image, size: int) -> Image.Image:
    """The paper's evaluation: short side 256 and centre 224, in proportion for other sizes."""
    if image.size == (size, size):
        return image
    scale = round(size * 256 / 224) / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
