"""A node whose kubelet only serves logs: what a test has written there."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kit.operator.api import Api, Json
from tools.cluster.certs import Pair


class LogKubelet:
    """The logs of pods by name; a log that is open is followed."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.queries: list[dict[str, list[str]]] = []
        self._logs: dict[str, list[str]] = {}
        self._open: set[str] = set()
        self._broken = 0

    def write(self, pod: str, *lines: str) -> None:
        """Add lines to the log of a pod."""
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
        self._logs.setdefault(pod, []).extend(f"{stamp}{number:03}Z {line}" for number, line in enumerate(lines))

    def open(self, pod: str) -> None:
        """Let the log of a pod be followed until it is closed."""
        self._open.add(pod)

    def close(self, pod: str) -> None:
        """End the log of a pod."""
        self._open.discard(pod)

    def break_connections(self) -> None:
        """Break what follows a log now."""
        self._broken += 1

    def lines(self, pod: str, query: dict[str, list[str]]) -> Iterator[str]:
        """Yield the lines of a log as a kubelet does."""
        self.queries.append(query)
        broken, sent = self._broken, 0
        tail, since = query.get("tailLines"), query.get("sinceTime", [""])[0][:19]
        if tail:
            sent = max(0, len(self._logs.get(pod, ())) - int(tail[0]))
        while True:
            log = self._logs.get(pod, [])
            yield from (f"{line}\n" for line in log[sent:] if line[:19] >= since)
            sent = len(log)
            if pod not in self._open or "follow" not in query:
                return
            if self._broken != broken:
                raise ConnectionError
            time.sleep(0.02)


@contextmanager
def log_kubelet(api: Api, node: str, pair: Pair) -> Iterator[LogKubelet]:
    """Register a node at the API server, and serve the logs of its pods."""
    kubelet = LogKubelet(node)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            pod = url.path.split("/")[3]
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for line in kubelet.lines(pod, parse_qs(url.query)):
                    self.wfile.write(f"{len(line.encode()):x}\r\n{line}\r\n".encode())
                self.wfile.write(b"0\r\n\r\n")
            except ConnectionError:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.cert, pair.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    api.call("POST", "/api/v1/nodes", {"metadata": {"name": node}})
    api.patch(f"/api/v1/nodes/{node}/status", {"status": _status(server.server_address[1])})
    yield kubelet
    server.shutdown()
    api.delete(f"/api/v1/nodes/{node}")


def _status(port: int) -> Json:
    return {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "conditions": [{"type": "Ready", "status": "True"}],
    }
