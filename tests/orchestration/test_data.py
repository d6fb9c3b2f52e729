"""The Parquet reader against pixels, labels and ids that are known without it."""

import hashlib
import io
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from s3ta.errors import UserError
from s3ta_platform import data
from s3ta_platform.data import ParquetImages, read_manifest, resolve, write_parquet
from s3ta_platform.data_files import read_column
from s3ta_platform.image_files import decode

NAMES = ("cat", "dog", "eel")
Pixels = npt.NDArray[np.uint8]


def encoded(pixels: Pixels | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def noise(count: int, height: int = 6, width: int = 5) -> Pixels:
    shape = (count, height, width)
    return np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)


def write_ours(
    path: Path, images: Sequence[bytes], ids: Sequence[int] | None = None, **change: Any
) -> str:
    labels = [i % len(NAMES) for i in range(len(images))]
    rows = {"labels": labels, "ids": range(len(images)) if ids is None else ids}
    write_parquet(path, images, **{**rows, "class_names": NAMES, "source": "a test", **change})
    return str(path)


def write_hugging_face(path: Path, images: Sequence[bytes | None], names: Any = NAMES) -> str:
    column = [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]
    table = pa.table({"image": column, "label": [i % len(NAMES) for i in range(len(images))]})
    label = {"names": list(names or ()), "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": label if names else {"dtype": "int64"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=4)
    return str(path)


def write_table(path: Path, **columns: Any) -> str:
    """A file with our metadata and any columns."""
    table = pa.table(columns).replace_schema_metadata({"s3ta.class_names": json.dumps(NAMES)})
    pq.write_table(table, path)
    return str(path)


def flip_byte(path: Path, column: int) -> None:
    """Change one byte in the middle of the first row group's column."""
    chunk = pq.read_metadata(path).row_group(0).column(column)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 1
    path.write_bytes(content)


# Reading


def test_pixels_labels_and_ids_come_back_exactly(tmp_path: Path) -> None:
    pixels_NHW = noise(7)
    ids = [3, 1, 40, 5, 9, 2, 60]
    images = ParquetImages(
        write_ours(tmp_path / "a.parquet", [encoded(p) for p in pixels_NHW], ids), channels=1
    )
    assert images.ids_N.tolist() == ids
    assert images.labels_N.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert images.shape_CHW == (1, 6, 5)
    images_BCHW, labels_B = images.read(images.ids_N)
    assert np.array_equal(images_BCHW[:, 0], pixels_NHW)
    assert labels_B.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_images_come_in_the_order_asked_for_and_as_often(tmp_path: Path) -> None:
    pixels_NHW = noise(5)
    location = write_ours(tmp_path / "a.parquet", [encoded(p) for p in pixels_NHW], range(10, 15))
    images_BCHW, labels_B = ParquetImages(location, channels=1).read([14, 10, 12, 10])
    assert np.array_equal(images_BCHW[:, 0], pixels_NHW[[4, 0, 2, 0]])
    assert labels_B.tolist() == [1, 0, 2, 0]
    assert images_BCHW.dtype == np.uint8
    assert images_BCHW.flags.c_contiguous
    assert labels_B.dtype == np.int64


def test_no_ids_give_no_images(tmp_path: Path) -> None:
    location = write_ours(tmp_path / "a.parquet", [encoded(noise(1)[0])])
    images_BCHW, labels_B = ParquetImages(location, channels=3).read([])
    assert images_BCHW.shape == (0, 3, 6, 5)
    assert labels_B.shape == (0,)


def test_hugging_face_layout_gives_the_same_with_positions_as_ids(tmp_path: Path) -> None:
    content = [encoded(p) for p in noise(9)]
    (tmp_path / "theirs").mkdir()
    write_hugging_face(tmp_path / "theirs" / "test-00001.parquet", content[6:])
    write_hugging_face(tmp_path / "theirs" / "test-00000.parquet", content[:6])
    theirs = ParquetImages(str(tmp_path / "theirs"), channels=1)
    ours = ParquetImages(write_ours(tmp_path / "a.parquet", content), channels=1)
    assert theirs.manifest.class_names == ours.manifest.class_names == NAMES
    assert theirs.ids_N.tolist() == list(range(9))
    ids = [8, 0, 6, 5, 7]
    assert np.array_equal(theirs.read(ids)[0], ours.read(ids)[0])
    assert theirs.labels_N.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]


