"""Fashion-MNIST's import from tiny IDX files made here, and the sample that ships."""

import gzip
import hashlib
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from s3ta.errors import UserError
from s3ta_platform import fashion_mnist
from s3ta_platform.data import ParquetImages
from s3ta_platform.fashion_mnist import IDX_SHA256, import_fashion_mnist, make_sample

SAMPLE = "sample:fashion_mnist"
NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
TRAIN_IMAGES = "train-images-idx3-ubyte"
Bytes = npt.NDArray[np.uint8]


def idx(array: Bytes) -> bytes:
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


def pictures(count: int) -> tuple[Bytes, Bytes]:
    """Images of noise, labels 0, 1, ..., 9, 0, 1, ..."""
    images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return images, (np.arange(count) % 10).astype(np.uint8)


def contents(train: int = 30, test: int = 20) -> dict[str, bytes]:
    found = {}
    for prefix, count in (("train", train), ("t10k", test)):
        images, labels = pictures(count)
        found[f"{prefix}-images-idx3-ubyte"] = idx(images)
        found[f"{prefix}-labels-idx1-ubyte"] = idx(labels)
    return found


def digests_of(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


DIGESTS = digests_of(contents())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """30 training and 20 test images as four .gz files."""
    path = tmp_path / "idx"
    path.mkdir()
    for name, content in contents().items():
        (path / f"{name}.gz").write_bytes(gzip.compress(content))
    return path


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        pass


@pytest.fixture
def url(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The folder, served on loopback."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def check_import(paths: list[Path]) -> None:
    """The files hold what `contents` made."""
    for path, name, first_id in zip(paths, ("train", "test"), (0, 30), strict=True):
        images_NHW, labels_N = pictures(30 if name == "train" else 20)
        reader = ParquetImages(str(path), channels=1)
        assert path.name == f"{name}.parquet"
        assert reader.ids_N.tolist() == list(range(first_id, first_id + len(labels_N)))
        assert reader.manifest.class_names == NAMES
        images_BCHW, read_labels_B = reader.read(reader.ids_N)
        assert np.array_equal(images_BCHW[:, 0], images_NHW)
        assert np.array_equal(read_labels_B, labels_N)


# Importing


def test_a_folder_of_packed_files_is_imported_exactly(folder: Path, tmp_path: Path) -> None:
    destination = tmp_path / "new" / "out"
    check_import(import_fashion_mnist(str(folder), destination, digests=DIGESTS))
    assert sorted(p.name for p in destination.iterdir()) == ["test.parquet", "train.parquet"]


def test_plain_files_give_the_same_as_packed_ones(tmp_path: Path) -> None:
    for name, content in contents().items():
        (tmp_path / name).write_bytes(content)
    check_import(import_fashion_mnist(str(tmp_path), tmp_path / "out", digests=DIGESTS))


def test_a_download_is_imported_exactly_and_tells_its_progress(
    url: str, folder: Path, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    paths = import_fashion_mnist(
        f"{url}/", tmp_path / "out", lambda *args: told.append(args), digests=DIGESTS
    )
    check_import(paths)
    size = (folder / f"{TRAIN_IMAGES}.gz").stat().st_size
    assert told[0] == (TRAIN_IMAGES, size, size)
    assert told[-2:] == [("train.parquet", 30, 30), ("test.parquet", 20, 20)]


def test_without_a_source_debian_comes_before_the_public_address(
    url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", folder)
    monkeypatch.setattr(fashion_mnist, "PUBLIC_URL", "http://127.0.0.1:9/")
    check_import(import_fashion_mnist(None, tmp_path / "a", digests=DIGESTS))
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "not installed")
    monkeypatch.setattr(fashion_mnist, "PUBLIC_URL", url)
    check_import(import_fashion_mnist(None, tmp_path / "b", digests=DIGESTS))


def test_the_pinned_digests_fit_debians_files_where_these_are_installed() -> None:
    assert set(IDX_SHA256) == set(DIGESTS)
    for name, digest in IDX_SHA256.items():
        path = fashion_mnist.DEBIAN_FOLDER / f"{name}.gz"
        content = gzip.decompress(path.read_bytes()) if path.exists() else None
        assert content is None or hashlib.sha256(content).hexdigest() == digest


# Refusing

Spoil = Callable[[Path], Any]


def changed_content(folder: Path) -> None:
    content = bytearray(contents()[TRAIN_IMAGES])
    content[-1] ^= 1
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(content))


def cut_short(folder: Path) -> None:
    path = folder / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("over_http", [False, True])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (changed_content, ["its content has SHA-256"]),
        (cut_short, ["It is damaged or another data set", "fetch it again"]),
        (
            lambda f: (f / f"{TRAIN_IMAGES}.gz").write_text("<html>Sign in</html>"),
            ["expected " + DIGESTS[TRAIN_IMAGES]],
        ),
        (
            lambda f: (f / f"{TRAIN_IMAGES}.gz").unlink(),
            [f"{TRAIN_IMAGES}.gz", "install Debian's package dataset-fashion-mnist"],
        ),
    ],
)
def test_a_bad_source_is_refused_with_the_remedy_and_leaves_nothing(
    spoil: Spoil, said: list[str], over_http: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url, folder = request.getfixturevalue("url"), request.getfixturevalue("folder")
    spoil(folder)
    with pytest.raises(UserError) as error:
        import_fashion_mnist(url if over_http else str(folder), tmp_path / "out", digests=DIGESTS)
    for part in [*said, TRAIN_IMAGES, url if over_http else str(folder)]:
        assert part in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_unreachable_host_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        import_fashion_mnist("http://127.0.0.1:9", tmp_path / "out", digests=DIGESTS)
    assert f"http://127.0.0.1:9/{TRAIN_IMAGES}.gz cannot be downloaded" in str(error.value)
    assert "install Debian's package dataset-fashion-mnist, or name a folder" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_unpacks_to_too_much_is_not_taken_into_memory(
    folder: Path, tmp_path: Path
) -> None:
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(bytes(65 * 2**20), 1))
    with pytest.raises(UserError, match="more than 67108864 bytes: it is no file of Fashion-MNIST"):
        import_fashion_mnist(str(folder), tmp_path / "out", digests=DIGESTS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        idx(np.zeros((2, 3, 4), np.uint8))[:-1],
        idx(np.zeros((2, 3, 4), np.uint8)) + b"\0",
        b"\0\0\x0d" + idx(np.zeros(4, np.uint8))[3:],  # four-byte floats
        idx(np.zeros((2, 2), np.uint8)),
        bytes([0, 0, 8, 3]) + b"\xff" * 12,
    ],
)
def test_a_bad_idx_header_is_refused(content: bytes, folder: Path, tmp_path: Path) -> None:
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(content))
    digests = {**DIGESTS, TRAIN_IMAGES: hashlib.sha256(content).hexdigest()}
    with pytest.raises(UserError, match=rf"no whole IDX file .* {len(content)} bytes\)\. Fetch"):
        import_fashion_mnist(str(folder), tmp_path / "out", digests=digests)


