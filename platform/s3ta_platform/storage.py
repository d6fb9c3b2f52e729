"""Create-only storage of named bytes: a local folder or `s3://bucket/prefix`.

The first writer of a name wins and every later one is told so; a reader sees a whole value or
none. That is all that resuming, retrying and racing workers need, so there is no overwriting put.
"""

import os
from typing import Protocol

from s3ta.errors import UserError
from s3ta_platform.storage_local import LocalStorage
from s3ta_platform.storage_names import Names, NotStored, StoreAwayError, check_name
from s3ta_platform.storage_s3 import S3Storage

__all__ = ["LocalStorage", "NotStored", "S3Storage", "Storage", "StoreAwayError", "open_storage"]


class Storage(Protocol):
    """Named bytes below one root. Can be pickled; may be used by several threads.

    A name is `part/part/part`: no empty part, none that starts with a dot, no backslash or
    unprintable character. Names that start with a dot are the storage's own.

    Everything raises StoreAwayError where the store is full, flaky or away, and a plain UserError
    where trying again can't help.
    """

    @property
    def root(self) -> str:
        """Absolute path or `s3://bucket/prefix`: what open_storage would take again."""

    def put_new(self, name: str, data: bytes) -> bool:
        """Store a value unless the name has one. True: this call created it; False: another did."""

    def get(self, name: str) -> bytes:
        """Raises NotStored."""

    def exists(self, name: str) -> bool: ...

    def list(self, prefix: str = "") -> Names:
        """All names that start with these characters (not only whole parts), sorted."""

    def used(self, prefix: str = "") -> int:
        """Bytes of all values whose names start so, and of what killed writers left there."""

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """The names that `list` gives, each with its bytes."""

    def temporaries(self, older_than_s: float = 86400.0) -> dict[str, int]:
        """What killed writers left, with its bytes; clear_temporaries removes it."""

    def delete(self, name: str) -> None:
        """Remove one value, and the folders that it leaves empty; an absent name is no error."""

    def uri(self, name: str) -> str:
        """`file:///...` or `s3://...`."""

    def check_writable(self) -> None:
        """Write, read and delete for real; raises UserError with the remedy, leaves nothing."""

    def clear_temporaries(self, prefix: str, older_than_s: float = 86400.0) -> int:
        """Remove what killed writers left below a prefix; returns how many files."""


def open_storage(root: str, *, durable: bool = True) -> Storage:
    """The storage at a local path (`results`, `~/runs`) or `s3://bucket/prefix`; touches nothing.

    durable: local puts are fsynced, value before name. Without it a power loss (not a killed
    process) can leave a name whose value is empty, and since names are never written again that
    result would stay broken. It costs about 1 ms a file, so only what is worth nothing after a
    power loss (leases) and tests turn it off: any number of handles may share a root.
    """
    if root.startswith("s3://"):
        bucket, _, prefix = root.removeprefix("s3://").rstrip("/").partition("/")
        if not bucket:
            raise UserError(f"The storage root {root!r} names no bucket: write s3://BUCKET/PREFIX.")
        return S3Storage(bucket, check_name(prefix) if prefix else "")
    if "://" in root or not root.strip():
        raise UserError(
            f"The storage root {root!r} is neither a local path nor s3://BUCKET/PREFIX: use one of"
            " these two."
        )
    return LocalStorage(os.path.abspath(os.path.expanduser(root)), durable)
