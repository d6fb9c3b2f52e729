"""Microbatches for training, read and decoded ahead of the step that needs them.

Threads read while the step computes: decoding needs no interpreter most of the time. What is read,
and in which order, is the same as if each microbatch were read when it is asked for.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from s3ta.batch import Batch
from s3ta.settings import Augmentation, TrainSettings
from s3ta_platform.data import ParquetImages
from s3ta_platform.data_files import Integers
from s3ta_platform.photos import read_distorted

MOST_READERS = 8
AHEAD = 2
"""Microbatches in hand, for each reader."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Wanted:
    """One microbatch to be read."""

    ids_B: Integers
    epoch: int


@dataclass
class Share:
    """One worker's microbatches, read ahead as long as steps follow one another."""

    images: ParquetImages
    settings: TrainSettings
    order_of: Callable[[int], Integers]
    """An epoch -> all its image ids in their order."""
    epoch_steps: int
    rank: int = 0
    world: int = 1
    _next: int = -1
    _batches: Iterator[Batch] = field(default_factory=lambda: iter(()))

    def of(self, step: int) -> Iterator[tuple[int, Batch]]:
        """The microbatches of a step, each with its place in it."""
        if step != self._next:  # at the start, and after training was rolled back
            todo = wanted(
                self.settings, self.order_of, self.epoch_steps, step, self.rank, self.world
            )
            self._batches = feed(self.images, self.settings, todo)
        self._next = step + 1
        for index in range(self.rank, self.settings.microbatches, self.world):
            yield index, next(self._batches)


def wanted(
    settings: TrainSettings,
    order_of: Callable[[int], Integers],
    epoch_steps: int,
    first_step: int,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Wanted]:
    """One worker's microbatches, in the order of training, from a step to the end.

    order_of: an epoch -> all its image ids in their order. Asked once for each epoch, in a row.
    """
    epoch_now, order = -1, None
    for step in range(first_step, epoch_steps * settings.epochs):
        epoch, within = divmod(step, epoch_steps)
        if order is None or epoch != epoch_now:
            epoch_now, order = epoch, order_of(epoch)
        for index in range(rank, settings.microbatches, world):
            start = (within * settings.microbatches + index) * settings.microbatch
            yield Wanted(order[start : start + settings.microbatch], epoch)


def feed(images: ParquetImages, settings: TrainSettings, todo: Iterable[Wanted]) -> Iterator[Batch]:
    """The microbatches, each ready when it is asked for if reading keeps pace.

    What is wrong with an image is raised where its microbatch is asked for. Closing the iterator
    ends its threads.
    """
    readers = min(MOST_READERS, len(os.sched_getaffinity(0)))
    return ahead(lambda one: read(images, settings, one), todo, readers, AHEAD * readers)


def read(images: ParquetImages, settings: TrainSettings, one: Wanted) -> Batch:
    """Read one microbatch, augmented as far as that is done to encoded images."""
    if settings.augmentation is Augmentation.imagenet:
        pixels, labels = read_distorted(images, one.ids_B, settings.seed, one.epoch)
    else:
        pixels, labels = images.read(one.ids_B)
    return Batch(images_BCHW=pixels, labels_B=labels, image_ids_B=one.ids_B)


def ahead(work: Callable[[T], R], items: Iterable[T], threads: int, most: int) -> Iterator[R]:
    """map(work, items), in threads: at most so many results are under way or wait to be taken."""
    with ThreadPoolExecutor(threads, thread_name_prefix="feed") as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) == most:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
