"""What a training worker may wish for at a step. Imports nothing: controllers load it too."""

from enum import IntEnum


class Wish(IntEnum):
    """The strongest wish of any worker is done by all, after the same step."""

    GO_ON = 0
    SAVE = 1
    """A checkpoint; training goes on."""
    LEAVE = 2
    """A checkpoint; then all leave."""
