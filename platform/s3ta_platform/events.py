"""How running work tells whoever watches. Watching is optional: work never waits for it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """The parts of a trial, in order."""

    train = "train"
    evaluate = "evaluate"
    analyze = "analyze"

    @property
    def word(self) -> str:
        """As a reader would say it."""
        return {Phase.train: "train", Phase.evaluate: "attack", Phase.analyze: "study"}[self]


@dataclass(frozen=True, kw_only=True)
class Event:
    """A trial's phase has got so far."""

    trial: str
    """The trial's key."""
    phase: Phase
    done: int
    total: int
    """In images, counting an image once per epoch or per attack trajectory."""
    note: str = ""
    """A few words: the loss, or the accuracy so far with its interval."""
    durable: bool = False
    """Something new can be read from the storage: a checkpoint, or a finished evaluation."""


Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Nobody watches."""