def test_a_small_cache_gives_the_same_pixels_and_reads_each_row_group_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_ROWS_PER_GROUP", 3)
    pixels_NHW = noise(11)
    location = write_ours(tmp_path / "a.parquet", [encoded(p) for p in pixels_NHW])
    assert pq.read_metadata(location).num_row_groups == 4
    small = ParquetImages(location, channels=1, cache_bytes=1)
    reads: list[int | None] = []

    def count(file: Any, column: str, group: int | None = None) -> Any:
        reads.append(group)
        return read_column(file, column, group)

    monkeypatch.setattr(data, "read_column", count)
    order = np.random.default_rng(0).permutation(11)
    assert np.array_equal(small.read(order)[0][:, 0], pixels_NHW[order])
    assert sorted(reads, key=str) in ([0, 1, 2, 3], [1, 2, 3])  # the first may still be there
    reads.clear()
    small.read([0, 10, 0])
    assert reads == [0, 3]  # a cache of one row group
    large = ParquetImages(location, channels=1)
    large.read(order)
    reads.clear()
    assert np.array_equal(large.read(order)[0][:, 0], pixels_NHW[order])
    assert reads == []


def test_threads_may_share_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_ROWS_PER_GROUP", 2)
    pixels_NHW = noise(20)
    location = write_ours(tmp_path / "a.parquet", [encoded(p) for p in pixels_NHW])
    images = ParquetImages(location, channels=1, cache_bytes=600)
    orders = [np.random.default_rng(seed).permutation(20) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        for order, (read, _) in zip(orders, pool.map(images.read, orders), strict=True):
            assert np.array_equal(read[:, 0], pixels_NHW[order])


# Decoding


def test_colours_and_greys_convert_exactly() -> None:
    red_green = np.zeros((1, 2, 3), np.uint8)
    red_green[0, 0, 0], red_green[0, 1, 1] = 255, 128
    assert np.array_equal(decode(encoded(red_green), 3, None), red_green.transpose(2, 0, 1))
    grey = np.array([[0, 7, 255]], np.uint8)
    assert np.array_equal(decode(encoded(grey), 3, None), np.stack([grey] * 3))
    as_colours = np.repeat(grey[..., None], 3, axis=2)
    assert np.array_equal(decode(encoded(as_colours), 1, None), grey[None])


def test_palette_transparency_and_cmyk_convert_to_their_colours() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    want = np.array([[[10, 40]], [[20, 50]], [[30, 60]]], np.uint8)
    assert np.array_equal(decode(encoded(palette), 3, None), want)
    assert np.array_equal(decode(encoded(palette, transparency=b"\x00\x80"), 3, None), want)
    clear = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    assert decode(encoded(clear), 3, None)[:, 0, 0].tolist() == [10, 20, 30]
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert decode(encoded(cyan, "JPEG"), 3, None)[:, 4, 4].tolist() == [0, 255, 255]


def test_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    content = encoded(np.full((8, 16), 77, np.uint8), "JPEG", exif=exif)
    assert decode(content, 1, None).shape == (1, 8, 16)


def test_the_centre_is_cropped_after_the_short_side_is_resized() -> None:
    pixels = noise(1, height=8, width=10)[0]  # 8 = round(7 * 256 / 224): nothing to resize
    assert np.array_equal(decode(encoded(pixels), 1, 7)[0], pixels[0:7, 1:8])
    assert np.array_equal(decode(encoded(pixels.T), 1, 7)[0], pixels.T[1:8, 0:7])
    bars = np.repeat(np.array([0, 90, 90, 0], np.uint8), 80)[None].repeat(160, axis=0)
    resized = decode(encoded(bars), 1, 7)[0]  # 160 x 320 -> 8 x 16, of which columns 4..10
    assert resized.shape == (7, 7)
    assert np.all(resized[:, 2:6] == 90)  # the kernel reaches 2 pixels, the edges are at 4 and 12
    assert np.all((resized[:, 0] > 45) & (resized[:, 0] < 90))  # just inside the edge at 4


def test_an_image_of_the_wanted_size_stays_as_it_is() -> None:
    pixels = noise(1, height=28, width=28)[0]
    assert np.array_equal(decode(encoded(pixels), 1, 28)[0], pixels)


# Locations and manifests


def test_a_location_is_a_file_a_folder_a_glob_or_a_sample(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "c.parquet"):
        write_ours(tmp_path / name, [encoded(noise(1)[0])])
    (tmp_path / "notes.txt").write_text("not data")
    a, b, c = (tmp_path / f"{name}.parquet" for name in "abc")
    assert resolve(str(b)) == [b]
    assert resolve(str(tmp_path)) == [a, b, c]
    assert resolve(f"{tmp_path}/[bc].parquet") == [b, c]
    (sample,) = resolve("sample:fashion_mnist/test.parquet")
    assert sample.is_file()


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("nowhere.parquet", "No Parquet file at 'nowhere.parquet'"),
        ("", "No Parquet file at ''"),
        ("empty", "Name a file, a folder with *.parquet files"),
        ("*.parq", "a glob, or a sample"),
        ("sample:cifar.parquet", "There are: sample:fashion_mnist/test.parquet, sample:fashion_mn"),
        ("sample:../../secret", "There is no sample 'sample:../../secret'"),
    ],
)
def test_a_missing_location_is_named_with_what_may_be_named(
    location: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        resolve(location)
    assert said in str(error.value)


def test_the_manifest_changes_with_the_content_and_not_with_the_place(tmp_path: Path) -> None:
    content = [encoded(p) for p in noise(4)]
    first = read_manifest(write_ours(tmp_path / "a.parquet", content))
    assert first.images == 4
    assert first.class_names == NAMES
    assert read_manifest(write_ours(tmp_path / "b.parquet", content)) == first
    changes: list[dict[str, Any]] = [
        {"images": [*content[:3], content[3][:-1] + b"x"]},
        {"images": content, "ids": [0, 1, 2, 4]},
        {"images": content, "labels": [0, 1, 2, 1]},
        {"images": content[::-1], "ids": [3, 2, 1, 0], "labels": [0, 2, 1, 0]},
    ]
    for i, change in enumerate(changes):
        changed = read_manifest(write_ours(tmp_path / f"c{i}.parquet", **change))
        assert changed.digest != first.digest


def test_class_names_may_be_numbers_when_the_caller_says_how_many(tmp_path: Path) -> None:
    location = write_hugging_face(tmp_path / "a.parquet", [encoded(noise(1)[0])], names=None)
    assert read_manifest(location, classes=4).class_names == ("0", "1", "2", "3")
    with pytest.raises(UserError, match=r"a\.parquet names no classes\. Set data\.classes"):
        read_manifest(location)


def test_a_number_of_classes_that_contradicts_the_files_is_refused(tmp_path: Path) -> None:
    location = write_ours(tmp_path / "a.parquet", [encoded(noise(1)[0])])
    assert read_manifest(location, classes=3).class_names == NAMES
    with pytest.raises(UserError, match=r"data\.classes is 4, but .* names 3 classes"):
        read_manifest(location, classes=4)


def test_files_of_two_data_sets_in_one_folder_are_refused(tmp_path: Path) -> None:
    content = [encoded(noise(1)[0])]
    write_ours(tmp_path / "a.parquet", content)
    write_ours(tmp_path / "b.parquet", content, [1], class_names=("x", "y"))
    with pytest.raises(UserError, match=r"a\.parquet and .*b\.parquet name different classes"):
        read_manifest(str(tmp_path))
    (tmp_path / "b.parquet").unlink()
    write_hugging_face(tmp_path / "b.parquet", content)
    with pytest.raises(UserError, match="mix two layouts"):
        ParquetImages(str(tmp_path), channels=1)


# Bad files

Build = Callable[[Path], Any]
GOOD = encoded(noise(1)[0])


def truncated(path: Path) -> None:
    write_ours(path, [GOOD])
    path.write_bytes(path.read_bytes()[:-20])


def damaged_footer(path: Path) -> None:
    write_ours(path, [GOOD])
    content = path.read_bytes()
    length = struct.unpack("<I", content[-8:-4])[0]
    path.write_bytes(content[: -8 - length] + b"\xff" * length + content[-8:])


def damaged_page(column: int) -> Build:
    def build(path: Path) -> None:
        write_ours(path, [encoded(p) for p in noise(3)])
        flip_byte(path, column)

    return build


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda p: p.write_bytes(b""), "is truncated or no Parquet file"),
        (lambda p: p.write_text("version https://example.org\n" * 9), "it lacks the footer"),
        (truncated, "truncated or no Parquet file: it lacks the footer. Copy or import it again."),
        (damaged_footer, "has a damaged Parquet footer"),
        (damaged_page(0), "row group 0 is damaged (could not verify page integrity, CRC"),
        (damaged_page(1), "bad.parquet is damaged (could not verify page integrity, CRC"),
        (lambda p: write_ours(p, []), "holds no images: expected at least one"),
        (lambda p: write_table(p, label=[0], id=[0]), "no column image (it has label, id)"),
        (lambda p: write_table(p, image=[GOOD], id=[0]), "has no column label (it has image, id)"),
        (lambda p: write_table(p, image=[GOOD], label=[0]), "has no column id (it has image, lab"),
        (lambda p: write_table(p, image=["x"], label=[0], id=[0]), "the column image is string, e"),
        (lambda p: write_table(p, image=[GOOD], label=["0"], id=[0]), "column label is string, ex"),
        (lambda p: write_table(p, image=[GOOD], label=[0], id=[0.5]), "the column id is double, e"),
        (
            lambda p: write_table(p, image=[GOOD] * 2, label=[0, None], id=[0, 1]),
            "bad.parquet, row 1: label is missing. Repair or remove this row.",
        ),
        (lambda p: write_hugging_face(p, [None, GOOD]), "row 0) cannot be decoded (no image)"),
        (lambda p: write_ours(p, [b"GIF89a"], [8]), "cannot be decoded (neither PNG nor"),
        (lambda p: write_ours(p, [GOOD[:-30]], [8]), "expected a PNG or JPEG file of 8 bits"),
        (
            lambda p: write_ours(p, [encoded(np.full((4, 4), 999, np.uint16))]),
            "more than 8 bits per channel, mode I;16",
        ),
        (lambda p: write_ours(p, [GOOD], labels=[3]), "row 0) is outside 0..2. Choose a lab"),
        (lambda p: write_ours(p, [GOOD], labels=[-1]), "Label -1 (/"),
        (
            lambda p: write_ours(p, [GOOD] * 3, [4, 5, 4]),
            "bad.parquet, row 2. Ids must be unique: name files that do not overlap.",
        ),
        (
            lambda p: pq.write_table(
                pa.table({"image": [GOOD]}).replace_schema_metadata({"s3ta.format": "2"}), p
            ),
            "has format 2, this version reads 1. Update s3ta.",
        ),
        (
            lambda p: pq.write_table(
                pa.table({"image": [GOOD]}).replace_schema_metadata({"huggingface": "[]"}), p
            ),
            "unreadable class names in its metadata",
        ),
    ],
)
def test_a_bad_file_is_named_with_what_was_expected(
    build: Build, said: str, tmp_path: Path
) -> None:
    build(tmp_path / "bad.parquet")
    with pytest.raises(UserError) as error:
        ParquetImages(str(tmp_path / "bad.parquet"), channels=1)
    assert "bad.parquet" in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_page_of_a_later_row_group_is_refused_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_ROWS_PER_GROUP", 2)
    path = tmp_path / "a.parquet"
    write_ours(path, [encoded(p) for p in noise(4)])
    chunk = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 0x10
    path.write_bytes(content)
    images = ParquetImages(str(path), channels=1)
    images.read([0, 1])
    with pytest.raises(UserError, match=r"a\.parquet, row group 1 is damaged .*CRC"):
        images.read([2])


