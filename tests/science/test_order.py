"""The order of an epoch: every image once, few row groups at a time, whoever asks."""

from dataclasses import replace

import numpy as np
import pytest

from s3ta.draws import Key, Purpose
from s3ta.order import Ids, epoch_order
from s3ta.settings import TrainSettings

SETTINGS = TrainSettings(batch=12, microbatch=4, seed=11)
WINDOWED = replace(SETTINGS, shuffle_window=100)


def grouped(*sizes: int) -> tuple[Ids, Ids]:
    """Ids from 1000 on, and their row groups."""
    ids = np.arange(1000, 1000 + sum(sizes))
    return ids, np.repeat(np.arange(len(sizes)), sizes)


def groups_in(order: Ids, groups_N: Ids) -> list[int]:
    found: list[int] = groups_N[order - 1000].tolist()
    return found


def test_an_epoch_is_a_new_order_of_all_ids_cut_into_whole_batches() -> None:
    ids = np.arange(100, 200)
    orders = [epoch_order(ids, SETTINGS, epoch).tolist() for epoch in (0, 1, 0)]
    assert sorted(orders[0]) == ids.tolist()
    assert orders[0] == orders[2] != orders[1]
    assert epoch_order(ids, replace(SETTINGS, seed=12), 0).tolist() != orders[0]
    assert SETTINGS.steps_per_epoch(100) == 8


@pytest.mark.parametrize("window", [500, 501, 16384])
def test_what_fits_into_the_window_is_shuffled_as_a_whole(window: int) -> None:
    ids, groups = grouped(*[50] * 10)
    order = epoch_order(ids, replace(SETTINGS, shuffle_window=window), 3, groups)
    key = Key(SETTINGS.seed, Purpose.ORDER, epoch=3)
    assert order.tolist() == ids[key.permutation(500)].tolist()


@pytest.mark.parametrize("sizes", [[20] * 30, [7, 90, 1, 33, 250, 40, 8, 60, 11, 100], [1] * 300])
def test_of_a_larger_set_every_image_comes_once_in_an_order_of_its_own(sizes: list[int]) -> None:
    ids, groups = grouped(*sizes)
    orders = [epoch_order(ids, WINDOWED, epoch, groups) for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == ids.tolist()
    assert len({tuple(order) for order in orders}) == 3
    again = epoch_order(ids.copy(), WINDOWED, 1, groups.copy())
    assert again.tolist() == orders[1].tolist()


def test_at_any_time_images_come_from_few_row_groups() -> None:
    """Groups of 20 in windows of 100: one window's 5 groups, or at a border those of two."""
    ids, groups = grouped(*[20] * 30)
    order = groups_in(epoch_order(ids, WINDOWED, 0, groups), groups)
    for start in range(0, 600, 12):
        assert len(set(order[start : start + 12])) <= 10
        assert len(set(order[: start + 12])) <= 5 * ((start + 11) // 100 + 1)
    whole = groups_in(epoch_order(ids, SETTINGS, 0, groups), groups)
    assert len(set(whole[:100])) > 20, "without windows nearly all groups are needed at once"


def test_each_row_group_is_needed_in_one_stretch_of_a_window() -> None:
    ids, groups = grouped(7, 90, 1, 33, 250, 40, 8, 60, 11, 100)
    order = np.array(groups_in(epoch_order(ids, WINDOWED, 5, groups), groups))
    spans = []
    for group, size in enumerate(np.bincount(groups).tolist()):
        places = np.flatnonzero(order == group)
        spans.append(places[-1] - places[0] + 1)
        assert len(places) == size
    assert max(spans) <= 99 + 250, "a window is at most one short of full, plus a group"


def test_windows_mix_their_groups_and_epochs_mix_the_groups() -> None:
    ids, groups = grouped(*[20] * 30)
    orders = [np.array(groups_in(epoch_order(ids, WINDOWED, e, groups), groups)) for e in (0, 1)]
    for order in orders:
        assert np.mean(order[1:] == order[:-1]) < 0.35, "a fifth by chance, not nearly all"
    first = [set(order[:100].tolist()) for order in orders]
    assert first[0] != first[1]
    assert first[0] != set(range(5))


def test_a_subset_keeps_its_own_row_groups() -> None:
    ids, groups = grouped(*[20] * 30)
    chosen = Key(0, Purpose.SUBSET).permutation(600)[:300]
    order = epoch_order(ids[chosen], WINDOWED, 0, groups[chosen])
    assert sorted(order.tolist()) == sorted(ids[chosen].tolist())
    assert len(set(groups_in(order[:90], groups))) <= 12, "groups of about 10 in windows of 100"
