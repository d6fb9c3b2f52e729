"""Storage in S3 or an object store that speaks its language. The only file that imports boto3."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from s3ta.errors import UserError
from s3ta_platform.storage_names import (
    TEMPORARY,
    Names,
    NotStored,
    StoreAwayError,
    check_name,
    check_prefix,
)

Items = list[dict[str, Any]]  # inside the class `list` is a method


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
        return list(self.sizes(prefix))

    def used(self, prefix: str = "") -> int:
        return sum(item["Size"] for item in self._listed(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        items = self._listed(prefix)
        found = {item["Key"].removeprefix(self._start): item["Size"] for item in items}
        return {name: found[name] for name in sorted(filter(_is_value, found))}

    def temporaries(self, older_than_s: float = 86400.0) -> dict[str, int]:
        return {}  # a put appears whole or not at all

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

    def _listed(self, prefix: str) -> Items:
        start = self._start + check_prefix(prefix)
        with self._answering():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=start
            )
            return [item for page in pages for item in page.get("Contents", [])]

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


def _is_value(name: str) -> bool:
    """Not one of the storage's own names, nor another tool's mark of a folder."""
    return "/." not in f"/{name}" and not name.endswith("/")
