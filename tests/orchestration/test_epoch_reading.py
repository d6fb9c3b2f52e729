"""An epoch over files that are larger than the memory for them: read in large pieces, once each."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from s3ta.order import epoch_order
from s3ta.settings import TrainSettings
from s3ta_platform import data
from s3ta_platform.data import ParquetImages, write_parquet
from s3ta_platform.data_files import read_column

ROWS = 3


@pytest.fixture
def location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two files of 20 row groups each; the ids run against the order of the rows."""
    monkeypatch.setattr(data, "_ROWS_PER_GROUP", ROWS)
    for part in range(2):
        images = []
        for i in range(20 * ROWS):
            file = io.BytesIO()
            Image.fromarray(np.full((4, 4), i, np.uint8)).save(file, "PNG")
            images.append(file.getvalue())
        ids = range(1000 * (2 - part), 1000 * (2 - part) - len(images), -1)
        name = tmp_path / f"{part}.parquet"
        write_parquet(name, images, [0] * len(images), ids, ["one"], source="a test")
    return str(tmp_path)


def test_row_groups_are_numbered_over_all_files(location: str) -> None:
    images = ParquetImages(location, channels=1)
    groups = images.groups_of(images.ids_N)
    assert groups.tolist() == [row // ROWS for row in range(120)]
    assert images.groups_of([2000, 1997, 1000, 941]).tolist() == [0, 1, 20, 39]


def test_an_epoch_in_windows_reads_each_row_group_once(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With memory for two windows of four row groups; without windows it is read many times."""
    pieces: list[int] = []

    def note(file: Any, column: str, group: int | None = None) -> Any:
        values = read_column(file, column, group)
        if group is not None:
            pieces.append(values.nbytes)
        return values

    monkeypatch.setattr(data, "read_column", note)
    images = ParquetImages(location, channels=1)
    groups = images.groups_of(images.ids_N)

    def reads(window: int) -> int:
        settings = TrainSettings(batch=6, microbatch=6, shuffle_window=window)
        order = epoch_order(images.ids_N, settings, 0, groups)
        reader = ParquetImages(location, channels=1, cache_bytes=8 * max(pieces))
        pieces.clear()
        for start in range(0, 120, 6):
            reader.read(order[start : start + 6])
        return len(pieces)

    assert reads(window=12) in (39, 40), "the first was read before, for the images' shape"
    assert reads(window=120) > 80
