"""Storage in a local folder, or one on a network file system (see storage)."""

import errno
import os
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from s3ta.errors import UserError
from s3ta_platform.storage_names import (
    AWAY,
    TEMPORARY,
    Names,
    NotStored,
    StoreAwayError,
    check_name,
    check_prefix,
)

_PROBE_BYTES = 1 << 20  # a nearly full disk still takes a file of a few bytes
_REMEDIES = {
    **AWAY,
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "make it writable for this user or choose another folder",
    errno.EPERM: "use a file system that takes new files and hard links, or choose another folder",
    errno.EOPNOTSUPP: "the file system has no hard links: choose another folder",
    errno.ENOTDIR: "a part of the path is a file: move it away or choose another folder",
    errno.EEXIST: "it is a file: move it away or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter path",
}


@dataclass(frozen=True)
class LocalStorage:
    """Files below a folder. Needs a file system with hard links (ext4, xfs, APFS, NFS, ...)."""

    root: str
    """Absolute."""
    durable: bool = True

    def put_new(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        with _answering("write to", path):
            return False if _is_there(path) else self._create(path, data)

    def get(self, name: str) -> bytes:
        path = self._path(name)
        with _answering("read", path):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise NotStored(f"{name} is not stored in {self.root}") from None

    def exists(self, name: str) -> bool:
        path = self._path(name)
        with _answering("read", path):
            return stat.S_ISREG(_mode(path))

    def list(self, prefix: str = "") -> Names:
        with _answering("read", Path(self.root)):
            found = self._walk(prefix)
        return sorted(name for name in found if "/." not in f"/{name}")

    def used(self, prefix: str = "") -> int:
        with _answering("read", Path(self.root)):
            return sum(_size(Path(self.root, name)) for name in self._walk(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        names = self.list(prefix)
        with _answering("read", Path(self.root)):
            return {name: _size(Path(self.root, name)) for name in names}

    def temporaries(self, older_than_s: float = 86400.0) -> dict[str, int]:
        with _answering("read", Path(self.root)):
            paths = {name: Path(self.root, name) for name in self._walk("")}
            old = {n: p for n, p in paths.items() if _is_left_behind(p, older_than_s)}
            return {name: _size(path) for name, path in old.items()}

    def delete(self, name: str) -> None:
        path = self._path(name)
        with _answering("delete", path):
            path.unlink(missing_ok=True)
            _remove_empty(path.parent, Path(self.root))

    def uri(self, name: str) -> str:
        return self._path(name).as_uri()

    def clear_temporaries(self, prefix: str, older_than_s: float = 86400.0) -> int:
        removed = 0
        with _answering("read", Path(self.root)):
            for name in self._walk(prefix):
                path = Path(self.root, name)
                if _is_left_behind(path, older_than_s):
                    path.unlink(missing_ok=True)
                    _remove_empty(path.parent, Path(self.root))
                    removed += 1
        return removed

    def check_writable(self) -> None:
        root = Path(self.root)
        stop = root
        while not os.path.lexists(stop):
            stop = stop.parent  # what exists already stays
        probe = root / f"{TEMPORARY}probe-{uuid.uuid4().hex}"
        try:
            self._create(probe, bytes(_PROBE_BYTES))
            probe.unlink()
        except OSError as error:
            raise _in_words("write to", root, error) from error
        finally:
            _remove_empty(root, stop)

    def _path(self, name: str) -> Path:
        return Path(self.root, check_name(name))

    def _create(self, path: Path, data: bytes) -> bool:
        temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        with _removed_at_the_end(temporary), _open_new(temporary) as file:
            file.write(data)
            file.flush()
            if self.durable:
                os.fsync(file.fileno())
            try:
                # A link, not a rename: rename would replace the first writer's value.
                os.link(temporary, path)
            except FileExistsError:
                # NFS sends a request again where a reply is lost: the winner may be this call.
                if not os.path.samefile(temporary, path):
                    return False
        if self.durable:
            _sync_folder(path.parent)
        return True

    def _walk(self, prefix: str) -> Names:
        """Names with this prefix, temporary files included, in no order."""
        top = Path(self.root, check_prefix(prefix).rpartition("/")[0])
        found = []
        for folder, _, files in os.walk(top, onerror=_unless_gone, followlinks=True):
            relative = os.path.relpath(folder, self.root)
            start = "" if relative == "." else relative.replace(os.sep, "/") + "/"
            found += [start + file for file in files]
        return [name for name in found if name.startswith(prefix)]


@contextmanager
def _answering(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _REMEDIES:
            raise _in_words(what, path, error) from error
        raise


def _in_words(what: str, path: Path, error: OSError) -> UserError:
    """What the user can do; a StoreAwayError if it may pass by itself."""
    remedy = _REMEDIES.get(error.errno or 0, "choose another folder")
    if what == "read":
        remedy = remedy.replace("writable", "readable")
    kind = StoreAwayError if error.errno in AWAY else UserError
    return kind(
        f"Can't {what} {path}: {error.strerror or error}; {remedy} (setting `results`),"
        " then start the same command again."
    )


@contextmanager
def _removed_at_the_end(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        # A disk that does not let go of it must not hide what happened; it is cleared later.
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _open_new(path: Path) -> BinaryIO:
    """Open for writing in a folder that somebody else may just be removing because it is empty."""
    for _ in range(100):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return open(path, "xb")
        except FileNotFoundError:
            continue
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _remove_empty(folder: Path, stop: Path) -> None:
    """Remove folders from this one upwards, as far as they are empty, below `stop`."""
    while stop in folder.parents:
        with suppress(OSError):  # not empty, not there, or a writer has just come
            folder.rmdir()
        folder = folder.parent


def _is_there(path: Path) -> bool:
    return _mode(path) != 0


def _mode(path: Path) -> int:
    """0 where there is nothing. Path.is_file would take a disk that is away for an absent file."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _is_left_behind(path: Path, older_than_s: float) -> bool:
    return path.name.startswith(TEMPORARY) and _age_s(path) > older_than_s


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
