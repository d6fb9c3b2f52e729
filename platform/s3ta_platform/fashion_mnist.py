"""Fashion-MNIST from its published IDX files to Parquet: the full set, and the sample that ships.

Legend: N images, H W pixels. Image ids are unique across both splits: training images come first.
"""

import hashlib
import http.client
import io
import struct
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from s3ta.errors import UserError
from s3ta_platform.data import write_parquet

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SOURCE = "Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist, (c) 2017 Zalando SE, MIT"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
PUBLIC_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

# Of the unpacked content, which is the same wherever the files come from: Debian packs them anew.
IDX_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

_MAX_BYTES = 64 * 2**20  # The largest file has 47 MB unpacked: nothing bigger is taken into memory.
_CHUNK = 2**18

Progress = Callable[[str, int, int], None]
"""Called with a file's name, how many bytes or images of it are done, of how many (0: unknown)."""
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Split:
    images_NHW: Bytes
    labels_N: Bytes
    first_id: int

    def __len__(self) -> int:
        return len(self.labels_N)


def import_fashion_mnist(
    source: str | None,
    destination: Path,
    progress: Progress | None = None,
    *,
    digests: Mapping[str, str] = IDX_SHA256,
) -> list[Path]:
    """Write train.parquet and test.parquet, both or neither, into the folder `destination`.

    `source` is a folder with the four IDX files (plain or .gz), the http address of such a folder,
    or None: Debian's package `dataset-fashion-mnist` if it is installed, else the public address.
    `digests` are the SHA-256 of the unpacked files.
    """
    paths = _free(destination)
    splits = _load(source, progress or _silent, digests)
    chosen = {name: np.arange(len(split)) for name, split in splits.items()}
    return _write(splits, chosen, paths, progress or _silent)


def make_sample(
    source: str | None,
    destination: Path,
    *,
    train_per_class: int = 1000,
    test_per_class: int = 200,
    digests: Mapping[str, str] = IDX_SHA256,
) -> list[Path]:
    """Write the first images of each class, in the original order and with the ids of the full set.

    `make_sample(None, SAMPLES / "fashion_mnist")` made the sample in this package. The same images
    always result. The bytes of the PNG files, and with them the digest, may differ between versions
    of Pillow and its zlib.
    """
    paths = _free(destination)
    splits = _load(source, _silent, digests)
    counts = {"train": train_per_class, "test": test_per_class}
    chosen = {name: first_per_class(splits[name].labels_N, n) for name, n in counts.items()}
    return _write(splits, chosen, paths, _silent)


def first_per_class(labels_N: Bytes, count: int) -> npt.NDArray[np.intp]:
    """Rows of the first `count` images of each class, ascending."""
    rows = [np.flatnonzero(labels_N == label)[:count] for label in range(len(CLASS_NAMES))]
    return np.sort(np.concatenate(rows))


def _silent(name: str, done: int, total: int) -> None:
    pass


def _free(destination: Path) -> dict[str, Path]:
    """The paths to write, refused before any work if one of them exists."""
    paths = {name: destination / f"{name}.parquet" for name in ("train", "test")}
    for path in paths.values():
        if path.exists():
            raise UserError(
                f"{path} exists and is never overwritten. Remove it or name another folder."
            )
    return paths


def _load(source: str | None, progress: Progress, digests: Mapping[str, str]) -> dict[str, _Split]:
    if source is None:
        source = str(DEBIAN_FOLDER) if DEBIAN_FOLDER.is_dir() else PUBLIC_URL
    idx = {name: _idx(source, name, progress, digest) for name, digest in digests.items()}
    train = _split(source, idx, "train", 0)
    return {"train": train, "test": _split(source, idx, "t10k", len(train))}


def _split(source: str, idx: Mapping[str, Bytes], prefix: str, first_id: int) -> _Split:
    images, labels = idx[f"{prefix}-images-idx3-ubyte"], idx[f"{prefix}-labels-idx1-ubyte"]
    if len(images) != len(labels) or labels.max(initial=0) >= len(CLASS_NAMES):
        raise UserError(
            f"{source} has {len(images)} {prefix} images and {len(labels)} labels up to "
            f"{labels.max(initial=0)}: expected as many of both, and labels 0..9. "
            "Choose another source."
        )
    return _Split(images, labels, first_id)


