"""A bucket as a Store."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final, cast

from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_common.errors import TuneryError
from tunery_common.storage import bodies, s3_errors, transfer
from tunery_common.storage.base import (
    Entry,
    ObjectExists,
    ObjectMissing,
    ObjectReplaced,
    OnBytes,
    PutResult,
    check_key,
)
from tunery_common.storage.bodies import Span
from tunery_common.storage.s3_client import transfer_config

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

_CONFLICT_ATTEMPTS: Final = 8
_AMAZON: Final = ".amazonaws.com"
"""In the endpoint that boto3 takes where none was named."""


class S3Store:
    """One bucket. `who` names the credentials in messages, `field` the manifest field that led here."""

    def __init__(self, client: S3Client, bucket: str, who: str, field: str) -> None:
        self._client = client
        self._bucket = bucket
        self._who = who
        self._field = field

    def uri(self, key: str = "") -> str:
        return f"s3://{self._bucket}/{key}" if key else f"s3://{self._bucket}"

    def list(self, prefix: str, most: int | None = None, *, nested: bool = True) -> list[Entry]:
        folder = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        with self._errors("s3:ListBucket", folder):
            paginator, delimiter = self._client.get_paginator("list_objects_v2"), "" if nested else "/"
            pages = paginator.paginate(Bucket=self._bucket, Prefix=folder, Delimiter=delimiter)
            found = list(islice((item for page in pages for item in page.get("Contents", [])), most))
        entries = [Entry(item["Key"], item["Size"], item.get("ETag", "")) for item in found]
        # Consoles and some servers mark "folders" with empty objects whose key ends in a slash.
        return sorted((e for e in entries if not e.key.endswith("/")), key=lambda entry: entry.key)

    def head(self, key: str) -> Entry | None:
        try:
            answer = self._client.head_object(Bucket=self._bucket, Key=self._key(key))
        except ClientError as error:
            if not s3_errors.is_no_key(error):
                raise self._translated(error, "s3:GetObject", key) from error
            self._check_bucket()
            return None
        except (BotoCoreError, HTTPError) as error:
            raise self._translated(error, "s3:GetObject", key) from error
        if "ContentLength" not in answer:
            message = f"{self._field}: {self.uri(key)}: the server does not say how large it is"
            raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, message)
        return Entry(key, answer["ContentLength"], answer.get("ETag", ""))

    def read_bytes(self, key: str) -> bytes:
        with self._errors("s3:GetObject", key):
            return bodies.whole(lambda: self._client.get_object(Bucket=self._bucket, Key=self._key(key)), Span())

    def read_range(self, key: str, start: int, length: int) -> bytes:
        if length <= 0:
            return b""
        span = Span(start, length)

        def ask() -> GetObjectOutputTypeDef:
            return self._client.get_object(Bucket=self._bucket, Key=self._key(key), Range=span.header)

        try:
            with self._errors("s3:GetObject", key):
                return bodies.whole(ask, span)
        except TuneryError as error:
            if error.__cause__ is not None and s3_errors.http_status(error.__cause__) == 416:
                return b""  # starts behind the end
            raise

    def stream(self, entry: Entry, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        if start >= entry.size or length == 0:
            return
        left = entry.size - start
        span = Span(start, length, left if length is None else min(length, left))
        with self._errors("s3:GetObject", entry.key):
            yield from bodies.chunks(self._get(entry, span), span)

    def _get(self, entry: Entry, span: Span) -> GetObjectOutputTypeDef:
        try:
            answer = self._client.get_object(
                Bucket=self._bucket, Key=self._key(entry.key), Range=span.header, IfMatch=entry.version or "*"
            )
        except ClientError as error:
            if s3_errors.is_precondition_failed(error):
                raise ObjectReplaced(f"{self._field}: {self.uri(entry.key)}") from error
            raise
        said = answer.get("ETag")
        if said and entry.version and _bare(said) != _bare(entry.version):  # some servers take no notice of IfMatch
            answer["Body"].close()
            raise ObjectReplaced(f"{self._field}: {self.uri(entry.key)}")
        return answer

    def download(self, key: str, path: Path, progress: OnBytes | None = None) -> str:
        return transfer.download(self, key, path, progress)

    def upload_file(self, path: Path, key: str, progress: OnBytes | None = None, *, if_none_match: bool = False) -> str:
        return (self._upload_if_absent if if_none_match else self._upload)(path, key, progress)

    def _upload(self, path: Path, key: str, progress: OnBytes | None) -> str:
        size = path.stat().st_size
        with path.open("rb") as file, self._errors("s3:PutObject", key):
            reader = _HashingReader(file, progress)
            body = cast("IO[bytes]", reader)  # boto3 asks for read() only
            self._client.upload_fileobj(body, self._bucket, self._key(key), Config=transfer_config(size))
        if reader.count != size:
            message = f"{path} changed while it was uploaded: {reader.count:,} bytes sent, it had {size:,}"
            raise TuneryError(FailureReason.INTERNAL_ERROR, message)
        return reader.hexdigest()

    def _upload_if_absent(self, path: Path, key: str, progress: OnBytes | None) -> str:
        try:
            with _if_none_match(self._client, self._bucket, key):
                return self._upload(path, key, progress)
        except TuneryError as error:
            if error.__cause__ is not None and s3_errors.is_precondition_failed(error.__cause__):
                raise ObjectExists(self.uri(key)) from error
            if error.__cause__ is None or not s3_errors.is_unconditional_server(error.__cause__):
                raise
        if self.head(key) is not None:
            raise ObjectExists(self.uri(key))
        return self._upload(path, key, progress)

    def put_bytes(self, key: str, data: bytes, *, if_none_match: bool = False) -> PutResult:
        if if_none_match:
            return self._put_if_absent(key, data)
        with self._errors("s3:PutObject", key):
            self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data)
        return PutResult()

    def delete(self, key: str) -> None:
        with self._errors("s3:DeleteObject", key):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(key))

    def abort_stale_uploads(self, prefix: str, older_than_seconds: float) -> int:
        limit = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
        folder = f"{prefix.strip('/')}/"
        aborted = 0
        with self._errors("s3:ListBucketMultipartUploads", folder):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=folder)
            uploads = [upload for page in pages for upload in page.get("Uploads", [])]
        for upload in uploads:
            # Checked again: a server that ignores Prefix must not make us abort someone else's upload.
            if upload["Key"].startswith(folder) and upload["Initiated"] < limit:
                with self._errors("s3:AbortMultipartUpload", upload["Key"]):
                    self._client.abort_multipart_upload(
                        Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                aborted += 1
        return aborted

    def _put_if_absent(self, key: str, data: bytes) -> PutResult:
        for attempt in range(_CONFLICT_ATTEMPTS):
            try:
                self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data, IfNoneMatch="*")
                return PutResult()
            except (ClientError, BotoCoreError, HTTPError) as error:
                if s3_errors.is_precondition_failed(error):
                    raise ObjectExists(self.uri(key)) from error
                if s3_errors.is_unconditional_server(error):
                    return self._head_then_put(key, data)
                if not s3_errors.is_conflict(error) or attempt == _CONFLICT_ATTEMPTS - 1:
                    raise self._translated(error, "s3:PutObject", key) from error
            time.sleep(0.05 * 2**attempt)
        raise RuntimeError("unreachable: the last attempt returns or raises")

    def _head_then_put(self, key: str, data: bytes) -> PutResult:
        if self.head(key) is not None:
            raise ObjectExists(self.uri(key))
        self.put_bytes(key, data)
        return PutResult(atomic=False)

    def _check_bucket(self) -> None:
        """A HEAD has no body, so a missing bucket and a missing object both answer 404; a GET tells them apart."""
        with self._errors("s3:ListBucket", ""):
            try:
                self._client.list_objects_v2(Bucket=self._bucket, MaxKeys=1)
            except ClientError as error:
                if s3_errors.error_code(error) == "NoSuchBucket":
                    raise
                # Credentials without the right to list may still read and write objects.

    def _key(self, key: str) -> str:
        return check_key(key, self.uri())

    def _translated(self, error: Exception, action: str, key: str) -> TuneryError:
        found = s3_errors.translate(error, action, self.uri(key), self._who)
        remedies = found.remedies
        if _AMAZON in self._client.meta.endpoint_url and s3_errors.may_be_another_server(error):
            remedies += (retry(f"Set AWS_ENDPOINT_URL in {self._who} if the bucket is not stored at Amazon"),)
        return found.with_(message=f"{self._field}: {found.message}", remedies=remedies)

    @contextmanager
    def _errors(self, action: str, key: str) -> Iterator[None]:
        try:
            yield
        except (ClientError, BotoCoreError, HTTPError, ConnectionError) as error:
            if s3_errors.is_no_key(error) and key:
                raise ObjectMissing(self.uri(key)) from error
            raise self._translated(error, action, key) from error


@contextmanager
def _if_none_match(client: S3Client, bucket: str, key: str) -> Iterator[None]:
    """Have uploads to `key` refused where it exists; boto3's own transfers have no argument for it."""

    def add(params: dict[str, Any], **_: object) -> None:
        if (params["Bucket"], params["Key"]) == (bucket, key):
            params["IfNoneMatch"] = "*"

    events = [f"provide-client-params.s3.{name}" for name in ("PutObject", "CompleteMultipartUpload")]
    for event in events:
        client.meta.events.register(event, add)
    try:
        yield
    finally:
        for event in events:
            client.meta.events.unregister(event, add)


def _bare(etag: str) -> str:
    """Return an ETag as any server or proxy means it: weakened on its way or not, in quotes or not."""
    return etag.removeprefix("W/").strip('"')


class _HashingReader:
    """A file that can only be read forward, so that the bytes hashed are the bytes sent."""

    def __init__(self, file: BinaryIO, progress: OnBytes | None) -> None:
        self._file = file
        self._progress = progress
        self._sha = hashlib.sha256()
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._sha.update(data)
        self.count += len(data)
        if self._progress is not None and data:
            self._progress(len(data))
        return data

    def hexdigest(self) -> str:
        return self._sha.hexdigest()
