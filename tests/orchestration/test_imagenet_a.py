"""Natural adversarial examples: import, and which of the 1000 classes they are."""

import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from s3ta.errors import UserError
from s3ta_platform.data import ParquetImages
from s3ta_platform.imagenet_a import import_imagenet_a
from s3ta_platform.import_data import import_with_progress

IDS = ["n01498041", "n01531178", "n09999999"]
GROUP = Path(__file__).parents[2] / "experiments" / "analyze" / "imagenet_a.yaml"


def _png(grey: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), grey, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three classes of two photos each, with what lies beside them in the archive."""
    folder = tmp_path / "archive" / "imagenet-a"
    for label, name in enumerate(reversed(IDS)):
        (folder / name).mkdir(parents=True)
        for photo in (1, 0):
            (folder / name / f"0.00{photo}_fox.jpg").write_bytes(_png(100 * photo + label))
    (folder / "README.txt").write_text("classes")
    return folder


def _import(source: Path, to: Path, images: int = 6) -> Path:
    return import_imagenet_a(source, to, lambda *_: None, classes=3, images=images)


def test_labels_follow_the_wordnet_ids_and_files_stay_as_they_are(
    archive: Path, tmp_path: Path
) -> None:
    path = _import(archive.parent, tmp_path / "out")  # the folder around it does as well
    images = ParquetImages(str(path), channels=1)
    assert images.manifest.class_names == tuple(IDS)
    assert images.labels_N.tolist() == [0, 0, 1, 1, 2, 2]
    pixels, _ = images.read(images.ids_N)
    assert pixels[:, 0, 0, 0].tolist() == [2, 102, 1, 101, 0, 100]


def test_part_of_the_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has 6 photos in its 3 classes: ImageNet-A has 7,500"):
        _import(archive, tmp_path / "out", images=7500)
    with pytest.raises(UserError, match="must hold 200 folders"):
        import_imagenet_a(archive, tmp_path / "out", lambda *_: None)
    assert not (tmp_path / "out" / "test.parquet").exists()


def test_a_damaged_photo_is_named_and_nothing_is_written(archive: Path, tmp_path: Path) -> None:
    (archive / IDS[1] / "0.000_fox.jpg").write_bytes(b"no photo")
    with pytest.raises(UserError, match=r"n01531178/0\.000_fox\.jpg cannot be read as a photo"):
        _import(archive, tmp_path / "out")
    assert not (tmp_path / "out" / "test.parquet").exists()


def test_the_group_names_200_of_the_1000_classes_in_rising_order() -> None:
    classes = yaml.safe_load(GROUP.read_text())["natural"]["classes"]
    assert len(classes) == 200
    assert classes == sorted(set(classes))
    # Stingray, junco and acorn, in ImageNet's own numbering.
    assert (classes[0], classes[2], classes[-1]) == (6, 13, 988)
    assert 0 <= classes[0] < classes[-1] < 1000


def test_without_a_folder_the_command_says_where_the_archive_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--from FOLDER.*imagenet-a\.tar"):
        import_with_progress("imagenet-a", None, tmp_path)


def test_folders_that_are_no_class_are_left_alone(archive: Path, tmp_path: Path) -> None:
    (archive / "extra").mkdir()
    (archive / "n0").mkdir()
    images = ParquetImages(str(_import(archive, tmp_path / "out")), channels=1)
    assert images.manifest.images == 6
