"""The client of the API server: what it asks to wait for, who it says it is, and credentials that rotate."""

from __future__ import annotations

import http.server
import json
import shutil
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from kubernetes.client.configuration import Configuration
from kubernetes.config.incluster_config import InClusterConfigLoader
from prometheus_client import REGISTRY

from tunery_operator.client.client import MAX_RETRY_SECONDS, HttpError, KubeClient, seconds_to_wait
from tunery_operator.client.connection import USER_AGENT, Connection
from tunery_operator.client.permissions import CREATE_EVENT, GET_JOB
from tunery_operator.errors import ApiFailure

from kit.dripping import DRIPS, dripping
from tools.cluster.certs import Authority


class Server(http.server.ThreadingHTTPServer):
    """Answers every request alike, and keeps the headers of each."""

    status = 200
    retry_after: str | None = None
    protocol = "HTTP/1.0"
    closes_after = sys.maxsize
    """The number of answered requests; the connection of the next one ends without an answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[Any] = []
        self.peers: set[Any] = set()


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    def setup(self) -> None:
        """Take the protocol of the server: HTTP/1.1 keeps connections open."""
        server: Any = self.server
        self.protocol_version = server.protocol
        super().setup()

    def _answer(self) -> None:
        server: Any = self.server
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server.seen.append(self.headers)
        server.peers.add(self.client_address)
        if len(server.seen) > server.closes_after:
            self.close_connection = True
            return
        body = json.dumps({"kind": "Status", "message": "busy"}).encode()
        self.send_response(server.status)
        if server.status == 307:
            self.send_header("Location", self.path)
        if server.retry_after is not None:
            self.send_header("Retry-After", server.retry_after)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer  # noqa: N815 - the names of the standard library

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def connection(server: Server, scheme: str = "http") -> Connection:
    configuration = Configuration()
    configuration.host = f"{scheme}://127.0.0.1:{server.server_address[1]}"
    return Connection(configuration)


def serve_tls(server: Server, folder: Path, host: str) -> Path:
    """Have a server use TLS with a certificate for `host`; return the file of its CA."""
    authority = Authority(folder)
    authority.create()
    pair = authority.issue("server", "server", hosts=[host])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.cert, pair.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return authority.pair.cert


@pytest.fixture
def client(server: Server) -> Iterator[KubeClient]:
    with KubeClient(connection(server)) as client:
        yield client


def counted(code: str) -> float:
    labels = {"verb": "create", "resource": "events", "code": code}
    return REGISTRY.get_sample_value("tunery_api_requests_total", labels) or 0.0


def test_an_overloaded_server_says_how_long_to_wait(server: Server, client: KubeClient) -> None:
    server.status, server.retry_after = 429, "7"
    before = counted("429")
    with pytest.raises(HttpError) as caught:
        client.request(CREATE_EVENT, "ns", body={})
    assert (caught.value.status, caught.value.retry_after) == (429, 7.0)
    assert len(server.seen) == 1, "it is for the queue to try again"
    assert counted("429") == before + 1


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [
        (429, None, 1.0),
        (429, "3", 3.0),
        (429, "Wed, 21 Oct 2026 07:28:00 GMT", 1.0),
        (503, "5", 5.0),
        (503, None, None),
        (500, "999999", MAX_RETRY_SECONDS),
        (404, "5", None),
    ],
)
def test_only_an_answer_that_means_it_delays(status: int, header: str | None, seconds: float | None) -> None:
    assert seconds_to_wait(status, header) == seconds


def test_no_answer_is_counted_too(server: Server, client: KubeClient) -> None:
    server.shutdown()
    server.server_close()
    before = counted("0")
    with pytest.raises(ApiFailure) as caught:
        client.request(CREATE_EVENT, "ns", body={})
    assert caught.value.status == 0
    assert counted("0") == before + 1


@pytest.mark.parametrize("drip", DRIPS)
def test_an_answer_that_drips_is_given_up(drip: str) -> None:
    """The one thread that renews the Lease would never lead again, a worker of the queue never work."""
    configuration = Configuration()
    timeout = aiohttp.ClientTimeout(total=0.2)
    with dripping(drip) as configuration.host, KubeClient(Connection(configuration), timeout) as patient:
        began = time.monotonic()
        with pytest.raises(ApiFailure, match=r"^get jobs: .*timed out") as caught:
            patient.get(GET_JOB, "ns", "a")
        assert time.monotonic() - began < 2
        assert caught.value.status == 0


def test_each_request_says_who_asks(server: Server, client: KubeClient) -> None:
    client.get(GET_JOB, "ns", "a")
    assert server.seen[0]["User-Agent"] == USER_AGENT
    assert USER_AGENT.startswith("tunery-operator/")
    assert server.seen[0]["User-Agent"].rpartition("/")[2] != ""


def test_a_token_that_was_rotated_is_used(server: Server, tmp_path: Path) -> None:
    token, authority = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text("first")
    authority.write_text("pem")
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}
    loader = InClusterConfigLoader(str(token), str(authority), environ=environ)
    configuration = Configuration()
    loader.load_and_set(configuration)
    connection = Connection(configuration)
    assert connection.headers()["Authorization"] == "bearer first"
    token.write_text("second")
    loader.token_expires_at = loader.token_expires_at.min
    assert connection.headers()["Authorization"] == "bearer second"


def test_certificates_are_read_again_after_a_failure(server: Server, tmp_path: Path) -> None:
    authority = serve_tls(server, tmp_path / "new", "127.0.0.1")
    old = Authority(tmp_path / "old")
    old.create()
    trusted = tmp_path / "ca.crt"
    shutil.copy(old.pair.cert, trusted)
    rotated = connection(server, "https")
    rotated.configuration.ssl_ca_cert = str(trusted)
    with KubeClient(rotated) as client:
        with pytest.raises(ApiFailure, match="CERTIFICATE_VERIFY_FAILED"):
            client.get(GET_JOB, "ns", "a")
        shutil.copy(authority, trusted)
        assert client.get(GET_JOB, "ns", "a") is not None


def test_the_server_name_of_a_kubeconfig_is_that_of_the_certificate(server: Server, tmp_path: Path) -> None:
    named = connection(server, "https")
    named.configuration.ssl_ca_cert = str(serve_tls(server, tmp_path, "kubernetes"))
    named.configuration.tls_server_name = "kubernetes"
    with KubeClient(named) as client:
        assert client.get(GET_JOB, "ns", "a") is not None


def test_a_proxy_is_used(server: Server) -> None:
    behind = connection(server)
    behind.configuration.proxy, behind.configuration.host = behind.host, "http://api.invalid"
    with KubeClient(behind) as client:
        assert client.get(GET_JOB, "ns", "a") is not None
    assert server.seen[0]["Host"] == "api.invalid"


def test_a_write_is_never_sent_twice(server: Server, client: KubeClient) -> None:
    """The API server may have done it: the caller reads again before another try."""
    server.protocol, server.closes_after = "HTTP/1.1", 1
    client.request(CREATE_EVENT, "ns", body={})
    with pytest.raises(ApiFailure):
        client.request(CREATE_EVENT, "ns", body={})
    assert (len(server.seen), len(server.peers)) == (2, 1), "the second request reuses the connection"


def test_a_redirect_is_not_followed(server: Server, client: KubeClient) -> None:
    """It would send the token elsewhere."""
    server.status = 307
    with pytest.raises(HttpError) as caught:
        client.get(GET_JOB, "ns", "a")
    assert (caught.value.status, len(server.seen)) == (307, 1)


def test_a_closed_client_fails(client: KubeClient) -> None:
    client.get(GET_JOB, "ns", "a")
    client.close()
    with pytest.raises(ApiFailure, match="the client is closed"):
        client.get(GET_JOB, "ns", "a")
