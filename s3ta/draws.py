"""Randomness that belongs to an image.

Every draw is a function of (seed, purpose, image id, epoch, step) alone: the state of the
counter-based generator Philox4x64 is built from them, so batch size, shards, workers, retries and
resume change no draw. Only the raw bit stream is used, which numpy keeps stable for ever.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt


class Purpose(IntEnum):
    """What a draw is for. The numbers are part of every result: never reuse or renumber them."""

    ORDER = 1
    SUBSET = 2
    FLIP = 3
    TRAIN_TARGET = 4
    TRAIN_NOISE = 5
    TRAIN_COIN = 6
    EVAL_TARGET = 7
    EVAL_NOISE = 8
    WEIGHTS = 9  # of models in tests, whose golden numbers hold on every processor
    PROBE = 10  # images that a model is checked with before it is attacked
    LINEARITY_START = 11
    DISTORTION = 12  # crops and colours
    SPSA = 20
    SQUARE = 21
    CORNERS = 22
    RANDOM_SIGNS = 30  # directions that nobody chose, beside an attack's
    BOOTSTRAP = 31


class _Generator(threading.local):
    """One per thread, put where each stream begins: a new one asks the system for entropy, 30 us,
    before it is told not to need it."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(0)
        self.begin: Any = self.philox.state


_HERE = _Generator()


@dataclass(frozen=True)
class Key:
    """Names a family of draws, one stream per image id. All numbers are in 0 .. 2^64 - 1."""

    seed: int
    purpose: Purpose
    epoch: int = 0
    step: int = 0

    def bits(self, image_id: int, count: int, skip: int = 0) -> npt.NDArray[np.uint64]:
        """`count` independent 64-bit words for one image, after the first 4 `skip` ones."""
        # The counter's lowest word numbers the blocks of one stream; the other three name it.
        counter = np.array([skip, self.step, self.epoch, image_id], dtype=np.uint64)
        key = np.array([self.seed, int(self.purpose)], dtype=np.uint64)
        _HERE.begin["state"] = {"counter": counter, "key": key}
        _HERE.philox.state = _HERE.begin
        return _HERE.philox.random_raw(count)

    def uniform(self, image_ids: Iterable[int], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Uniform on [0, 1) with 24 random bits, one `shape` per image: float32 (B, *shape)."""
        count = int(np.prod(shape))
        rows = [self.bits(int(i), (count + 1) // 2) for i in image_ids]
        words = np.array(rows, dtype="<u8").reshape(len(rows), (count + 1) // 2)
        halves = words.view("<u4")[:, :count]
        floats = (halves >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
        return floats.reshape(len(rows), *shape)

    def wrong_classes(
        self, image_ids: Iterable[int], labels: npt.ArrayLike, classes: int
    ) -> npt.NDArray[np.int64]:
        """A class per image, uniform over the `classes - 1` that are not its label: int64 (B,)."""
        if classes < 2:
            raise ValueError(f"{classes} classes: a wrong class needs at least 2")
        words = [int(self.bits(int(i), 1)[0]) for i in image_ids]
        # Multiply-shift maps a 64-bit word to 0 .. classes - 2 with a bias below 2^-50.
        drawn = np.array([(w * (classes - 1)) >> 64 for w in words], dtype=np.int64)
        return drawn + (drawn >= np.asarray(labels, dtype=np.int64))

    def permutation(self, count: int) -> npt.NDArray[np.int64]:
        """A permutation of 0 .. count - 1."""
        return np.argsort(self.bits(0, count), kind="stable").astype(np.int64)
