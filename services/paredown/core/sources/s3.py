"""s3://bucket/prefix and s3://bucket/file.gguf, with the credentials an operator gave for sources, or none at all.

Never with the machine's own role: a user who names a bucket must not read what only this service may.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from urllib.parse import unquote

from botocore.exceptions import BotoCoreError, ClientError

from paredown.core.errors import NotAModel, SourceError, SourceNotAllowed, SourceNotFound, SourceUnreachable
from paredown.core.settings import Settings
from paredown.core.sources.base import CHUNK_BYTES, SourceChanged, SourceFile
from paredown.core.sources.text import bounded, column_of
from paredown.core.storage_s3 import S3Keys, s3_client

_MAX_ENTRIES = 10_000


class S3Source:
    revision: str | None = None

    def __init__(self, uri: str, settings: Settings) -> None:
        bucket, _, key = unquote(uri.removeprefix("s3://")).partition("/")
        if not bucket:
            raise SourceError(f"{uri} names no bucket; write s3://bucket/prefix.")
        self._uri, self._bucket = uri, bucket
        directory, _, name = key.rpartition("/")
        self.gguf_file = name if name.endswith(".gguf") else None
        prefix = directory if self.gguf_file else key.rstrip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        keys = S3Keys(settings.source_s3_region, settings.source_s3_access_key, settings.source_s3_secret_key)
        has_keys = keys.access_key is not None and keys.secret_key is not None
        self._client = s3_client(settings, settings.source_s3_endpoint, keys, signed=has_keys)

    def files(self) -> dict[str, SourceFile]:
        return self._files

    @cached_property
    def _files(self) -> dict[str, SourceFile]:
        if self.gguf_file is not None:
            with self._translated(self.gguf_file):
                answer = self._client.head_object(Bucket=self._bucket, Key=self._prefix + self.gguf_file)
            return {self.gguf_file: SourceFile(self.gguf_file, answer["ContentLength"], answer["ETag"])}
        found: dict[str, SourceFile] = {}
        with self._translated(self._prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
            )
            for page in pages:
                for item in page.get("Contents", []):
                    name = item["Key"][len(self._prefix) :]
                    if name:
                        found[name] = SourceFile(name, item["Size"], item["ETag"])
                if len(found) > _MAX_ENTRIES:
                    raise NotAModel(f"{self._uri} holds more than {_MAX_ENTRIES} objects; a model has fewer.")
        if not found:
            raise SourceNotFound(f"{self._uri} holds no objects.")
        return found

    def stream(self, file: SourceFile, start: int, length: int | None = None) -> Iterator[bytes]:
        if start >= file.size_bytes:
            return
        last = file.size_bytes - 1 if length is None else min(file.size_bytes, start + length) - 1
        with self._translated(file.path):
            answer = self._client.get_object(
                Bucket=self._bucket,
                Key=self._prefix + file.path,
                Range=f"bytes={start}-{last}",
                IfMatch=file.identity or "*",
            )
            body = answer["Body"]
            try:
                yield from body.iter_chunks(CHUNK_BYTES)
            finally:
                body.close()

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        what = f"s3://{self._bucket}/{self._prefix}{name.removeprefix(self._prefix)}"
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("404", "NoSuchKey", "NoSuchBucket", "NotFound"):
                raise SourceNotFound(f"{what} does not exist.") from error
            if code in ("401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
                raise SourceNotAllowed(f"{what} may not be read with the credentials of this service.") from error
            if code in ("412", "PreconditionFailed"):
                raise SourceChanged(what) from error
            raise SourceUnreachable(f"{what} cannot be read: the server answered {code}.") from error
        except BotoCoreError as error:
            raise SourceUnreachable(f"{what} cannot be read: {str(error)[:200]}.") from error


def check_s3_text(uri: str, settings: Settings) -> None:
    del settings
    _text_name(uri)


def read_s3_text(uri: str, settings: Settings) -> bytes:
    name, data = read_s3(uri, settings)
    return column_of(data, name, "text")


def read_s3(uri: str, settings: Settings) -> tuple[str, bytes]:
    """Name and bytes of an object."""
    name = _text_name(uri)
    source = S3Source(uri.removesuffix(name), settings)
    try:
        file = source.files().get(name)
        if file is None:
            raise SourceNotFound(f"{uri} does not exist.")
        return name, bounded(source.stream(file, 0), name)
    finally:
        source.close()


def _text_name(uri: str) -> str:
    name = uri.rpartition("/")[2]
    if not name or uri.count("/") < 3:
        raise SourceError(f"{uri} names no object; write s3://bucket/file.txt.")
    return name
