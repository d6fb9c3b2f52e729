"""Draws: the bits are pinned, and belong to the image alone."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from s3ta.draws import Key, Purpose

KEY = Key(seed=7, purpose=Purpose.EVAL_NOISE, epoch=2, step=3)
Words = tuple[int, int, int, int]
MASK = 2**64 - 1

GOLDEN_BITS = [2110566572848977601, 420693237809203086]
GOLDEN_24_BITS = [10582550, 1919549, 5703367, 382618]
GOLDEN_TARGETS = [584, 456, 146, 334, 328, 544, 483, 574]
GOLDEN_ORDER = [5, 3, 7, 2, 4, 1, 0, 6]


def _philox4x64_10(counter: Words, key: tuple[int, int]) -> Words:
    """Salmon et al. 2011, sec. 4.3, in plain integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        product0, product1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (
            (product1 >> 64) ^ c1 ^ k0,
            product1 & MASK,
            (product0 >> 64) ^ c3 ^ k1,
            product0 & MASK,
        )
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return c0, c1, c2, c3


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        (
            (0, 0, 0, 0),
            (0, 0),
            "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b",
        ),
        (
            (MASK, MASK, MASK, MASK),
            (MASK, MASK),
            "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
        ),
    ],
)
def test_the_reference_here_gives_the_authors_known_answers(
    counter: Words, key: tuple[int, int], expected: str
) -> None:
    assert " ".join(f"{w:016x}" for w in _philox4x64_10(counter, key)) == expected


@pytest.mark.parametrize("image_id", [0, 5, 2**64 - 1])
def test_bits_are_philox_blocks_counted_from_one_and_named_by_step_epoch_and_image(
    image_id: int,
) -> None:
    expected = [
        word
        for block in (1, 2, 3)
        for word in _philox4x64_10((block, 3, 2, image_id), (7, Purpose.EVAL_NOISE))
    ]
    assert KEY.bits(image_id, 10).tolist() == expected[:10]


def test_purposes_keep_their_numbers() -> None:
    assert {p.name: p.value for p in Purpose} == {
        "ORDER": 1,
        "SUBSET": 2,
        "FLIP": 3,
        "TRAIN_TARGET": 4,
        "TRAIN_NOISE": 5,
        "TRAIN_COIN": 6,
        "EVAL_TARGET": 7,
        "EVAL_NOISE": 8,
        "WEIGHTS": 9,
        "PROBE": 10,
        "LINEARITY_START": 11,
        "DISTORTION": 12,
        "SPSA": 20,
        "SQUARE": 21,
        "CORNERS": 22,
        "RANDOM_SIGNS": 30,
        "BOOTSTRAP": 31,
    }


def test_the_first_numbers_are_golden() -> None:
    assert KEY.bits(5, 2).tolist() == GOLDEN_BITS
    assert (KEY.uniform([5], (4,))[0] * 2**24).astype(int).tolist() == GOLDEN_24_BITS
    targets = Key(0, Purpose.EVAL_TARGET).wrong_classes(range(8), np.zeros(8, int), 1000)
    assert targets.tolist() == GOLDEN_TARGETS
    assert Key(0, Purpose.ORDER).permutation(8).tolist() == GOLDEN_ORDER


def test_uniform_takes_the_upper_24_bits_of_each_half_word_low_half_first() -> None:
    words = KEY.bits(5, 2).tolist()
    halves = [half for w in words for half in (w & 0xFFFFFFFF, w >> 32)]
    expected = [(half >> 8) / 2**24 for half in halves]
    assert KEY.uniform([5], (3,))[0].tolist() == expected[:3]
    assert KEY.uniform([5], (2, 2))[0].ravel().tolist() == expected


def test_a_draw_does_not_depend_on_the_other_images_or_their_order() -> None:
    together = KEY.uniform([3, 1, 2], (2, 5))
    for row, image_id in zip(together, [3, 1, 2], strict=True):
        assert np.array_equal(row, KEY.uniform([image_id], (2, 5))[0])
    labels = np.array([4, 0, 9])
    targets = KEY.wrong_classes([3, 1, 2], labels, 10)
    assert (
        KEY.wrong_classes([2, 3, 1], labels[[2, 0, 1]], 10).tolist() == targets[[2, 0, 1]].tolist()
    )


def test_threads_draw_side_by_side() -> None:
    """Threads that take turns after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            drawn = list(pool.map(lambda i: KEY.bits(i, 4).tolist(), range(5000)))
    finally:
        sys.setswitchinterval(before)
    assert drawn == [KEY.bits(i, 4).tolist() for i in range(5000)]


def test_seed_purpose_epoch_step_and_image_each_give_another_stream() -> None:
    keys = [KEY, replace(KEY, seed=100), replace(KEY, epoch=100), replace(KEY, step=100)]
    keys += [replace(KEY, purpose=p) for p in Purpose if p is not KEY.purpose]
    keys += [replace(KEY, epoch=KEY.step, step=KEY.epoch)]
    words = [w for key in keys for i in (4, 5) for w in key.bits(i, 64).tolist()]
    assert len(set(words)) == len(words)


def test_uniform_is_uniform_on_zero_to_one() -> None:
    draws = KEY.uniform(range(100), (1000,)).astype(np.float64)
    assert draws.dtype == np.float64
    assert draws.min() >= 0
    assert draws.max() < 1
    counts, _ = np.histogram(draws, bins=50, range=(0, 1))
    assert ((counts - 2000) ** 2 / 2000).sum() < 86  # chi-square, 49 degrees: 99.9 %
    # Neighbours, within an image and between images, are uncorrelated (sd 0.003).
    assert abs(np.corrcoef(draws[:, 1:].ravel(), draws[:, :-1].ravel())[0, 1]) < 0.012
    assert abs(np.corrcoef(draws[1:].ravel(), draws[:-1].ravel())[0, 1]) < 0.012


def test_uniform_of_no_images_is_empty() -> None:
    assert KEY.uniform([], (2, 3)).shape == (0, 2, 3)


@pytest.mark.parametrize("label", [0, 3, 9])
def test_a_wrong_class_is_uniform_over_the_nine_others(label: int) -> None:
    drawn = KEY.wrong_classes(range(4500), np.full(4500, label), 10)
    counts = np.bincount(drawn, minlength=10)
    assert counts[label] == 0
    rest = np.delete(counts, label)
    assert ((rest - 500) ** 2 / 500).sum() < 26.1  # chi-square, 8 degrees: 99.9 %


def test_of_two_classes_the_wrong_one_is_the_other() -> None:
    assert KEY.wrong_classes(range(4), [0, 1, 0, 1], 2).tolist() == [1, 0, 1, 0]
    with pytest.raises(ValueError, match="1 classes"):
        KEY.wrong_classes([0], [0], 1)


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_a_permutation_holds_every_number_once(count: int) -> None:
    assert sorted(KEY.permutation(count).tolist()) == list(range(count))


def test_permutations_of_other_epochs_are_other_orders() -> None:
    orders = [Key(0, Purpose.ORDER, epoch=e).permutation(100) for e in range(4)]
    assert len({tuple(o.tolist()) for o in orders}) == 4
    # No more fixed points than chance leaves (one expected in each).
    assert sum(int((o == np.arange(100)).sum()) for o in orders) < 14
