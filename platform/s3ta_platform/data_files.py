"""Parquet files that hold images: where they are, what their footers say, one column of them.

The reader of the images themselves is in data.py, which says which layouts there are.
"""

import glob
import hashlib
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from s3ta.errors import UserError

Integers = npt.NDArray[np.int64]

SAMPLES = Path(__file__).parent / "samples"
"""Data sets that ship with the package."""

FORMAT = "1"
"""Version of our layout; files of other writers carry none."""

_AGAIN = "Copy or import it again."


@dataclass(frozen=True)
class Manifest:
    """What a data set is, known without reading its pixels."""

    digest: str
    """Hex SHA-256 over each file's row count and footer, in order; paths do not enter.

    A file of `write_parquet` has the digest of all its ids, labels and encoded images in its
    footer, so another image gives another digest. Other writers' footers show the number of rows,
    the sizes and offsets of the row groups, often the extremes of a column: an image replaced by
    one of the same size may not show. Bytes changed in place, behind the footer, never show here;
    reading refuses them by the page checksums, which other writers' files may lack.
    """
    images: int
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class ImageFile:
    path: Path
    footer: bytes
    metadata: Any
    """pyarrow.parquet.FileMetaData."""


class NoDataError(UserError):
    """The data set is not there."""


def resolve(location: str) -> list[Path]:
    """Parquet files at a file, a folder, a glob, or `sample:NAME`, sorted by name; at least one."""
    if location.startswith("sample:"):
        return [_sample(location)]
    path = Path(location).expanduser()
    if location and path.is_dir():
        found = sorted(path.glob("*.parquet"))
    elif any(character in location for character in "*?[") and not path.is_file():
        found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
    else:
        found = [path] if path.is_file() else []
    if not found:
        raise NoDataError(
            f"No Parquet file at {location!r}. Name a file, a folder with *.parquet files, a glob, "
            f"or a sample that ships with the package: {', '.join(_samples())}. "
            "`s3ta data import` makes datasets/fashion_mnist/ and datasets/imagenet_a/."
        )
    return found


def _samples() -> list[str]:
    names = (path.relative_to(SAMPLES).as_posix() for path in SAMPLES.rglob("*.parquet"))
    return [f"sample:{name}" for name in sorted(names)]


def _sample(location: str) -> Path:
    known = _samples()
    if location not in known:
        raise UserError(f"There is no sample {location!r}. There are: {', '.join(known)}.")
    return SAMPLES / location.removeprefix("sample:")


def read_manifest(location: str, classes: int | None = None) -> Manifest:
    """Describe the data set from its footers only, in milliseconds.

    `classes` is needed where the files name no classes; where they do, it must agree.
    """
    return manifest_of(open_files(location), classes)


def open_files(location: str) -> list[ImageFile]:
    return [_open_file(path) for path in resolve(location)]


def _open_file(path: Path) -> ImageFile:
    footer = _footer(path)
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} has a damaged Parquet footer ({first_line(error)}). {_AGAIN}"
        ) from error
    version = (
        (metadata.metadata or {}).get(b"s3ta.format", FORMAT.encode()).decode(errors="replace")
    )
    if version != FORMAT:
        raise UserError(f"{path} has format {version}, this version reads {FORMAT}. Update s3ta.")
    return ImageFile(path, footer, metadata)


