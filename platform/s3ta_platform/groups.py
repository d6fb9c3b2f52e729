"""The workers that share a training step, and what they have to tell one another."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.distributed
from torch import Tensor

if TYPE_CHECKING:
    from s3ta_platform.watchdog import Watch


class Group(Protocol):
    """The workers that share a step."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def add_up(self, flat: Tensor) -> None:
        """Replace the buffer by its sum over all workers."""

    def agree(self, number: int) -> int:
        """The number of rank 0, which all wait for."""


@dataclass(frozen=True)
class Alone:
    """One worker: nothing to add up, nobody to agree with."""

    rank: int = 0
    world: int = 1

    def add_up(self, flat: Tensor) -> None:
        """The sum over one worker."""

    def agree(self, number: int) -> int:
        return number


@dataclass(frozen=True)
class Joined:
    """Workers joined by torch.distributed, with gloo or NCCL.

    No DistributedDataParallel: its hooks and its broadcasts of buffers change what is computed. The
    sum waits for the last microbatch. To overlap the two it would have to begin layer by layer
    inside that microbatch's backward pass, one of a dozen passes and more that an adversarial step
    makes for each microbatch. There is little to hide: of a step of eight microbatches of the
    quickstart's S3TA-4, on two workers of one machine, the sum takes 7 of 680 ms.
    """

    rank: int
    world: int
    device: str = "cpu"
    watch: "Watch | None" = None

    def add_up(self, flat: Tensor) -> None:
        with self._watched():
            torch.distributed.all_reduce(flat)

    def agree(self, number: int) -> int:
        told = torch.tensor([number], dtype=torch.int64, device=self.device)
        with self._watched():
            torch.distributed.broadcast(told, src=0)
            return int(told.item())

    def _watched(self) -> AbstractContextManager[None]:
        return nullcontext() if self.watch is None else self.watch.waiting()


ALONE = Alone()
