"""The workers that share a training step, and what they have to tell one another."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import Work

if TYPE_CHECKING:
    from s3ta_platform.watchdog import Watch


class Group(Protocol):
    """The workers that share a step."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def begin_sum(self, part: Tensor) -> None:
        """Begin to replace rows of numbers by their sums over all workers.

        All workers begin with the same parts in the same order.
        """

    def add_up(self, part: Tensor) -> None:
        """The same for the last part; returns when all that was begun is added up."""

    def agree(self, number: int) -> int:
        """The number of rank 0, which all wait for."""


@dataclass(frozen=True)
class Alone:
    """One worker: nothing to add up, nobody to agree with."""

    rank: int = 0
    world: int = 1

    def begin_sum(self, part: Tensor) -> None:
        """The sum over one worker."""

    def add_up(self, part: Tensor) -> None:
        """The sum over one worker."""

    def agree(self, number: int) -> int:
        return number


@dataclass(frozen=True)
class Joined:
    """Workers joined by torch.distributed, with gloo or NCCL.

    No DistributedDataParallel: it adds floating-point numbers in an order of its own, and its
    broadcasts of buffers change what is computed. Sums go on beside what the worker does until it
    asks for their end (see StepSums.add).
    """

    rank: int
    world: int
    device: str = "cpu"
    watch: "Watch | None" = None
    begun: list[Work] = field(default_factory=list)

    def begin_sum(self, part: Tensor) -> None:
        for row in part:  # each lies in one piece
            work = torch.distributed.all_reduce(row, async_op=True)
            assert work is not None
            self.begun.append(work)

    def add_up(self, part: Tensor) -> None:
        self.begin_sum(part)
        with self._watched():
            while self.begun:
                self.begun.pop(0).wait()
            if part.is_cuda:  # NCCL has only queued it: whoever waits for others does so in here
                torch.cuda.current_stream(part.device).synchronize()

    def agree(self, number: int) -> int:
        told = torch.tensor([number], dtype=torch.int64, device=self.device)
        with self._watched():
            torch.distributed.broadcast(told, src=0)
            return int(told.item())

    def _watched(self) -> AbstractContextManager[None]:
        return nullcontext() if self.watch is None else self.watch.waiting()


ALONE = Alone()
