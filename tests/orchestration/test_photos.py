"""Augmented photos against pixels worked out by hand, against Pillow, and in any order."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from s3ta.augmentation import Colour, Crop, Distortion, draw_distortion
from s3ta.errors import UserError
from s3ta_platform.data import ParquetImages, write_parquet
from s3ta_platform.image_files import open_image
from s3ta_platform.photos import passes, read_distorted, recolour

Pixels = npt.NDArray[np.uint8]


class Exactly(Distortion):
    """One crop, whatever the image's size."""

    def __init__(self, crop: Crop, flip: bool = False) -> None:
        super().__init__((), Colour(), flip)
        object.__setattr__(self, "shown", crop)

    def crop(self, width: int, height: int) -> Crop:
        return self.shown  # type: ignore[attr-defined, no-any-return]


def whole(side: int) -> Exactly:
    return Exactly(Crop(0, 0, side, side))


def encoded(pixels_HWC: Pixels | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image = pixels_HWC if isinstance(pixels_HWC, Image.Image) else Image.fromarray(pixels_HWC)
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int, seed: int = 0) -> Image.Image:
    """Something like a photo."""
    small = Image.fromarray(noise(7, 9, seed))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def chw(image: Image.Image | Pixels) -> Pixels:
    return np.asarray(image).transpose(2, 0, 1)


def cropped(encoded: bytes, size: int, distortion: Distortion) -> Pixels:
    """One file through all passes."""
    value: Any = encoded
    for treat in passes(size, {7: distortion}):
        value = treat(value, 7)
    return value  # type: ignore[no-any-return]


# Crops.


def test_an_image_of_the_right_size_shown_whole_is_itself() -> None:
    pixels = noise(24, 24)
    assert np.array_equal(cropped(encoded(pixels), 24, whole(24)), chw(pixels))
    photo = encoded(smooth(24, 24), "JPEG")
    assert np.array_equal(
        cropped(photo, 24, whole(24)), chw(Image.open(io.BytesIO(photo)).convert("RGB"))
    )


def test_a_crop_of_the_right_size_is_cut_out() -> None:
    pixels = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    cut = cropped(encoded(pixels), 2, Exactly(Crop(left=3, top=1, width=2, height=2)))
    # Rows 1 and 2, columns 3 and 4; a pixel's first number is 18 a row and 3 a column.
    assert cut.tolist() == [
        [[27, 30], [45, 48]],
        [[28, 31], [46, 49]],
        [[29, 32], [47, 50]],
    ]


