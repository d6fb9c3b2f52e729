"""Image data sets as Parquet: read by image id, describe cheaply, write. Imports no torch.

Legend: N images of a data set, B images asked for, C channels, H W pixels.

Two layouts are read. Images are PNG or JPEG files, labels whole numbers from 0.
- ours: `image: binary`, `label: integer`, `id: integer`.
- Hugging Face's, in which ImageNet is published: `image: struct<bytes, path>`, `label: integer`. An
  image's id is its row's position over all files, sorted by name.
"""

import hashlib
import itertools
import json
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from s3ta.errors import UserError
from s3ta_platform.data_files import (
    FORMAT,
    Integers,
    Manifest,
    first_line,
    image_column,
    manifest_of,
    open_files,
    read_column,
    read_integers,
    read_manifest,
    resolve,
    row_groups,
)
from s3ta_platform.image_files import Pixels, decode

__all__ = [
    "Manifest",
    "ParquetImages",
    "read_manifest",
    "resolve",
    "write_parquet",
]

_ROWS_PER_GROUP = 1000

Pass = Callable[[Any, int], Any]
"""What has become of an encoded image (None: there is none), and the image's id -> one step further
towards pixels CHW."""


class ParquetImages:
    """The images of one data set, decoded on demand, by image id and in any order.

    `ids_N` and `labels_N` are in the files' order. Without `size` all images must have one shape.
    With it they get the usual preprocessing for evaluation: short side to round(size * 256 / 224),
    bicubic, then the centre; an image that is size x size already stays as it is. At most
    `cache_bytes` of encoded row groups are kept, or one row group if it is larger.
    For one process; several threads may read.
    """

    def __init__(
        self,
        location: str,
        *,
        channels: Literal[1, 3],
        size: int | None = None,
        classes: int | None = None,
        cache_bytes: int = 256 * 2**20,
    ) -> None:
        self._location, self._files = location, open_files(location)
        self._channels, self._size, self._cache_bytes = channels, size, cache_bytes
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._columns = [image_column(file) for file in self._files]
        self._groups = [(f, g) for f, file in enumerate(self._files) for g in row_groups(file)]
        sizes = [self._files[f].metadata.row_group(g).num_rows for f, g in self._groups]
        self._starts = np.cumsum([0, *sizes])
        self._file_starts = np.cumsum([0, *(file.metadata.num_rows for file in self._files)])
        self.manifest = manifest_of(self._files, classes)
        self.labels_N: Integers = self._labels()
        self.ids_N: Integers = self._ids()
        self._order = np.argsort(self.ids_N, kind="stable")
        self._sorted_ids = self.ids_N[self._order]
        self._require_unique()
        self.shape_CHW = (channels, size, size) if size else self._first_shape()
        """Of every image."""

    def read(
        self, ids: Sequence[int] | Integers, passes: Sequence[Pass] = ()
    ) -> tuple[Pixels, Integers]:
        """`images_BCHW` (uint8, C-contiguous) and `labels_B`, in the order of the ids asked for.

        `passes` make pixels of the files in their own way, in the shape of all images. Each is done
        with all files before the next begins: so it finds its code in the processor's caches.
        """
        rows_B = self._rows(np.asarray(ids, dtype=np.int64).reshape(-1))
        images_BCHW = np.empty((len(rows_B), *self.shape_CHW), dtype=np.uint8)
        # In the files' order, so that each row group is read once however small the cache is.
        order_B = np.argsort(rows_B, kind="stable")
        *first, last = passes or (self._decode,)
        values: Iterable[Any] = map(self._encoded, rows_B[order_B])
        for treat in first:
            values = [self._done(treat, *at) for at in zip(values, rows_B[order_B], strict=True)]
        for value, place in zip(values, order_B, strict=True):
            image_CHW = self._done(last, value, rows_B[place])
            if image_CHW.shape != self.shape_CHW:
                raise self._unequal(rows_B[place], image_CHW)
            images_BCHW[place] = image_CHW
        return images_BCHW, self.labels_N[rows_B]

    def groups_of(self, ids: Sequence[int] | Integers) -> Integers:
        """The row group of each image, numbered over all files: what is read as one piece."""
        rows_B = self._rows(np.asarray(ids, dtype=np.int64).reshape(-1))
        groups_B: Integers = np.searchsorted(self._starts, rows_B, side="right") - 1
        return groups_B

    def _rows(self, ids_B: Integers) -> Integers:
        places_B = np.searchsorted(self._sorted_ids, ids_B).clip(max=len(self._sorted_ids) - 1)
        unknown = np.flatnonzero(self._sorted_ids[places_B] != ids_B)
        if len(unknown):
            raise UserError(
                f"There is no image {ids_B[unknown[0]]} in {self._location}: its ids run from "
                f"{self._sorted_ids[0]} to {self._sorted_ids[-1]}. Ask for one of these."
            )
        rows_B: Integers = self._order[places_B]
        return rows_B

    def _encoded(self, row: int) -> bytes | None:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        encoded: bytes | None = self._row_group(group)[int(row - self._starts[group])].as_py()
        return encoded

    def _decode(self, encoded: bytes | None, _id: int) -> Pixels:
        return decode(encoded, self._channels, self._size)

    def _first_shape(self) -> tuple[int, ...]:
        return self._done(self._decode, self._encoded(0), 0).shape  # type: ignore[no-any-return]

    def _done(self, treat: Pass, value: Any, row: int) -> Any:
        try:
            return treat(value, int(self.ids_N[row]))
        except Exception as error:  # Pillow's readers raise half a dozen types for bad bytes
            raise UserError(
                f"Image {self.ids_N[row]} ({self._where(row)}) cannot be decoded "
                f"({first_line(error)}): expected a PNG or JPEG file of 8 bits per channel. "
                "Repair or remove this row."
            ) from error

    def _unequal(self, row: int, image_CHW: Pixels) -> UserError:
        (_, h, w), (_, first_h, first_w) = image_CHW.shape, self.shape_CHW
        return UserError(
            f"Image {self.ids_N[row]} ({self._where(row)}) has {h} x {w} pixels, image "
            f"{self.ids_N[0]} has {first_h} x {first_w}: all must have one shape. "
            "Set data.image_size, to which every image is then resized and cropped."
        )

    def _row_group(self, group: int) -> Any:
        """The encoded images of one row group, from the cache if they are there."""
        with self._lock:
            if group not in self._cache:
                f, index = self._groups[group]
                self._cache[group] = read_column(self._files[f], self._columns[f], index)
                kept = sum(column.nbytes for column in self._cache.values())
                while kept > self._cache_bytes and len(self._cache) > 1:
                    kept -= self._cache.popitem(last=False)[1].nbytes
            self._cache.move_to_end(group)
            return self._cache[group]

    def _labels(self) -> Integers:
        labels_N = np.concatenate([read_integers(file, "label") for file in self._files])
        classes = len(self.manifest.class_names)
        bad = np.flatnonzero((labels_N < 0) | (labels_N >= classes))
        if len(bad):
            raise UserError(
                f"Label {labels_N[bad[0]]} ({self._where(bad[0])}) is outside 0..{classes - 1}. "
                "Choose a labelled split (-1 often means unlabelled) or correct data.classes."
            )
        return labels_N

    def _ids(self) -> Integers:
        if len(set(self._columns)) > 1:
            raise UserError(
                f"The files of {self._location} mix two layouts of the column image: "
                "binary and struct<bytes, path>. Put each data set into a folder of its own."
            )
        if self._columns[0] == "image.bytes":
            return np.arange(self.manifest.images, dtype=np.int64)
        return np.concatenate([read_integers(file, "id") for file in self._files])

    def _require_unique(self) -> None:
        twice = np.flatnonzero(self._sorted_ids[1:] == self._sorted_ids[:-1])
        if len(twice):
            first, second = self._order[twice[0]], self._order[twice[0] + 1]
            raise UserError(
                f"Image id {self.ids_N[first]} occurs twice: {self._where(first)} and "
                f"{self._where(second)}. Ids must be unique: name files that do not overlap."
            )

    def _where(self, row: int) -> str:
        f = int(np.searchsorted(self._file_starts, row, side="right")) - 1
        return f"{self._files[f].path}, row {row - self._file_starts[f]}"


