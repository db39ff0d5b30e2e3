"""The platform's certificate authorities: every library trusts them, and the public ones still."""

from __future__ import annotations

import http.server
import json
import signal
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
import requests

from tunery_api.names import CA_BUNDLE_ENV
from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage.authorities import READ_BY, trust_platform
from tunery_common.storage.credentials import ambient
from tunery_common.storage.s3_client import make_client
from tunery_common.termination import TERMINATION_PATH_ENV
from tunery_server import __main__ as server_program
from tunery_trainer import cli as trainer_cli

from tools.cluster.certs import Authority


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as a bucket server that has none."""

    def do_GET(self) -> None:
        body = b"<ListAllMyBucketsResult></ListAllMyBucketsResult>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority(tmp_path / "pki")
    authority.create()
    return authority


@pytest.fixture
def url(authority: Authority) -> Iterator[str]:
    """A server whose certificate a private authority has signed."""
    pair = authority.issue("hub", "hub", hosts=["localhost"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.cert, pair.key)
    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_address[1]}"
    server.shutdown()


def test_hub_trackers_and_buckets_trust_them_and_the_public_ones_still(
    url: str, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    for name in READ_BY:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # whatever the test sets is taken back at its end
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(url)
    monkeypatch.setenv(CA_BUNDLE_ENV, str(authority.pair.cert))
    trust_platform(folder=tmp_path)
    assert httpx.get(url).status_code == 200
    assert requests.get(url, timeout=10).status_code == 200
    assert make_client(ambient(), "spec.model").list_buckets()["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert len(ssl.create_default_context().get_ca_certs()) > 50


def test_what_the_platform_has_set_itself_stays(authority: Authority, tmp_path: Path) -> None:
    environment = {CA_BUNDLE_ENV: str(authority.pair.cert), "AWS_CA_BUNDLE": "/etc/ssl/mine.pem"}
    trust_platform(environment, tmp_path)
    assert environment["AWS_CA_BUNDLE"] == "/etc/ssl/mine.pem"
    assert environment["SSL_CERT_FILE"] == environment["REQUESTS_CA_BUNDLE"] == str(tmp_path / "tunery-ca-bundle.pem")
    nothing: dict[str, str] = {}
    trust_platform(nothing, tmp_path)
    assert nothing == {}


@pytest.mark.parametrize(
    "content", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_what_is_no_certificate_is_told_with_its_place_and_what_to_do(content: str, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text(content)
    with pytest.raises(TuneryError, match=r"ca\.crt cannot be used") as caught:
        trust_platform({CA_BUNDLE_ENV: str(tmp_path / "ca.crt")}, tmp_path)
    assert caught.value.reason is FailureReason.MOUNT_FAILED
    assert "trainer.caBundle" in caught.value.remedies[0].text


IDENTITY = {"namespace": "team", "name": "x", "uid": "u-1"}
OUT = {"outputUri": "s3://bucket/out", "image": "image@sha256:1"}
BATCH = OUT | {
    "identity": IDENTITY | {"kind": "BatchInference"},
    "batchInference": {"serverRef": {"name": "support"}, "input": {"uri": "s3://bucket/in.jsonl"}},
}
MODEL = {"uri": "s3://models/tiny"}
JOB = OUT | {
    "identity": IDENTITY | {"kind": "LoRAJob"},
    "loraJob": {"model": MODEL, "dataset": {"uri": "s3://data/rows.jsonl"}, "method": "LoRA"},
}
SERVE = {
    "identity": IDENTITY | {"kind": "AdapterServer"},
    "model": MODEL,
    "servedName": "tiny",
    "maxRank": 16,
    "maxAdaptersInBatch": 1,
    "maxLoadedAdapters": 1,
    "disk": {"bytes": 1 << 30, "field": "spec.resources.ephemeralStorage"},
}


@pytest.mark.parametrize(
    ("program", "task", "document"),
    [
        (trainer_cli.main, "preflight", JOB),
        (trainer_cli.main, "train", JOB),
        (server_program.main, "batch", BATCH),
        (server_program.main, "report", BATCH),
        (server_program.main, "fetch-model", SERVE),
    ],
)
def test_every_program_reads_them_before_it_opens_anything(
    program: Callable[[Sequence[str]], int],
    task: str,
    document: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    run, words = tmp_path / "run.json", tmp_path / "words"
    run.write_text(json.dumps(document | ({} if task == "fetch-model" else {"workDir": str(tmp_path)})))
    (tmp_path / "ca.crt").write_text("no certificate")
    monkeypatch.setenv(CA_BUNDLE_ENV, str(tmp_path / "ca.crt"))
    monkeypatch.setenv(TERMINATION_PATH_ENV, str(words))
    try:
        assert program([task, str(run)]) != 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    failure = json.loads(words.read_text())["failure"]
    assert (failure["reason"], "ca.crt cannot be used" in failure["message"]) == ("MountFailed", True)
