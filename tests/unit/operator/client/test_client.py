"""The client of the API server: what it asks to wait for, who it says it is, and credentials that rotate."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from kubernetes.client.configuration import Configuration
from kubernetes.config.incluster_config import InClusterConfigLoader
from prometheus_client import REGISTRY

from tunery_operator.client.client import MAX_RETRY_SECONDS, HttpError, KubeClient, seconds_to_wait
from tunery_operator.client.connection import USER_AGENT, Connection
from tunery_operator.client.permissions import CREATE_EVENT, GET_JOB
from tunery_operator.errors import ApiFailure

from kit.dripping import DRIPS, dripping


class Server(http.server.ThreadingHTTPServer):
    """Answers every request alike, and keeps the headers of each."""

    status = 200
    retry_after: str | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[Any] = []


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    def _answer(self) -> None:
        server: Any = self.server
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server.seen.append(self.headers)
        body = json.dumps({"kind": "Status", "message": "busy"}).encode()
        self.send_response(server.status)
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


def client(server: Server) -> KubeClient:
    configuration = Configuration()
    configuration.host = f"http://127.0.0.1:{server.server_address[1]}"
    return KubeClient(Connection(configuration))


def counted(code: str) -> float:
    labels = {"verb": "create", "resource": "events", "code": code}
    return REGISTRY.get_sample_value("tunery_api_requests_total", labels) or 0.0


def test_an_overloaded_server_says_how_long_to_wait(server: Server) -> None:
    server.status, server.retry_after = 429, "7"
    before = counted("429")
    with pytest.raises(HttpError) as caught:
        client(server).request(CREATE_EVENT, "ns", body={})
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


def test_no_answer_is_counted_too(server: Server) -> None:
    unreachable = client(server)
    server.shutdown()
    server.server_close()
    before = counted("0")
    with pytest.raises(ApiFailure) as caught:
        unreachable.request(CREATE_EVENT, "ns", body={})
    assert caught.value.status == 0
    assert counted("0") == before + 1


@pytest.mark.parametrize("drip", DRIPS)
def test_an_answer_that_drips_is_given_up(drip: str) -> None:
    """The one thread that renews the Lease would never lead again, a worker of the queue never work."""
    configuration = Configuration()
    with dripping(drip) as configuration.host:
        patient = KubeClient(Connection(configuration), urllib3.Timeout(connect=1, read=0.2))
        began = time.monotonic()
        with pytest.raises(ApiFailure, match=r"^get jobs: .*timed out") as caught:
            patient.get(GET_JOB, "ns", "a")
        assert time.monotonic() - began < 2
        assert caught.value.status == 0


def test_each_request_says_who_asks(server: Server) -> None:
    client(server).get(GET_JOB, "ns", "a")
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
