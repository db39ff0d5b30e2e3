"""A bucket that demands encryption gets each write with its headers: SSE-S3 from a real server, KMS on the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from botocore.exceptions import ClientError

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage import StorePath, open_store, s3_client, s3_errors
from tunery_common.storage import credentials as credentials_module
from tunery_common.storage.credentials import Credentials
from tunery_common.storage.probe import probe
from tunery_common.storage.published_folder import verify
from tunery_common.storage.publisher import Target, publish
from tunery_common.storage.s3 import S3Store
from tunery_common.storage.transfer import hash_file

from kit.results import lineage, make_folder, run
from kit.s3 import credentials
from tools.cluster.s3 import S3Server

FIELD = "spec.output.uri"
KEY = "arn:aws:kms:eu-central-1:111122223333:key/0d9c0e5c"
AES, KMS = {"AWS_SERVER_SIDE_ENCRYPTION": "AES256"}, {"AWS_SERVER_SIDE_ENCRYPTION": "aws:kms"}


@pytest.fixture
def demanding(s3_server: S3Server, bucket: str) -> str:
    """A bucket whose policy refuses each write that does not ask for SSE-S3."""
    refused = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": f"arn:aws:s3:::{bucket}/*",
        "Condition": {"StringNotEquals": {"s3:x-amz-server-side-encryption": "AES256"}},
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [refused]})
    s3_server.client().put_bucket_policy(Bucket=bucket, Policy=policy)
    return bucket


def test_a_bucket_that_demands_encryption_says_so_and_is_served_with_it(
    s3_server: S3Server, demanding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "MULTIPART_THRESHOLD", 5 << 20)
    monkeypatch.setattr(s3_client, "_PART_BYTES", 5 << 20)
    folder, large = make_folder(tmp_path / "out"), tmp_path / "large"
    large.write_bytes(bytes(6 << 20))
    plain, _ = open_store(f"s3://{demanding}", credentials(s3_server), FIELD)
    with pytest.raises(TuneryError, match=r"s3:PutObject was denied \(AccessDenied\)") as caught:
        probe(Target(StorePath(plain, "a/bot"), run()))
    assert "Set AWS_SERVER_SIDE_ENCRYPTION in the Secret s3" in caught.value.remedies[-1].text
    store, _ = open_store(f"s3://{demanding}", credentials(s3_server, None, **AES), FIELD)
    probe(Target(StorePath(store, "a/bot"), run()))
    publish(folder, Target(StorePath(store, "a/bot"), run()), lineage())
    verify(StorePath(store, "a/bot"))
    client = s3_server.client()
    # This server holds parts to the policy, too; Amazon takes what was said as their upload began.
    client.delete_bucket_policy(Bucket=demanding)
    assert store.upload_file(large, "a/bot/large") == hash_file(large)
    assert store.download("a/bot/large", tmp_path / "back") == hash_file(large)
    encrypted = {
        entry.key: client.head_object(Bucket=demanding, Key=entry.key).get("ServerSideEncryption")
        for entry in store.list("a/bot")
    }
    assert set(encrypted.values()) == {"AES256"}
    assert {"a/bot/large", "a/bot/manifest.json"} <= set(encrypted)


class Recorder(ThreadingHTTPServer):
    """Answers as S3 does, and keeps what each write said of its encryption."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: dict[str, dict[str, str]] = {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        self._answer("part" if "partNumber" in self.path else "put" if "copy" not in self.path else "copy", b"")

    def do_POST(self) -> None:
        begins = self.path.endswith("?uploads")
        body = b"<r><UploadId>u</UploadId></r>" if begins else b"<r><ETag>e</ETag></r>"
        self._answer("create" if begins else "complete", body)

    def _answer(self, what: str, body: bytes) -> None:
        assert isinstance(self.server, Recorder)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        said = {name.lower(): value for name, value in self.headers.items()}
        begins = "x-amz-server-side-encryption"
        self.server.asked[what] = {name[len(begins) :]: said[name] for name in said if name.startswith(begins)}
        self.send_response(200)
        self.send_header("ETag", '"e"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    server = Recorder()
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def secret(recorder: Recorder, folder: Path, **values: str) -> Credentials:
    """Return what a mounted Secret says, with what is in the environment under it."""
    host = f"http://127.0.0.1:{recorder.server_address[1]}"
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": host}
    folder.mkdir()
    for name, value in (keys | values).items():
        (folder / name).write_text(f"{value}\n")
    return credentials_module.from_secret(folder, "s3")


FULL = {"": "aws:kms", "-aws-kms-key-id": KEY, "-bucket-key-enabled": "true"}
WAYS = {
    "a key of KMS": ({**KMS, "AWS_SSE_KMS_KEY_ID": KEY, "AWS_SSE_BUCKET_KEY_ENABLED": "true"}, {}, FULL),
    "a key alone means KMS": ({"AWS_SSE_KMS_KEY_ID": KEY}, {}, {"": "aws:kms", "-aws-kms-key-id": KEY}),
    "twice, by the bucket's key": ({"AWS_SERVER_SIDE_ENCRYPTION": "aws:kms:dsse"}, {}, {"": "aws:kms:dsse"}),
    "as the platform says": ({}, {**KMS, "AWS_SSE_KMS_KEY_ID": KEY}, {"": "aws:kms", "-aws-kms-key-id": KEY}),
    "a Secret's own way goes first": (AES, {**KMS, "AWS_SSE_KMS_KEY_ID": KEY}, {"": "AES256"}),
    "a Secret wants none": ({"AWS_SERVER_SIDE_ENCRYPTION": ""}, {**KMS, "AWS_SSE_KMS_KEY_ID": KEY}, {}),
    "nobody asks": ({}, {}, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_whatever_begins_an_object_asks_for_its_encryption(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    said, platform, expected = WAYS[way]
    for name, value in platform.items():
        monkeypatch.setenv(name, value)
    found = secret(recorder, tmp_path / "s3", **said)
    client = s3_client.make_client(found, FIELD)
    S3Store(client, "b", found.source, FIELD).put_bytes("claim", b"{}", if_none_match=True)
    assert recorder.asked == {"put": expected}


def test_parts_and_copies_ask_for_it_where_they_begin(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "MULTIPART_THRESHOLD", 5 << 20)
    monkeypatch.setattr(s3_client, "_PART_BYTES", 5 << 20)
    client = s3_client.make_client(secret(recorder, tmp_path / "s3", **KMS, AWS_SSE_KMS_KEY_ID=KEY), FIELD)
    (tmp_path / "file").write_bytes(bytes(6 << 20))
    S3Store(client, "b", "the Secret s3", FIELD).upload_file(tmp_path / "file", "large")
    client.copy_object(Bucket="b", Key="copy", CopySource="b/large")
    begins = {"": "aws:kms", "-aws-kms-key-id": KEY}
    assert recorder.asked == {"create": begins, "part": {}, "complete": {}, "copy": begins}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"AWS_SERVER_SIDE_ENCRYPTION": "KMS"}, "must be AES256, aws:kms or aws:kms:dsse"),
        ({**AES, "AWS_SSE_KMS_KEY_ID": KEY}, "AWS_SSE_KMS_KEY_ID in the Secret s3 goes with"),
        ({**KMS, "AWS_SSE_BUCKET_KEY_ENABLED": "yes"}, "must be true or false"),
        ({"AWS_SSE_BUCKET_KEY_ENABLED": "true"}, "AWS_SSE_BUCKET_KEY_ENABLED in the Secret s3 goes with"),
    ],
)
def test_what_is_no_encryption_is_refused_before_anything_is_asked(
    s3_server: S3Server, values: dict[str, str], said: str
) -> None:
    with pytest.raises(TuneryError, match=said) as caught:
        open_store("s3://b/out", credentials(s3_server, None, **values), FIELD)
    assert caught.value.reason is FailureReason.INVALID_SPEC


@pytest.mark.parametrize(
    ("status", "code", "words", "said"),
    [
        (403, "AccessDenied", f"User: x is not authorized to perform: kms:GenerateDataKey on {KEY}", "needs kms:Gen"),
        (400, "KMS.NotFoundException", f"Key {KEY} does not exist", "cannot be used (KMS.NotFoundException)"),
    ],
)
def test_a_key_that_cannot_be_used_is_told_as_one(status: int, code: str, words: str, said: str) -> None:
    """In Amazon's words: no server here has KMS."""
    answer = {"Error": {"Code": code, "Message": words}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = s3_errors.translate(ClientError(answer, "PutObject"), "s3:PutObject", "s3://b/x", "the Secret s3")  # type: ignore[arg-type]
    assert error.reason is FailureReason.STORAGE_ACCESS_DENIED
    assert said in error.message
    assert "kms:Decrypt" in error.remedies[0].text