def write_parquet(
    path: Path,
    images: Iterable[bytes],
    labels: Iterable[int],
    ids: Iterable[int],
    class_names: Sequence[str],
    *,
    source: str,
) -> None:
    """Write a data set of encoded images in our layout, all or nothing; never over a file.

    `source` says where the images come from and under which licence.
    """
    if path.exists():
        raise UserError(
            f"{path} exists and is never overwritten. Remove it or name another folder."
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            metadata = {"s3ta.class_names": json.dumps(list(class_names)), "s3ta.source": source}
            _write(temporary, zip(images, labels, ids, strict=True), metadata)
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise UserError(f"{path} cannot be written ({reason}). Name another folder.") from error


def _write(path: Path, rows: Iterator[tuple[bytes, int, int]], metadata: dict[str, str]) -> None:
    schema = pa.schema([("image", pa.binary()), ("label", pa.int32()), ("id", pa.int64())])
    options = {"compression": "zstd", "write_page_checksum": True, "use_dictionary": False}
    digest = hashlib.sha256()
    with path.open("xb") as file:
        with pq.ParquetWriter(file, schema, write_statistics=["label", "id"], **options) as writer:
            while group := list(itertools.islice(rows, _ROWS_PER_GROUP)):
                for image, label, i in group:
                    digest.update(struct.pack("<qqq", i, label, len(image)) + image)
                columns = [list(column) for column in zip(*group, strict=True)]
                writer.write_table(pa.table(columns, schema=schema))
            writer.add_key_value_metadata(
                {"s3ta.format": FORMAT, **metadata, "s3ta.content_digest": digest.hexdigest()}
            )
        file.flush()
        os.fsync(file.fileno())