def _footer(path: Path) -> bytes:
    """The Thrift bytes at the end, before their length and the magic word."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 8, 0))
            tail = file.read(8)
            if size >= 12 and tail[4:] == b"PAR1":
                length = struct.unpack("<I", tail[:4])[0]
                if length + 12 <= size:
                    file.seek(size - 8 - length)
                    return file.read(length)
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}). Make it readable.") from error
    raise UserError(f"{path} is truncated or no Parquet file: it lacks the footer. {_AGAIN}")


def first_line(error: BaseException) -> str:
    """The first line of what a library says."""
    return (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__


def manifest_of(files: Sequence[ImageFile], classes: int | None) -> Manifest:
    digest = hashlib.sha256()
    for file in files:
        digest.update(struct.pack("<qq", file.metadata.num_rows, len(file.footer)) + file.footer)
    images = sum(file.metadata.num_rows for file in files)
    if not images:
        raise UserError(f"{files[0].path} holds no images: expected at least one. {_AGAIN}")
    return Manifest(digest.hexdigest(), images, _class_names(files, classes))


def _class_names(files: Sequence[ImageFile], classes: int | None) -> tuple[str, ...]:
    first, named = files[0].path, _names_in(files[0])
    for file in files[1:]:
        if _names_in(file) != named:
            raise UserError(
                f"{first} and {file.path} name different classes: they are not one data set. "
                "Put each data set into a folder of its own."
            )
    if named is None and classes is None:
        raise UserError(f"{first} names no classes. Set data.classes to how many there are.")
    if named is not None and classes not in (None, len(named)):
        raise UserError(
            f"data.classes is {classes}, but {first} names {len(named)} classes. "
            f"Set data.classes to {len(named)} or leave it out."
        )
    return named or tuple(str(label) for label in range(classes or 0))


def _names_in(file: ImageFile) -> tuple[str, ...] | None:
    """Class names in our metadata or in Hugging Face's; None if there are none."""
    metadata = file.metadata.metadata or {}
    try:
        if b"s3ta.class_names" in metadata:
            names = json.loads(metadata[b"s3ta.class_names"])
        elif b"huggingface" in metadata:
            label = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]
            names = label["names"] if label.get("_type") == "ClassLabel" else None
        else:
            names = None
        return tuple(map(str, names)) if names else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file.path} has unreadable class names in its metadata: expected a JSON list of "
            f"names, or Hugging Face's features with a ClassLabel named label. {_AGAIN}"
        ) from error


def row_groups(file: ImageFile) -> range:
    return range(file.metadata.num_row_groups)


def image_column(file: ImageFile) -> str:
    """`image` in our layout, `image.bytes` in Hugging Face's."""
    kind = _type(file, "image")
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return "image.bytes"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "image"
    raise UserError(
        f"{file.path}: the column image is {kind}, expected binary or struct<bytes, path>. "
        "Store each image as the bytes of a PNG or JPEG file."
    )


def _type(file: ImageFile, column: str) -> Any:
    try:
        schema = file.metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{file.path} has a damaged schema ({first_line(error)}). {_AGAIN}"
        ) from error
    if column not in schema.names:
        raise UserError(
            f"{file.path} has no column {column} (it has {', '.join(schema.names)}): expected "
            "image, label and id, or Hugging Face's image and label. Name another file."
        )
    return schema.field(column).type


def read_integers(file: ImageFile, column: str) -> Integers:
    kind = _type(file, column)
    if not pa.types.is_integer(kind):
        raise UserError(
            f"{file.path}: the column {column} is {kind}, expected whole numbers. "
            "Store it as int64."
        )
    values = read_column(file, column)
    if values.null_count:
        row = values.is_null().to_pylist().index(True)
        raise UserError(f"{file.path}, row {row}: {column} is missing. Repair or remove this row.")
    integers: Integers = values.to_numpy().astype(np.int64)
    return integers


def read_column(file: ImageFile, column: str, group: int | None = None) -> Any:
    """One column, of one row group or of all, as a ChunkedArray; page checksums are verified."""
    try:
        with pq.ParquetFile(
            file.path, metadata=file.metadata, page_checksum_verification=True
        ) as reader:
            groups = row_groups(file) if group is None else [group]
            values = reader.read_row_groups(groups, columns=[column]).column(0)
            return values.flatten()[0] if column == "image.bytes" else values
    except (pa.ArrowException, OSError) as error:
        place = "" if group is None else f", row group {group}"
        raise UserError(f"{file.path}{place} is damaged ({first_line(error)}). {_AGAIN}") from error
