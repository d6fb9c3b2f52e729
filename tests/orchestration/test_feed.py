"""Reading ahead: the same microbatches as without it, bounded, with errors in their place."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_photos import encoded, smooth
from tiny import DATA, train_job

from s3ta.errors import UserError
from s3ta.order import epoch_order
from s3ta.settings import Augmentation, TrainSettings
from s3ta_platform.data import ParquetImages, write_parquet
from s3ta_platform.data_files import Integers
from s3ta_platform.feed import Wanted, ahead, feed, read, wanted

SETTINGS = replace(train_job("nowhere").train, epochs=3)
IDS = np.arange(1000, 1110)
EPOCH_STEPS = SETTINGS.steps_per_epoch(len(IDS))  # 2, of 6 microbatches of 8


def order_of(epoch: int) -> Integers:
    return epoch_order(IDS, SETTINGS, epoch)


def all_wanted(first_step: int = 0, rank: int = 0, world: int = 1) -> list[Wanted]:
    return list(wanted(SETTINGS, order_of, EPOCH_STEPS, first_step, rank, world))


# Which microbatches.


def test_microbatches_are_an_epochs_order_cut_up() -> None:
    found = all_wanted()
    assert len(found) == 3 * 2 * 6
    for epoch in range(3):
        own = found[12 * epoch : 12 * (epoch + 1)]
        assert {one.epoch for one in own} == {epoch}
        assert np.array_equal(np.concatenate([one.ids_B for one in own]), order_of(epoch)[:96])


def test_workers_share_a_step_in_turn() -> None:
    whole = all_wanted()
    for world in (2, 3, 4):
        shares = [all_wanted(rank=rank, world=world) for rank in range(world)]
        for step in range(6):
            for index in range(6):
                one = whole[6 * step + index]
                own = shares[index % world].pop(0)
                assert own.epoch == one.epoch
                assert np.array_equal(own.ids_B, one.ids_B)
        assert shares == [[]] * world


def test_a_later_start_is_the_rest() -> None:
    rest = all_wanted(first_step=3)
    for one, own in zip(all_wanted()[18:], rest, strict=True):
        assert own.epoch == one.epoch
        assert np.array_equal(own.ids_B, one.ids_B)


def test_an_epochs_order_is_asked_for_once_and_only_when_its_turn_comes() -> None:
    asked: list[int] = []

    def asking(epoch: int) -> Integers:
        asked.append(epoch)
        return order_of(epoch)

    todo = wanted(SETTINGS, asking, EPOCH_STEPS, first_step=1)
    assert asked == []
    for _ in range(6):
        next(todo)
    assert asked == [0]
    assert len(list(todo)) == 24
    assert asked == [0, 1, 2]


# What is in them.


@pytest.mark.parametrize("augmentation", [Augmentation.none, Augmentation.flip])
def test_fed_microbatches_are_those_read_one_by_one(augmentation: Augmentation) -> None:
    images = ParquetImages(DATA.train, channels=1)
    ids = images.ids_N[::50]
    settings = replace(SETTINGS, augmentation=augmentation, epochs=1)
    todo = list(wanted(settings, lambda epoch: ids, len(ids) // settings.batch, 0))
    batches = list(feed(images, settings, todo))
    assert len(batches) == len(todo) == 24
    for batch, one in zip(batches, todo, strict=True):
        pixels, labels = images.read(one.ids_B)
        assert np.array_equal(batch.images_BCHW, pixels)  # flips come later, on the device
        assert np.array_equal(batch.labels_B, labels)
        assert np.array_equal(batch.image_ids_B, one.ids_B)


@pytest.fixture
def photos(tmp_path: Path) -> ParquetImages:
    files = [encoded(smooth(40, 50, seed=i), "JPEG") for i in range(24)]
    files[13] = b"damaged"
    path = str(tmp_path / "photos.parquet")
    write_parquet(Path(path), files, [0] * 24, range(24), "a", source="a test")
    return ParquetImages(path, channels=3, size=16)


PHOTOS = TrainSettings(augmentation=Augmentation.imagenet, batch=8, microbatch=4, epochs=2)
GOOD = np.array([i for i in range(24) if i != 13])


def test_photos_are_augmented_by_epoch_whoever_reads_them(photos: ParquetImages) -> None:
    todo = list(wanted(PHOTOS, lambda epoch: GOOD, 2, 0))
    batches = list(feed(photos, PHOTOS, todo))
    assert len(batches) == 8
    for batch, one in zip(batches, todo, strict=True):
        assert batch.images_BCHW.shape == (4, 3, 16, 16)
        assert np.array_equal(batch.images_BCHW, read(photos, PHOTOS, one).images_BCHW)
    assert np.array_equal(todo[0].ids_B, todo[4].ids_B)
    assert (batches[0].images_BCHW != batches[4].images_BCHW).any(axis=(1, 2, 3)).all()


def test_a_damaged_image_is_told_where_its_microbatch_is_asked_for(photos: ParquetImages) -> None:
    batches = feed(photos, PHOTOS, wanted(PHOTOS, lambda epoch: np.arange(24), 3, 0))
    for start in (0, 4, 8):
        assert next(batches).image_ids_B.tolist() == list(range(start, start + 4))
    with pytest.raises(UserError, match=r"Image 13 .* cannot be decoded"):
        next(batches)


# Ahead.


def readers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("feed")]


def test_results_come_in_order_however_long_each_takes() -> None:
    def work(item: int) -> int:
        time.sleep(0.02 if item % 3 == 0 else 0)
        return item * item

    assert list(ahead(work, range(20), threads=4, most=6)) == [n * n for n in range(20)]
    assert list(ahead(work, [], threads=2, most=2)) == []


def test_no_more_is_taken_in_hand_than_allowed() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(50):
            taken += 1
            yield item

    results = ahead(lambda n: n, items(), threads=3, most=5)
    assert taken == 0
    for done in range(1, 46):
        next(results)
        assert taken == done + 4
    assert list(results) == list(range(45, 50))


def test_work_goes_on_while_nobody_asks() -> None:
    begun = [threading.Event() for _ in range(4)]
    results = ahead(lambda n: begun[n].set(), range(4), threads=1, most=3)
    next(results)
    assert begun[1].wait(5)
    assert begun[2].wait(5)
    assert not begun[3].is_set()
    results.close()  # type: ignore[attr-defined]


def test_closing_ends_the_threads_and_drops_what_has_not_begun() -> None:
    second, release, worked = threading.Event(), threading.Event(), []

    def work(item: int) -> None:
        if item:
            second.set()
            release.wait(5)
        worked.append(item)

    results = ahead(work, range(9), threads=1, most=6)
    next(results)
    assert second.wait(5)
    assert readers()
    threading.Timer(0.05, release.set).start()
    results.close()  # type: ignore[attr-defined]
    assert not readers()
    assert worked == [0, 1]


def test_an_error_ends_the_threads() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    results = ahead(work, range(9), threads=2, most=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert not readers()
