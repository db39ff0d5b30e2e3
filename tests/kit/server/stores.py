"""A small S3 server whose buckets hang as they are told to, and a table whose adapters lie there."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from tunery_api.serving import DesiredAdapter
from tunery_common.storage import StorePath, open_store
from tunery_common.storage.credentials import Credentials
from tunery_common.storage.s3_client import SharedClient

from kit.server.loader import Files, manifest_of

TRICKLE_SECONDS = 0.05


class HangingStore:
    """Serves objects by `bucket/key`; weights of a bucket in `modes` come by `half` (then silence) or by `trickle`."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.modes: dict[str, str] = {}
        self.hung = 0
        """Bodies that have begun to hang, ended or not."""
        self.closing = threading.Event()
        self._clients = SharedClient()
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                return

            def do_HEAD(self) -> None:
                store.answer(self, with_body=False)

            def do_GET(self) -> None:
                store.answer(self, with_body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        values = {"AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        self.credentials = Credentials("the Secret s3", values)

    def open(self, item: DesiredAdapter) -> StorePath:
        return open_store(item.uri, self.credentials, "uri", clients=self._clients.made_for)

    def publish(self, bucket: str, name: str, files: Files) -> DesiredAdapter:
        """Put an adapter into a bucket; returns its entry of the list, pinned."""
        manifest = manifest_of(files)
        for file, data in {**files, "manifest.json": manifest}.items():
            self.objects[f"{bucket}/{name}/{file}"] = data
        sha256 = hashlib.sha256(manifest).hexdigest()
        return DesiredAdapter(name=name, uri=f"s3://{bucket}/{name}", manifest_sha256=sha256)

    def answer(self, request: BaseHTTPRequestHandler, with_body: bool) -> None:
        key = unquote(urlparse(request.path).path.lstrip("/"))
        data = self.objects.get(key)
        if data is None:
            request.send_error(404)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
        if asked and with_body:
            start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
            body = data[start : end + 1]
        else:
            request.send_response(200)
            body = data
        request.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if with_body:
            self._send(request, body, self.modes.get(key.partition("/")[0], "") if "safetensors" in key else "")

    def _send(self, request: BaseHTTPRequestHandler, body: bytes, mode: str) -> None:
        try:
            if not mode:
                request.wfile.write(body)
                return
            self.hung += 1
            request.close_connection = True
            if mode == "half":
                request.wfile.write(body[: len(body) // 2])
                self.closing.wait(60)
            for at in range(len(body) if mode == "trickle" else 0):
                request.wfile.write(body[at : at + 1])
                if self.closing.wait(TRICKLE_SECONDS):
                    return
        except OSError:
            return  # whoever asked has gone


@contextmanager
def hanging_store() -> Iterator[HangingStore]:
    store = HangingStore()
    threading.Thread(target=store.server.serve_forever, daemon=True).start()
    try:
        yield store
    finally:
        store.closing.set()
        store.server.shutdown()
        store.server.server_close()


def drafts(root: Path) -> list[str]:
    """Return what is on its way in a replica's folders."""
    return [path.name for path in (root / "adapters" / ".drafts").iterdir()]
