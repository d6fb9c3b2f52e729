"""What every storage shares: which names it takes, and how it says what went wrong."""

import errno

from s3ta.errors import UserError

TEMPORARY = ".tmp-"
Names = list[str]  # inside the classes `list` is a method

AWAY = {
    errno.ENOSPC: "free space there or choose another folder",
    errno.EDQUOT: "free space in your quota or choose another folder",
    errno.EIO: "look at the disk or the network it is on, or choose another folder",
    **dict.fromkeys(
        (
            errno.ESTALE,
            errno.EAGAIN,
            errno.ETIMEDOUT,
            errno.ENOTCONN,
            errno.EHOSTDOWN,
            errno.EHOSTUNREACH,
        ),
        "the network file system does not answer: bring it back or choose another folder",
    ),
}
"""Errors of a disk that is full or flaky and of a file system that is away, and their remedies:
these pass."""


class NotStored(KeyError):  # noqa: N818 - it is a KeyError whose name says what is not there
    """Nothing is stored under this name."""

    def __str__(self) -> str:
        return str(self.args[0])


class StoreAwayError(OSError, UserError):
    """The store is full, does not answer or refuses. As an OSError it is worth another try."""


def check_name(name: str) -> str:
    """The name itself; UserError where it could leave the root, hide from a list, or clash."""
    for part in name.split("/"):
        if not part or part.startswith(".") or "\\" in part or not part.isprintable():
            raise UserError(
                f"{name!r} is no name for stored data: each part between slashes must be non-empty,"
                " printable, without backslash, and not start with a dot."
            )
    return name


def check_prefix(prefix: str) -> str:
    """The start of names; UserError as for a name."""
    folder, _, start = prefix.rpartition("/")
    if folder:
        check_name(folder)
    if start:
        check_name(start)
    return prefix