def _idx(source: str, name: str, progress: Progress, digest: str) -> Bytes:
    """One file's array, its content proved by its digest."""
    if source.startswith(("http://", "https://")):
        place = f"{source.rstrip('/')}/{name}.gz"
        content = _unpacked(place, _download(place, name, progress))
    else:
        path = _find(source, name)
        place, content = str(path), _unpacked(str(path), _bytes_of(path))
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise UserError(
            f"{place} is not Fashion-MNIST's {name}: its content has SHA-256 {found}, expected "
            f"{digest}. It is damaged or another data set (MNIST's files have the same names): "
            "fetch it again or choose another source."
        )
    return parse_idx(place, content)


def _find(folder: str, name: str) -> Path:
    for path in (Path(folder).expanduser() / f"{name}.gz", Path(folder).expanduser() / name):
        if path.is_file():
            return path
    raise UserError(
        f"There is no {name} or {name}.gz in {folder!r}. Name a folder with Fashion-MNIST's four "
        "IDX files or an http address, or install Debian's package dataset-fashion-mnist."
    )


def _bytes_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Make it readable.") from error


def _download(url: str, name: str, progress: Progress) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            total, content = int(response.headers.get("Content-Length") or 0), bytearray()
            while (chunk := response.read(_CHUNK)) and len(content) <= _MAX_BYTES:
                content += chunk
                progress(name, len(content), total)
            return bytes(content)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise UserError(
            f"{url} cannot be downloaded ({error}). Check the address and the connection, install "
            "Debian's package dataset-fashion-mnist, or name a folder with the four IDX files."
        ) from error


def _unpacked(place: str, content: bytes) -> bytes:
    """The content of a gzip file, or a plain file as it is; at most _MAX_BYTES."""
    if content.startswith(b"\x1f\x8b"):
        unpack = zlib.decompressobj(wbits=31)
        with suppress(zlib.error):  # damaged: what follows refuses it by its digest
            content = unpack.decompress(content, _MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise UserError(
            f"{place} has more than {_MAX_BYTES} bytes: it is no file of Fashion-MNIST. "
            "Choose another source."
        )
    return content


def parse_idx(place: str, content: bytes) -> Bytes:
    """The array in an IDX file of bytes; `place` names it in errors."""
    dimensions = content[3] if len(content) > 4 and content[:3] == b"\0\0\x08" else 0
    header = 4 + 4 * dimensions
    if dimensions in (1, 3) and len(content) >= header:
        shape = struct.unpack(f">{dimensions}I", content[4:header])
        if header + int(np.prod(shape, dtype=object)) == len(content):
            return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
    raise UserError(
        f"{place} is no whole IDX file of bytes in 1 or 3 dimensions (it starts with "
        f"{content[:16].hex(' ')} and has {len(content)} bytes). Fetch it again."
    )


def _write(
    splits: Mapping[str, _Split],
    chosen: Mapping[str, npt.NDArray[np.intp]],
    paths: Mapping[str, Path],
    progress: Progress,
) -> list[Path]:
    """Both files are whole before the first gets its name."""
    folder = paths["train"].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".import-", dir=folder) as temporary:
            for name, split in splits.items():
                rows = chosen[name]
                images = _encoded(split.images_NHW[rows], paths[name].name, progress)
                labels, ids = split.labels_N[rows].tolist(), (rows + split.first_id).tolist()
                part = Path(temporary) / paths[name].name
                write_parquet(part, images, labels, ids, CLASS_NAMES, source=SOURCE)
            for path in paths.values():
                (Path(temporary) / path.name).rename(path)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}). Name another folder."
        ) from error
    return list(paths.values())


def _encoded(images_NHW: Bytes, name: str, progress: Progress) -> Iterator[bytes]:
    for done, image_HW in enumerate(images_NHW, start=1):
        file = io.BytesIO()
        Image.fromarray(image_HW).save(file, "PNG", optimize=True)
        yield file.getvalue()
        if done % 1000 == 0 or done == len(images_NHW):
            progress(name, done, len(images_NHW))
