"""A local HTTP server that speaks the part of the hub's API that downloads use."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_testtokentesttoken"


@dataclass
class HubServer:
    """Repositories by `models/owner/name` or `datasets/owner/name`; those in `gated` need TOKEN for their files."""

    repos: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    failing: bool = False
    requests: list[str] = field(default_factory=list)
    ranges: bool = True
    """Whether it sends the range that is asked for, and not all."""
    told: dict[str, str] = field(default_factory=dict)
    """SHA-256 by file name, where the hub is to tell another than the file has."""
    asked: list[str] = field(default_factory=list)
    """The ranges that it sent."""
    url: str = ""
    host: str = "127.0.0.1"
    _server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((self.host, 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://{self.host}:{self._server.server_port}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(request.path.partition("?")[0])
        self.requests.append(f"{request.command} {path}")
        if self.failing:
            _send(request, 503, b"", {}, body)
        elif path.startswith("/api/"):
            self._info(request, path.removeprefix("/api/"), body)
        else:
            self._file(request, path.lstrip("/"), body)

    def _info(self, request: BaseHTTPRequestHandler, path: str, body: bool) -> None:
        name, _, revision = path.partition("/revision/")
        if name not in self.repos:
            _send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        elif revision not in ("", "main", COMMIT):
            _send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        else:
            siblings = [self._sibling(file, data) for file, data in self.repos[name].items()]
            info = {"id": name.partition("/")[2], "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0}
            _send(request, 200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)

    def _sibling(self, name: str, data: bytes) -> dict[str, object]:
        """Return what the hub tells of a file: the digest of large ones only, which lie in its LFS."""
        found: dict[str, object] = {"rfilename": name, "size": len(data)}
        if name.endswith(".safetensors"):
            digest = self.told.get(name) or hashlib.sha256(data).hexdigest()
            found["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
        return found

    def _file(self, request: BaseHTTPRequestHandler, path: str, body: bool) -> None:
        name, _, rest = (path if path.startswith("datasets/") else f"models/{path}").partition("/resolve/")
        file = rest.partition("/")[2]
        if name in self.gated and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            _send(request, 403, b"", {"X-Error-Code": "GatedRepo"}, body)
            return
        data = self.repos[name][file]
        digest = hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = request.headers.get("Range")
        if asked is None or not self.ranges:
            _send(request, 200, data, headers, body)
            return
        self.asked.append(asked)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        _send(request, 206, data[int(first) : int(last or len(data)) + 1], headers, body)


def _send(request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
    request.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(data))}.items():
        request.send_header(name, value)
    request.end_headers()
    if body:
        request.wfile.write(data)
