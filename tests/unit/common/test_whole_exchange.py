"""A report costs no more than its time, whoever answers: a thread that waits for ever would never report again."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
import urllib3

from tunery_common import progress_client
from tunery_common.progress_client import ProgressClient

from kit.dripping import DRIPS, dripping
from tools.cluster.certs import Authority

SECONDS = 0.2


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_client, "_TIMEOUT", urllib3.Timeout(total=SECONDS))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("authority"))
    made.create()
    return made


def given_up(client: ProgressClient, body: bytes = b"{}") -> None:
    """Post twice: what gave the first one up is fit for the next."""
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(urllib3.exceptions.HTTPError, match="timed out"):
            client.post(body)
        assert SECONDS / 2 < time.monotonic() - began < 10 * SECONDS


@pytest.mark.parametrize("drip", DRIPS)
def test_an_answer_that_drips_is_given_up(drip: str) -> None:
    with dripping(drip) as url:
        given_up(ProgressClient(url, "", ""))


def test_so_is_one_within_tls(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("operator", "operator", hosts=["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    token = tmp_path / "token"
    token.write_text("told")
    with dripping("body", context) as url:
        given_up(ProgressClient(url, str(authority.pair.cert), str(token)))


def test_so_is_a_peer_that_takes_a_report_too_slowly() -> None:
    """Its window opens by a few bytes again and again, so that no single wait is long."""

    def slowly(peer: socket.socket) -> None:
        while peer.recv(2048):
            time.sleep(0.02)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        def serve() -> None:
            while True:
                threading.Thread(target=slowly, args=[listener.accept()[0]], daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        given_up(ProgressClient(f"http://127.0.0.1:{listener.getsockname()[1]}", "", ""), b"x" * 20_000_000)


def test_more_than_is_looked_at_is_not_waited_for() -> None:
    """An answer without end is worth what of it is read; the connection is not used again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = []

        def serve() -> None:
            while True:
                peer, who = listener.accept()
                served.append(who)
                peer.recv(65536)
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"7" * 100)

        threading.Thread(target=serve, daemon=True).start()
        client = ProgressClient(f"http://127.0.0.1:{listener.getsockname()[1]}", "", "")
        assert [client.exchange(b"{}", 20), client.exchange(b"{}", 20)] == [b"7" * 20, b"7" * 20]
        assert len(served) == 2


def test_a_connection_that_took_all_of_the_time_leaves_a_second_for_the_answer() -> None:
    time_left = progress_client.WholeTimeout(total=0.01).clone()
    time_left.start_connect()
    time.sleep(0.02)
    assert time_left.read_timeout == 1