def test_nothing_outside_a_crop_is_seen() -> None:
    pixels = noise(40, 50)
    crop = Crop(left=11, top=7, width=21, height=13)
    inside = pixels[7:20, 11:32]
    assert np.array_equal(
        cropped(encoded(pixels), 16, Exactly(crop)),
        cropped(encoded(inside), 16, Exactly(Crop(0, 0, 21, 13))),
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("side", [2, 5])
def test_a_flip_exchanges_left_and_right_of_the_crop(kind: str, side: int) -> None:
    photo, crop = encoded(smooth(10, 12), kind), Crop(left=6, top=3, width=5, height=5)
    straight, flipped = (cropped(photo, side, Exactly(crop, flip)) for flip in (False, True))
    assert np.array_equal(flipped, straight[:, :, ::-1])
    assert not np.array_equal(flipped, straight)


@pytest.mark.parametrize(("width", "height"), [(60, 40), (25, 31), (16, 90)])
def test_resizing_is_bicubic_as_pillows(width: int, height: int) -> None:
    photo = smooth(100, 120)
    crop = Crop(left=9, top=5, width=width, height=height)
    expected = photo.crop((9, 5, 9 + width, 5 + height)).resize((32, 32), Image.Resampling.BICUBIC)
    found = cropped(encoded(photo), 32, Exactly(crop)).astype(int)
    assert np.abs(found - chw(expected)).max() <= 1


@pytest.mark.parametrize(("side", "scale"), [(63, 1), (64, 2), (127, 2), (128, 4), (255, 4)])
def test_a_jpeg_is_decoded_as_small_as_its_crop_allows(side: int, scale: int) -> None:
    photo = encoded(smooth(256, 300), "JPEG", quality=95)
    crop = Crop(left=21, top=1, width=side, height=side)
    with open_image(photo) as image:
        image.draft("RGB", (300 // scale, 256 // scale))
        small = image.convert("RGB")
    left, top, size = 21 // scale, 1 // scale, side // scale
    expected = small.crop((left, top, left + size, top + size)).resize(
        (32, 32), Image.Resampling.BICUBIC
    )
    found = cropped(photo, 32, Exactly(crop)).astype(int)
    assert np.abs(found - chw(expected)).max() <= 1
    box = (scale * left, scale * top, scale * (left + size), scale * (top + size))
    full = Image.open(io.BytesIO(photo)).crop(box).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.abs(found - chw(full)).mean() < 2  # the same part of the same photo


def test_greys_palettes_and_cmyk_become_colours() -> None:
    grey = np.full((4, 4), 77, np.uint8)
    for kind in ("PNG", "JPEG"):
        assert (cropped(encoded(grey, kind), 4, whole(4)) == 77).all()
    palette = Image.new("P", (4, 4))
    palette.putpalette([10, 20, 30])
    assert cropped(encoded(palette), 4, whole(4))[:, 0, 0].tolist() == [10, 20, 30]
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert cropped(encoded(cyan, "JPEG"), 8, whole(8))[:, 4, 4].tolist() == [0, 255, 255]


def test_an_image_in_several_pieces_of_memory_is_read_too() -> None:
    """Pillow keeps 16 MB a piece."""
    pixels = np.zeros((2100, 2100, 3), np.uint8)
    pixels[2000:2064, 2000:2064] = noise(64, 64)
    crop = Exactly(Crop(2000, 2000, 64, 64))
    found = cropped(encoded(pixels, compress_level=1), 64, crop)
    assert np.array_equal(found, chw(noise(64, 64)))


# Colours: bytes, rounded half up and clipped once.


def recoloured(pixels: list[list[int]], **colour: Any) -> list[list[int]]:
    """A row of pixels through the change."""
    row_1CHW = np.array(pixels, dtype=np.uint8).T[None, :, None].copy()
    recolour(row_1CHW, [Colour(**colour)])
    return row_1CHW[0, :, 0].T.tolist()  # type: ignore[no-any-return]


def test_unchanged_colours_keep_every_byte() -> None:
    every = [[n, 255 - n, n // 2] for n in range(256)]
    assert recoloured(every) == every


@pytest.mark.parametrize(
    ("before", "after", "colour"),
    [
        ([[100, 101, 250]], [[120, 121, 255]], {"brightness": 1.2}),
        ([[100, 101, 250]], [[50, 51, 125]], {"brightness": 0.5}),  # 50.5 is 51
        ([[100, 0, 9], [200, 0, 3]], [[125, 0, 8], [175, 0, 5]], {"contrast": 0.5}),
        ([[100, 0, 9], [200, 0, 3]], [[80, 0, 10], [220, 0, 2]], {"contrast": 1.4}),
        ([[255, 0, 0], [0, 0, 255]], [[76, 76, 76], [29, 29, 29]], {"saturation": 0.0}),
        ([[200, 100, 50]], [[227, 87, 17]], {"saturation": 1.4}),  # grey 124.2: 230.3 92.3 ...
        ([[100, 10, 250]], [[126, 0, 255]], {"lighting_C": (0.1, -0.1, 0.1)}),
    ],
)
def test_colours_by_hand(
    before: list[list[int]], after: list[list[int]], colour: dict[str, Any]
) -> None:
    if colour.get("saturation") == 1.4:
        grey = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
        after = [[int(grey + 1.4 * (v - grey) + 0.5) for v in (200, 100, 50)]]
    assert recoloured(before, **colour) == after


def test_what_is_too_bright_on_the_way_is_clipped_at_the_end_only() -> None:
    """200 doubled is 400; half the contrast around the mean of 400 and 0 brings it to 300: 255."""
    colour: dict[str, Any] = {"order": (0, 1, 2, 3), "brightness": 2.0, "contrast": 0.1}
    assert recoloured([[200] * 3, [0] * 3], **colour) == [[220] * 3, [180] * 3]


def test_each_image_has_its_own_colours() -> None:
    images_BCHW = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)[:, :, None, None].copy()
    recolour(images_BCHW, [Colour(brightness=2.0), Colour(lighting_C=(0.2, 0.0, 0.0))])
    assert images_BCHW[:, :, 0, 0].tolist() == [[20, 40, 60], [91, 50, 60]]


# Many photos.


@pytest.fixture
def photos(tmp_path: Path) -> ParquetImages:
    files = [
        encoded(smooth(40 + 3 * i, 60 - 2 * i, seed=i), "JPEG" if i % 2 else "PNG")
        for i in range(9)
    ]
    path = tmp_path / "photos.parquet"
    write_parquet(path, files, [i % 3 for i in range(9)], range(100, 109), "abc", source="a test")
    return ParquetImages(str(path), channels=3, size=24)


def test_a_photo_has_the_same_pixels_in_any_order_and_company(photos: ParquetImages) -> None:
    ids = photos.ids_N
    together, labels_B = read_distorted(photos, ids, seed=3, epoch=2)
    assert together.shape == (9, 3, 24, 24)
    assert labels_B.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    order = [5, 0, 8, 3]
    some, some_labels = read_distorted(photos, ids[order], seed=3, epoch=2)
    assert np.array_equal(some, together[order])
    assert some_labels.tolist() == [2, 0, 2, 0]
    for place, image_id in enumerate(ids):
        alone, _ = read_distorted(photos, [image_id], seed=3, epoch=2)
        assert np.array_equal(alone[0], together[place])


def test_a_photo_looks_different_in_another_epoch_or_with_another_seed(
    photos: ParquetImages,
) -> None:
    first, _ = read_distorted(photos, photos.ids_N, seed=3, epoch=2)
    for seed, epoch in ((3, 3), (4, 2)):
        other, _ = read_distorted(photos, photos.ids_N, seed=seed, epoch=epoch)
        assert (first != other).any(axis=(1, 2, 3)).all()


def test_no_photos_are_an_empty_batch(photos: ParquetImages) -> None:
    none, labels_B = read_distorted(photos, [], seed=3, epoch=2)
    assert none.shape == (0, 3, 24, 24)
    assert labels_B.shape == (0,)


def test_a_photo_read_is_its_crop_recoloured(photos: ParquetImages) -> None:
    drawn = draw_distortion(3, 2, 104)
    expected_1CHW = cropped(encoded(smooth(52, 52, seed=4)), 24, drawn)[None].copy()
    recolour(expected_1CHW, [drawn.colour])
    assert np.array_equal(read_distorted(photos, [104], seed=3, epoch=2)[0], expected_1CHW)


def test_a_photo_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    path = tmp_path / "photos.parquet"
    files = [encoded(smooth(30, 30)), b"no image"]
    write_parquet(path, files, [0, 0], [7, 8], "a", source="a test")
    images = ParquetImages(str(path), channels=3, size=24)
    with pytest.raises(UserError, match=r"Image 8 \(.*row 1\) cannot be decoded \(neither PNG"):
        read_distorted(images, [7, 8], seed=0, epoch=0)
