"""The object store on any S3: multipart upload, presigned addresses, botocore's own retries."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import SecretStr

from paredown.core.errors import NotFound, StorageUnavailable
from paredown.core.settings import Settings
from paredown.core.storage import CHUNK_BYTES, StoredObject, checked_key, checked_prefix, storage_error

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

PART_BYTES = 16 * 2**20
# Objects that S3 lists, and deletes, in one request.
PAGE_OBJECTS = 1000
_MISSING = ("404", "NoSuchKey", "NotFound")
_RANGE_BEYOND = ("416", "InvalidRange")


@dataclass(frozen=True)
class S3Keys:
    """Who we are to a server. Without keys boto3 looks for its own: a profile, a role of the machine."""

    region: str
    access_key: SecretStr | None
    secret_key: SecretStr | None


def s3_client(settings: Settings, endpoint: str | None, keys: S3Keys, *, signed: bool = True) -> "S3Client":
    """A client with bounded waits and botocore's standard retries. Not `signed`: it sends no credentials at all."""
    client: S3Client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=keys.region,
        aws_access_key_id=keys.access_key.get_secret_value() if keys.access_key else None,
        aws_secret_access_key=keys.secret_key.get_secret_value() if keys.secret_key else None,
        config=Config(
            connect_timeout=settings.connect_timeout_seconds,
            read_timeout=settings.read_timeout_seconds,
            retries={"mode": "standard", "total_max_attempts": 4},
            # Self-hosted servers have no DNS name for each bucket.
            s3={"addressing_style": "path" if endpoint else "auto"},
            signature_version="s3v4" if signed else UNSIGNED,
        ),
    )
    return client


class S3Store:
    """One prefix of one bucket, which `prepare` makes where there is none."""

    def __init__(self, settings: Settings, bucket: str, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        keys = S3Keys(settings.s3_region, settings.s3_access_key, settings.s3_secret_key)
        self._client = s3_client(settings, settings.s3_endpoint, keys)
        # A signature covers the host, so addresses for users are signed for the name that users see.
        public = settings.s3_public_endpoint or settings.s3_endpoint
        self._public = s3_client(settings, public, keys)
        self._transfer = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4
        )

    def put_file(self, key: str, path: Path, sha256: str) -> None:
        with self._translated(key):
            # Each part travels with a SHA-256 that the server checks; the file's own stays with the object.
            extra = {"ChecksumAlgorithm": "SHA256", "Metadata": {"sha256": sha256}}
            self._client.upload_file(str(path), self._bucket, self._key(key), ExtraArgs=extra, Config=self._transfer)
        stored, expected = self.size(key), path.stat().st_size
        if stored != expected:
            raise StorageUnavailable(f"{key} was stored with {stored} of {expected} bytes; try again.")

    def put_bytes(self, key: str, data: bytes) -> None:
        with self._translated(key):
            self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data, ChecksumAlgorithm="SHA256")

    def get_file(self, key: str, path: Path) -> None:
        staged = path.with_name(f".{uuid.uuid4().hex}.part")
        with self._translated(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._client.download_file(self._bucket, self._key(key), str(staged), Config=self._transfer)
                with staged.open("rb") as stream:
                    os.fsync(stream.fileno())
                staged.replace(path)
            finally:
                staged.unlink(missing_ok=True)

    def read_range(self, key: str, start: int, length: int) -> Iterator[bytes]:
        if length <= 0:
            return iter(())
        with self._translated(key):
            try:
                answer = self._client.get_object(
                    Bucket=self._bucket, Key=self._key(key), Range=f"bytes={start}-{start + length - 1}"
                )
            except ClientError as error:
                if error.response["Error"]["Code"] in _RANGE_BEYOND:
                    return iter(())
                raise
        return self._chunks(key, answer["Body"])

    def _chunks(self, key: str, body: Any) -> Iterator[bytes]:
        with self._translated(key):
            try:
                yield from body.iter_chunks(CHUNK_BYTES)
            finally:
                body.close()

    def size(self, key: str) -> int | None:
        try:
            with self._translated(key):
                return self._client.head_object(Bucket=self._bucket, Key=self._key(key))["ContentLength"]
        except NotFound:
            return None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        with self._translated(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix, PaginationConfig={"PageSize": PAGE_OBJECTS}
            )
            for page in pages:
                for item in page.get("Contents", []):
                    yield StoredObject(item["Key"][len(self._prefix) :], item["Size"], item["LastModified"])

    def delete(self, key: str) -> None:
        with self._translated(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(key))

    def delete_prefix(self, prefix: str) -> None:
        keys = [item.key for item in self.list(checked_prefix(prefix))]
        with self._translated(prefix):
            for first in range(0, len(keys), PAGE_OBJECTS):
                batch: list[ObjectIdentifierTypeDef] = [
                    {"Key": self._prefix + key} for key in keys[first : first + PAGE_OBJECTS]
                ]
                answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": batch, "Quiet": True})
                if failed := answer.get("Errors"):
                    raise StorageUnavailable(f"{len(failed)} objects below {prefix} could not be deleted; try again.")

    def remove_unfinished(self, before: datetime) -> int:
        removed = 0
        with self._translated(""):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._bucket, Prefix=self._prefix
            )
            for upload in (upload for page in pages for upload in page.get("Uploads", [])):
                if upload["Initiated"] < before:
                    self._client.abort_multipart_upload(
                        Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                    removed += 1
        return removed

    def url(self, key: str, filename: str, expires_seconds: int) -> str | None:
        with self._translated(key):
            return self._public.generate_presigned_url(
                "get_object",
                Params={
                    "Bucket": self._bucket,
                    "Key": self._key(key),
                    "ResponseContentDisposition": f"attachment; filename*=UTF-8''{quote(filename, safe='')}",
                },
                ExpiresIn=expires_seconds,
            )

    def check(self) -> None:
        try:
            with self._translated(""):
                self._client.head_bucket(Bucket=self._bucket)
        except NotFound as error:
            raise StorageUnavailable(f"The bucket {self._bucket} does not exist; create it.") from error

    def prepare(self) -> None:
        region = self._client.meta.region_name
        # us-east-1 is the one region that must not be named.
        where: Any = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        known = self._client.exceptions
        # Somebody else's bucket of that name is told by the check.
        with self._translated(""), suppress(known.BucketAlreadyOwnedByYou, known.BucketAlreadyExists):
            self._client.create_bucket(Bucket=self._bucket, **where)
        self.check()

    def _key(self, key: str) -> str:
        return self._prefix + checked_key(key)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _MISSING:
                raise NotFound(f"There is no object {key!r}.") from error
            raise StorageUnavailable(f"The object store refused ({code}); an operator should look at it.") from error
        except (BotoCoreError, Boto3Error) as error:
            raise StorageUnavailable("The object store cannot be reached; try again in a moment.") from error
        except OSError as error:
            raise storage_error(error, "The local disk") from error