def test_more_images_than_labels_are_refused(tmp_path: Path) -> None:
    files = contents()
    files[TRAIN_IMAGES] = idx(pictures(31)[0])
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="31 train images and 30 labels up to 9"):
        import_fashion_mnist(str(tmp_path), tmp_path / "out", digests=digests_of(files))


def test_nothing_is_overwritten_and_nothing_is_read_before_that_is_known(tmp_path: Path) -> None:
    (tmp_path / "test.parquet").write_text("mine")
    with pytest.raises(UserError, match=r"test\.parquet exists and is never overwritten"):
        import_fashion_mnist("nowhere", tmp_path, digests=DIGESTS)
    assert [p.name for p in tmp_path.iterdir()] == ["test.parquet"]


def test_a_failure_while_writing_leaves_neither_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, done: int, total: int) -> None:
        if name == "test.parquet":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_fashion_mnist(str(folder), tmp_path / "out", fail, digests=DIGESTS)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_destination_that_is_a_file_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(UserError, match=r"out cannot be written \(File exists\)\. Name another"):
        import_fashion_mnist(str(folder), tmp_path / "out", digests=DIGESTS)


# The sample


def test_a_sample_has_the_first_of_each_class_with_their_ids_and_is_reproducible(
    folder: Path, tmp_path: Path
) -> None:
    made = [
        make_sample(
            str(folder), tmp_path / name, train_per_class=2, test_per_class=1, digests=DIGESTS
        )
        for name in ("a", "b")
    ]
    train, test = (ParquetImages(str(path), channels=1) for path in made[0])
    assert train.ids_N.tolist() == list(range(20))  # of 30: three of each class, two are taken
    assert test.ids_N.tolist() == list(range(30, 40))
    assert np.array_equal(train.read([13])[0][0, 0], pictures(30)[0][13])
    assert np.array_equal(test.read([34])[0][0, 0], pictures(20)[0][4])
    for first, second in zip(*made, strict=True):
        contents_ = [pq.read_metadata(p).metadata[b"s3ta.content_digest"] for p in (first, second)]
        assert contents_[0] == contents_[1]


@pytest.mark.parametrize(
    ("name", "per_class", "pixels", "digest", "ids"),
    [
        (
            "train",
            1000,
            573133949,
            "e1427044c614fabc29feeff0f27e6b68f88a9ee2f2cfe7d783b9157159864883",
            (0, 10647, 50033432),
        ),
        (
            "test",
            200,
            114072606,
            "96315b1732ab731e68b8def3c284f34b605f7deb7a61e683c7d786265c827c83",
            (60000, 62087, 122004141),
        ),
    ],
)
def test_the_shipped_sample_is_the_published_images(
    name: str, per_class: int, pixels: int, digest: str, ids: tuple[int, int, int]
) -> None:
    """The numbers were taken from the published IDX files by ten lines without this package."""
    images = ParquetImages(f"{SAMPLE}/{name}.parquet", channels=1)
    assert images.manifest.class_names == NAMES
    assert np.bincount(images.labels_N).tolist() == [per_class] * 10
    assert (images.ids_N[0], images.ids_N[-1], images.ids_N.sum()) == ids
    images_BCHW, _ = images.read(images.ids_N)
    assert images_BCHW.shape == (per_class * 10, 1, 28, 28)
    assert images_BCHW.sum() == pixels
    assert hashlib.sha256(images_BCHW.tobytes()).hexdigest() == digest


def test_the_samples_two_files_share_no_id() -> None:
    train, test = (ParquetImages(f"{SAMPLE}/{n}.parquet", channels=1) for n in ("train", "test"))
    assert not set(train.ids_N.tolist()) & set(test.ids_N.tolist())


def test_the_sample_ships_with_its_licence() -> None:
    folder = Path(fashion_mnist.__file__).parent / "samples" / "fashion_mnist"
    assert "Copyright (c) 2017 Zalando SE" in (folder / "LICENSE").read_text()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6 * 2**20