def test_two_shapes_are_refused_unless_a_size_is_set(tmp_path: Path) -> None:
    content = [encoded(np.full((6, 5), 1, np.uint8)), encoded(np.full((9, 8), 2, np.uint8))]
    location = write_ours(tmp_path / "a.parquet", content, [3, 4])
    images = ParquetImages(location, channels=1)
    with pytest.raises(UserError, match=r"Image 4 .* 9 x 8 pixels, image 3 has 6 x 5") as error:
        images.read([3, 4])
    assert "Set data.image_size" in str(error.value)
    images_BCHW, _ = ParquetImages(location, channels=1, size=4).read([3, 4])
    assert images_BCHW.shape == (2, 1, 4, 4)
    assert images_BCHW[:, 0, 0, 0].tolist() == [1, 2]


@pytest.mark.parametrize("unknown", [-1, 3, 99])
def test_an_unknown_id_is_named(unknown: int, tmp_path: Path) -> None:
    location = write_ours(tmp_path / "a.parquet", [GOOD] * 2, [2, 7])
    with pytest.raises(UserError, match=rf"no image {unknown} in .*: its ids run from 2 to 7"):
        ParquetImages(location, channels=1).read([2, unknown])


# Writing


def test_the_metadata_says_what_the_file_holds(tmp_path: Path) -> None:
    location = write_ours(tmp_path / "a.parquet", [b"one", b"twoo"], [5, 6])
    metadata = pq.read_metadata(location).metadata
    rows = struct.pack("<qqq", 5, 0, 3) + b"one" + struct.pack("<qqq", 6, 1, 4) + b"twoo"
    assert metadata[b"s3ta.content_digest"].decode() == hashlib.sha256(rows).hexdigest()
    assert metadata[b"s3ta.format"] == b"1"
    assert json.loads(metadata[b"s3ta.class_names"]) == list(NAMES)
    assert metadata[b"s3ta.source"] == b"a test"


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("mine")
    with pytest.raises(UserError, match=r"a\.parquet exists and is never overwritten\. Remove it"):
        write_ours(path, [GOOD])
    assert path.read_text() == "mine"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        write_ours(tmp_path / "a.parquet", [GOOD] * 2, [1])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"a\.parquet cannot be written \(.*Name another folder"):
        write_ours(tmp_path / "file" / "a.parquet", [GOOD])


def test_the_reader_does_not_import_torch() -> None:
    code = "import sys, s3ta_platform.data; sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"]
    assert subprocess.run(command, check=False).returncode == 0
