"""Create-only storage of named bytes: a local folder or `s3://bucket/prefix`.

The first writer of a name wins and every later one is told so; a reader sees a whole value or
none. That is all that resuming, retrying and racing workers need, so there is no overwriting put.
The only file that imports boto3.
"""

import errno
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from s3ta.errors import UserError

TEMPORARY = ".tmp-"
Names = list[str]  # inside the classes `list` is a method
_PROBE_BYTES = 1 << 20  # a nearly full disk still takes a file of a few bytes


class NotStored(KeyError):  # noqa: N818 - it is a KeyError whose name says what is not there
    """Nothing is stored under this name."""

    def __str__(self) -> str:
        return str(self.args[0])


class StoreAwayError(OSError, UserError):
    """The store does not answer or refuses. As an OSError it is worth another try."""


class Storage(Protocol):
    """Named bytes below one root. Can be pickled; may be used by several threads.

    A name is `part/part/part`: no empty part, none that starts with a dot, no backslash or
    unprintable character. Names that start with a dot are the storage's own.
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
    result would stay broken. It costs about 1 ms a file, so only tests turn it off.
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


def check_name(name: str) -> str:
    """The name itself; UserError where it could leave the root, hide from a list, or clash."""
    for part in name.split("/"):
        if not part or part.startswith(".") or "\\" in part or not part.isprintable():
            raise UserError(
                f"{name!r} is no name for stored data: each part between slashes must be non-empty,"
                " printable, without backslash, and not start with a dot."
            )
    return name


def _check_prefix(prefix: str) -> str:
    folder, _, start = prefix.rpartition("/")
    if folder:
        check_name(folder)
    if start:
        check_name(start)
    return prefix


@dataclass(frozen=True)
class LocalStorage:
    """Files below a folder. Needs a file system with hard links (ext4, xfs, APFS, NFS, ...)."""

    root: str
    """Absolute."""
    durable: bool = True

    def put_new(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        if path.exists():
            return False
        try:
            return self._create(path, data)
        except OSError as error:
            if error.errno in _REMEDIES:
                raise UserError(_local_message(path, error)) from error
            raise

    def get(self, name: str) -> bytes:
        try:
            return self._path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotStored(f"{name} is not stored in {self.root}") from None

    def exists(self, name: str) -> bool:
        return self._path(name).is_file()

    def list(self, prefix: str = "") -> Names:
        names = (name for name in self._walk(prefix) if "/." not in f"/{name}")
        return sorted(names)

    def delete(self, name: str) -> None:
        path = self._path(name)
        path.unlink(missing_ok=True)
        _remove_empty(path.parent, Path(self.root))

    def uri(self, name: str) -> str:
        return self._path(name).as_uri()

    def clear_temporaries(self, prefix: str, older_than_s: float = 86400.0) -> int:
        removed = 0
        for name in self._walk(prefix):
            path = Path(self.root, name)
            if path.name.startswith(TEMPORARY) and _age_s(path) > older_than_s:
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
            raise UserError(_local_message(root, error)) from error
        finally:
            _remove_empty(root, stop)

    def _path(self, name: str) -> Path:
        return Path(self.root, check_name(name))

    def _create(self, path: Path, data: bytes) -> bool:
        temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        with _open_new(temporary) as file:
            try:
                file.write(data)
                file.flush()
                if self.durable:
                    os.fsync(file.fileno())
                # A link, not a rename: rename would replace the first writer's value.
                os.link(temporary, path)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
        if self.durable:
            _sync_folder(path.parent)
        return True

    def _walk(self, prefix: str) -> Names:
        """Names with this prefix, temporary files included, in no order."""
        top = Path(self.root, _check_prefix(prefix).rpartition("/")[0])
        found = []
        for folder, _, files in os.walk(top, onerror=_unless_gone, followlinks=True):
            relative = os.path.relpath(folder, self.root)
            start = "" if relative == "." else relative.replace(os.sep, "/") + "/"
            found += [start + file for file in files]
        return [name for name in found if name.startswith(prefix)]


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _remove_empty(folder: Path, stop: Path) -> None:
    """Remove folders from this one upwards, as far as they are empty, below `stop`."""
    while stop in folder.parents:
        with suppress(OSError):  # not empty, not there, or a writer has just come
            folder.rmdir()
        folder = folder.parent


def _open_new(path: Path) -> BinaryIO:
    """Open for writing in a folder that somebody else may just be removing because it is empty."""
    for _ in range(100):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return open(path, "xb")
        except FileNotFoundError:
            continue
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


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


_REMEDIES = {
    errno.ENOSPC: "free space there or choose another folder",
    errno.EDQUOT: "free space in your quota or choose another folder",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "make it writable for this user or choose another folder",
    errno.EPERM: "use a file system that takes new files and hard links, or choose another folder",
    errno.EOPNOTSUPP: "the file system has no hard links: choose another folder",
    errno.ENOTDIR: "a part of the path is a file: move it away or choose another folder",
    errno.EEXIST: "it is a file: move it away or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter path",
}


def _local_message(path: Path, error: OSError) -> str:
    remedy = _REMEDIES.get(error.errno or 0, "choose another folder")
    return (
        f"Can't write to {path}: {error.strerror or error}; {remedy} (setting `results`),"
        " then start the same command again."
    )


@dataclass(frozen=True)
class S3Storage:
    """Objects below a prefix. Credentials, region and AWS_ENDPOINT_URL as boto3 finds them.

    One put per object: at most 5 GB each.
    """

    bucket: str
    prefix: str

    @property
    def root(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def put_new(self, name: str, data: bytes) -> bool:
        with self._answering():
            return self._create(self._key(name), data)

    def get(self, name: str) -> bytes:
        key = self._key(name)
        with self._answering():
            try:
                reply = self._client.get_object(Bucket=self.bucket, Key=key)
            except self._client.exceptions.NoSuchKey:
                raise NotStored(f"{name} is not stored in {self.root}") from None
            body: bytes = reply["Body"].read()
            return body

    def exists(self, name: str) -> bool:
        with self._answering():
            return self._head(self._key(name)) is not None

    def list(self, prefix: str = "") -> Names:
        start = self._start + _check_prefix(prefix)
        with self._answering():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=start
            )
            keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        names = (key.removeprefix(self._start) for key in keys)
        return sorted(name for name in names if "/." not in f"/{name}" and not name.endswith("/"))

    def delete(self, name: str) -> None:
        with self._answering():
            self._client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def uri(self, name: str) -> str:
        return f"s3://{self.bucket}/{self._key(name)}"

    def clear_temporaries(self, prefix: str, older_than_s: float = 86400.0) -> int:
        return 0  # a put appears whole or not at all

    def check_writable(self) -> None:
        probe = f"{self._start}{TEMPORARY}probe-{uuid.uuid4().hex}"
        with self._answering():
            created = [self._create(probe, b"first"), self._create(probe, b"second")]
            self._client.delete_object(Bucket=self.bucket, Key=probe)
        if created != [True, False]:
            raise UserError(
                f"The object store of {self.root} ignores `If-None-Match: *`, so that it can't tell"
                " the first writer from the second: use a store that honours it (AWS S3, MinIO,"
                " Ceph) or a local folder."
            )

    @contextmanager
    def _answering(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise StoreAwayError(
                f"Can't use {self.root}: {error}. Check the bucket's name, the credentials and"
                " AWS_ENDPOINT_URL, or choose another place (setting `results`)."
            ) from error

    @property
    def _start(self) -> str:
        return f"{self.prefix}/" if self.prefix else ""

    def _key(self, name: str) -> str:
        return self._start + check_name(name)

    def _create(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        writer = uuid.uuid4().hex
        put = {"Bucket": self.bucket, "Key": key, "Body": data, "Metadata": {"writer": writer}}
        for attempt in range(10):
            try:
                self._client.put_object(**put, IfNoneMatch="*")
                return True
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if status == 412:
                    # boto3 tries again by itself where a reply is lost: the winner may be this call
                    return (self._head(key) or {}).get("writer") == writer
                if status != 409 or attempt == 9:  # 409: two puts met; S3 asks to try again
                    raise
                time.sleep(0.05 * 2**attempt)
        raise AssertionError("unreachable")

    def _head(self, key: str) -> dict[str, str] | None:
        from botocore.exceptions import ClientError

        try:
            reply = self._client.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
        metadata: dict[str, str] = reply["Metadata"]
        return metadata

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        config = Config(
            connect_timeout=10, read_timeout=60, retries={"mode": "standard", "max_attempts": 5}
        )
        return boto3.session.Session().client("s3", config=config)

    def __getstate__(self) -> dict[str, str]:
        return {"bucket": self.bucket, "prefix": self.prefix}  # a client can't be pickled
