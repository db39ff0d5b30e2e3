"""Every way storage fails has its reason, and a sentence that names the place and the action."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import save_file

from tunery_api.reasons import FailureReason
from tunery_api.redact import redact
from tunery_api.remedies import Action
from tunery_common.errors import TuneryError
from tunery_common.storage import LocalStore, Store, StorePath, open_store, s3_client, transfer
from tunery_common.storage import credentials as credentials_module
from tunery_common.storage.cleanup import remove_stale_uploads
from tunery_common.storage.credentials import Credentials
from tunery_common.storage.probe import probe
from tunery_common.storage.publisher import Target, publish
from tunery_trainer.process.failures import explain

from kit import mounts
from kit.results import lineage, make_folder, run
from kit.s3 import credentials
from tools.cluster.s3 import S3Server


def _open(s3_server: S3Server, uri: str, **values: str) -> tuple[Store, str]:
    return open_store(uri, credentials(s3_server, None, **values), "spec.output.uri")


def _failure(store: Store, prefix: str) -> TuneryError:
    with pytest.raises(TuneryError) as caught:
        probe(Target(StorePath(store, prefix), run()))
    assert caught.value.__cause__ is not None
    return caught.value


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret-key"}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "AKIANOBODY0000000000"}, "InvalidAccessKeyId"),
    ],
    ids=["secret", "id"],
)
def test_wrong_keys(s3_server: S3Server, bucket: str, values: dict[str, str], code: str) -> None:
    error = _failure(*_open(s3_server, f"s3://{bucket}/out", **values))
    assert error.reason is FailureReason.STORAGE_ACCESS_DENIED
    assert f"s3://{bucket}/out" in error.message
    assert code in error.message
    assert not any(value in error.message for value in values.values())


@pytest.mark.parametrize("act", ["probe", "head", "list", "read"])
def test_missing_bucket(s3_server: S3Server, act: str) -> None:
    store, prefix = _open(s3_server, "s3://no-such-bucket-here/out")
    acts: dict[str, Callable[[], object]] = {
        "probe": lambda: probe(Target(StorePath(store, prefix), run())),
        "head": lambda: store.head("out/x"),
        "list": lambda: store.list("out"),
        "read": lambda: store.read_bytes("out/x"),
    }
    with pytest.raises(TuneryError, match=r"s3://no-such-bucket-here.*bucket does not exist") as caught:
        acts[act]()
    assert caught.value.reason is FailureReason.STORAGE_NOT_FOUND


def test_endpoint_down_says_so_soon(s3_server: S3Server) -> None:
    started = time.monotonic()
    error = _failure(*_open(s3_server, "s3://b/out", AWS_ENDPOINT_URL="http://127.0.0.1:1"))
    assert error.reason is FailureReason.STORAGE_UNAVAILABLE
    assert "127.0.0.1:1" in error.message
    assert time.monotonic() - started < 60


def test_a_forgotten_endpoint_is_named(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_host(*_: object, **__: object) -> list[object]:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(s3_client, "LONG", s3_client.Patience(attempts=1))
    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    keys = {name: value for name, value in s3_server.environment().items() if "ENDPOINT" not in name}
    error = _failure(*open_store("s3://b/out", Credentials("the Secret s3", keys), "spec.output.uri"))
    assert error.reason is FailureReason.STORAGE_UNAVAILABLE
    assert "Set AWS_ENDPOINT_URL in the Secret s3" in error.remedies[-1].text
    ours = _failure(*_open(s3_server, "s3://b/out", AWS_ENDPOINT_URL="http://nowhere.invalid"))
    assert not any("AWS_ENDPOINT_URL" in remedy.text for remedy in ours.remedies)


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://169.254.169.254",
        "http://169.254.170.2:80/",
        "http://[fe80::1]:9000",
        "http://[::ffff:169.254.169.254]",
        "http://2852039166",
        "http://0xa9fea9fe",
    ],
)
def test_link_local_endpoints_are_refused(s3_server: S3Server, endpoint: str) -> None:
    with pytest.raises(TuneryError, match="AWS_ENDPOINT_URL in the Secret s3 leads to the link-local") as caught:
        _open(s3_server, "s3://b/out", AWS_ENDPOINT_URL=endpoint)
    assert caught.value.reason is FailureReason.INVALID_SPEC


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"AWS_ENDPOINT_URL": "ftp://host"}, "is not an http"),
        ({"AWS_ENDPOINT_URL": "minio:9000"}, "is not an http"),
        ({"AWS_ENDPOINT_URL": "http://host/?x=1"}, "has a query"),
        ({"AWS_S3_ADDRESSING_STYLE": "paths"}, "must be auto, virtual or path"),
        ({"AWS_ENDPOINT_URL": "http://host:70000"}, "is not a URL"),
    ],
)
def test_settings_that_cannot_be(s3_server: S3Server, values: dict[str, str], says: str) -> None:
    with pytest.raises(TuneryError, match=says) as caught:
        _open(s3_server, "s3://b/out", **values)
    assert caught.value.reason is FailureReason.INVALID_SPEC


@pytest.mark.parametrize(
    "uri", ["gs://b/x", "s3:///x", "s3://b//x", "file:///", "file:////x", "s3://b/../x", "pvc://claim/x"]
)
def test_uris_that_are_no_storage(uri: str) -> None:
    with pytest.raises(TuneryError, match=r"spec\.output\.uri") as caught:
        open_store(uri, Credentials("x"), "spec.output.uri")
    assert caught.value.reason is FailureReason.INVALID_SPEC


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounts.small_disk(tmp_path / "small") as folder:
        yield folder


def test_full_disk_while_downloading(store: Store, small_disk: Path) -> None:
    store.put_bytes("big", b"x" * (3 << 20))
    with pytest.raises(TuneryError, match="no space left") as caught:
        store.download("big", small_disk / "big")
    assert caught.value.reason is FailureReason.DISK_FULL
    assert not (small_disk / "big").exists()


def test_a_disk_that_others_fill_while_downloading(
    store: Store, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_bytes("big", b"x" * (3 << 20))
    monkeypatch.setattr(transfer, "_check_room", lambda *_: None)
    with pytest.raises(TuneryError, match="no space left") as caught:
        store.download("big", small_disk / "big")
    assert caught.value.reason is FailureReason.DISK_FULL
    assert not (small_disk / "big").exists()


def test_full_disk_while_publishing(small_disk: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "out")
    (folder / "big.safetensors").write_bytes(b"x" * (3 << 20))
    store = LocalStore(small_disk, small_disk.as_uri(), "spec.output.uri")
    with pytest.raises(TuneryError, match="no space left") as caught:
        publish(folder, Target(StorePath(store, "p"), run()), lineage())
    assert caught.value.reason is FailureReason.DISK_FULL
    assert [(each.action, each.fields) for each in caught.value.remedies] == [
        (Action.RETRY, []),
        (Action.RECREATE, ["output.uri"]),
    ]
    assert store.head("p/manifest.json") is None
    assert not list(small_disk.rglob("*.tmp"))


@pytest.mark.parametrize("left", [0, 1 << 14])
@pytest.mark.parametrize("save", [torch.save, save_file], ids=["torch", "safetensors"])
def test_a_disk_that_is_full_as_a_checkpoint_is_written(
    small_disk: Path, save: Callable[[dict[str, torch.Tensor], Path], None], left: int
) -> None:
    with (small_disk / "other").open("wb") as file:
        file.truncate(0)
        os.posix_fallocate(file.fileno(), 0, (1 << 20) - left)
    with pytest.raises(Exception, match=r"unexpected pos|iostream|No space left") as caught:
        save({"weights": torch.ones(1 << 16)}, small_disk / "checkpoint")
    failure = explain(caught.value)
    assert failure.reason is FailureReason.DISK_FULL
    assert failure.message.startswith("no space left on the disk: ")


def test_a_file_that_cannot_be_read_is_no_full_disk(tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"PK\x03\x04" * 9)
    with pytest.raises(RuntimeError, match="PytorchStreamReader") as caught:
        torch.load(tmp_path / "bad.pt")
    assert explain(caught.value).reason is FailureReason.INTERNAL_ERROR


def test_folder_that_may_not_be_written(tmp_path: Path) -> None:
    """As a user that is not root: root may write everywhere."""
    folder = tmp_path / "readonly"
    folder.mkdir(mode=0o555)
    program = (
        "import os, pathlib, sys; os.geteuid() or os.setuid(65534)\n"
        "from tunery_common.storage import LocalStore\n"
        "from tunery_common.errors import TuneryError\n"
        "try: LocalStore(pathlib.Path('.'), 'file:///out', 'spec.output.uri').put_bytes('x', b'')\n"
        "except TuneryError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import tunery_common.storage\n" + program],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "StorageAccessDenied: spec.output.uri: not allowed to write file:///out/x\n", done.stderr


class Unconditional(BaseHTTPRequestHandler):
    """An S3 server of the older kind: objects in memory, 501 for `If-None-Match`."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("If-None-Match"):
            self._answer(501, b"<Error><Code>NotImplemented</Code></Error>")
            return
        self.objects[self.path] = data
        self._answer(200)

    def do_HEAD(self) -> None:
        self._answer(200 if self.path in self.objects else 404, self.objects.get(self.path, b""), body=False)

    def do_GET(self) -> None:
        if self.path in self.objects:
            self._answer(206 if self.headers.get("Range") else 200, self.objects[self.path])
        elif "list-type" in self.path:
            self._answer(200, b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>")
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_DELETE(self) -> None:
        self.objects.pop(self.path, None)
        self._answer(204)

    def _answer(self, status: int, data: bytes = b"", *, body: bool = True) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_server_without_conditional_writes_is_used_and_said_so(tmp_path: Path) -> None:
    handler = type("Handler", (Unconditional,), {"objects": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    values = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }
    store, prefix = open_store("s3://b/out", Credentials("the Secret s3", values), "spec.output.uri")
    assert not probe(Target(StorePath(store, prefix), run())).conditional_writes
    assert not publish(make_folder(tmp_path / "1"), Target(StorePath(store, prefix), run()), lineage()).atomic
    with pytest.raises(TuneryError) as caught:
        publish(make_folder(tmp_path / "2"), Target(StorePath(store, prefix), run("other")), lineage())
    assert caught.value.reason is FailureReason.OUTPUT_EXISTS
    server.shutdown()
    server.server_close()


def test_leftovers_of_old_uploads_are_removed_and_others_left(
    s3_server: S3Server, bucket: str, s3_store: Store
) -> None:
    client = s3_server.client()
    for key in ("mine/a", "mine-too/b"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    assert remove_stale_uploads(StorePath(s3_store, "mine")) == 0
    assert s3_store.abort_stale_uploads("mine", -60) == 1
    assert [upload["Key"] for upload in client.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["mine-too/b"]


def test_leftovers_in_a_folder_are_removed_once_old(local_store: Store, tmp_path: Path) -> None:
    local_store.put_bytes("p/file", b"x")
    leftover = tmp_path / "store" / "p" / ".tunery-0123.tmp"
    leftover.write_bytes(b"half")
    assert remove_stale_uploads(StorePath(local_store, "p")) == 0
    os.utime(leftover, (0, 0))
    assert remove_stale_uploads(StorePath(local_store, "p")) == 1
    assert [entry.key for entry in local_store.list("p")] == ["p/file"]


def test_link_out_of_the_folder_is_not_followed(local_store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "store" / "link").symlink_to(tmp_path / "secret")
    assert local_store.list("") == []
    with pytest.raises(TuneryError, match="leads out of its folder"):
        local_store.read_bytes("link")


def test_secret_is_read_from_its_files(
    s3_server: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    data = tmp_path / "..2026_11_24"
    data.mkdir()
    for name, value in s3_server.environment().items():
        (data / name).write_text(value + "\n")
        (tmp_path / name).symlink_to(data / name)  # as the kubelet does
    found = credentials_module.from_secret(tmp_path, "s3", credentials_module.S3_KEYS, "spec.output.secretRef")
    assert s3_server.secret_key not in repr(found)
    store, prefix = open_store(f"s3://{bucket}/out", found, "spec.output.uri")
    probe(Target(StorePath(store, prefix), run()))
    assert not any(s3_server.secret_key in value for value in os.environ.values())
    assert s3_server.secret_key not in redact(f"the key is {s3_server.secret_key}")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            None,
            r"secretRef: the Secret s3 with the keys AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY does not",
        ),
        ((), "does not exist"),
        (("AWS_ACCESS_KEY_ID",), "the Secret s3 lacks the keys AWS_SECRET_ACCESS_KEY"),
    ],
    ids=["no-folder", "empty", "lacks-one"],
)
def test_secret_that_is_missing_or_lacks_keys(tmp_path: Path, keys: tuple[str, ...] | None, says: str) -> None:
    folder = tmp_path / "secret"
    if keys is not None:
        folder.mkdir()
        for key in keys:
            (folder / key).write_text("value")
    with pytest.raises(TuneryError, match=says) as caught:
        credentials_module.from_secret(folder, "s3", credentials_module.S3_KEYS, "spec.output.secretRef", "team")
    assert caught.value.reason is FailureReason.SECRET_NOT_FOUND
    patch = """kubectl patch secret s3 -n team --type=merge -p '{"stringData":{"AWS_SECRET_ACCESS_KEY":"VALUE"}}'"""
    named = any(patch in remedy.text for remedy in caught.value.remedies)
    assert named is bool(keys), "one that is there is not created"


def test_without_a_secret_the_usual_chain_is_used(
    s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    store, prefix = open_store(f"s3://{bucket}/out", credentials_module.ambient(), "spec.output.uri")
    assert probe(Target(StorePath(store, prefix), run())).conditional_writes


def test_a_variable_with_a_line_break_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "first-line\nsecond-line")
    with pytest.raises(TuneryError, match="AWS_SESSION_TOKEN in the environment") as caught:
        credentials_module.ambient()
    assert caught.value.reason is FailureReason.SECRET_NOT_FOUND
    assert "first-line" not in caught.value.message
    assert "kubectl" not in caught.value.remedies[0].text, "no Secret has it"
    assert "first-line" not in redact("it began with first-line")


def test_keys_from_a_users_own_files_are_hidden(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "keys").write_text(
        "[default]\naws_access_key_id = from-a-file\naws_secret_access_key = key/of+a file\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint_url)
    open_store("s3://b/out", credentials_module.ambient(), "spec.output.uri")
    assert redact("from-a-file: key%2Fof%2Ba+file") == "[redacted]: [redacted]"


def test_a_password_may_have_spaces(tmp_path: Path) -> None:
    (tmp_path / "MLFLOW_TRACKING_PASSWORD").write_text("correct horse\n")
    found = credentials_module.from_secret(tmp_path, "mlflow")
    assert found.get("MLFLOW_TRACKING_PASSWORD") == "correct horse"


def test_without_any_credentials(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint_url)
    store, prefix = open_store("s3://b/out", credentials_module.ambient(), "spec.output.uri")
    error = _failure(store, prefix)
    assert error.reason is FailureReason.STORAGE_ACCESS_DENIED
    assert error.message.endswith("no AWS credentials were found in the environment")
    (remedy,) = error.remedies
    assert remedy.action == Action.RECREATE
    assert remedy.text.startswith("Name a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    assert "set both in the environment" in remedy.text


def test_ca_bundle_in_a_secret_may_be_the_certificates_themselves(tmp_path: Path) -> None:
    (tmp_path / "AWS_CA_BUNDLE").write_text("-----BEGIN CERTIFICATE-----\n…\n-----END CERTIFICATE-----\n")
    found = credentials_module.from_secret(tmp_path, "s3")
    assert found.ca_bundle == str(tmp_path / "AWS_CA_BUNDLE")
    (tmp_path / "AWS_CA_BUNDLE").write_text("/etc/ssl/ca.pem\n")
    assert credentials_module.from_secret(tmp_path, "s3").ca_bundle == "/etc/ssl/ca.pem"
