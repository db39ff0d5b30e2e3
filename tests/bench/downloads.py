"""Bringing a model to the disk: ranges side by side, beside one stream a file and beside a cache, in the same run.

    python -m bench.downloads [--mib 384] [--files 4] [--rate 10]

Twice: from the tests' real S3 server, which shares this machine's cores; and from a server that gives each connection
`--rate` MiB a second, as object storage does, whatever the network could carry. One stream a file is what the trainer
did before: 4 files at a time, each read, hashed and written by one thread. Beside both, a cache that preflight has
filled. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from tunery_common.inputs.fetch import fetch_model
from tunery_common.inputs.location import Location
from tunery_common.inputs.shared_cache import SharedCache
from tunery_common.storage import Store, open_store
from tunery_common.storage.credentials import Credentials
from tunery_trainer.inputs.cached_model import cache_model

from tools.cluster.s3 import S3Server

ROUNDS = 3
SLICE = 1 << 18


def one_stream_a_file(store: Store, folder: Path) -> None:
    """Fetch the model as the trainer did before."""

    def fetch(key: str) -> str:
        entry, sha = store.head(key), hashlib.sha256()
        assert entry is not None
        with (folder / Path(key).name).open("wb") as file:
            for chunk in store.stream(entry):
                file.write(chunk)
                sha.update(chunk)
            os.fsync(file.fileno())
        return sha.hexdigest()

    folder.mkdir(parents=True)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fetch, [entry.key for entry in store.list("m")]))


def measure(credentials: Credentials, folder: Path) -> dict[str, float]:
    """Return the median seconds of both ways, taken in turns."""
    store, _ = open_store("s3://models", credentials, "spec.model.uri")
    cached = Location("s3://models/m", credentials, cache=SharedCache(folder / "claim"))
    cache_model(cached, lambda done, total: None)
    ways: dict[str, Callable[[Path], object]] = {
        "one_stream_a_file_s": lambda target: one_stream_a_file(store, target),
        "ranges_s": lambda target: fetch_model(Location("s3://models/m", credentials), target),
        "from_cache_s": lambda target: fetch_model(cached, target),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.perf_counter()
            way(folder / name)
            seconds[name].append(time.perf_counter() - began)
            shutil.rmtree(folder / name, ignore_errors=True)
    shutil.rmtree(folder / "claim")
    found = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    return {**found, "ratio": round(found["one_stream_a_file_s"] / found["ranges_s"], 2)}


class Limited(BaseHTTPRequestHandler):
    """As much of S3 as a download needs, at `rate` bytes a second for each request."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    rate: int

    def do_HEAD(self) -> None:
        self._head(200, len(self.objects[self.path.lstrip("/")]))

    def do_GET(self) -> None:
        if "list-type" in self.path:
            self._list()
            return
        data = self.objects[self.path.lstrip("/")]
        first, _, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(data)) + 1, len(data))
        self._head(206, end - start)
        began = time.perf_counter()
        for at in range(start, end, SLICE):
            self.wfile.write(memoryview(data)[at : min(at + SLICE, end)])
            time.sleep(max(0.0, began + (at + SLICE - start) / self.rate - time.perf_counter()))

    def _list(self) -> None:
        items = "".join(
            f"<Contents><Key>{name.partition('/')[2]}</Key><Size>{len(data)}</Size><ETag>e</ETag></Contents>"
            for name, data in self.objects.items()
        )
        body = f"<ListBucketResult>{items}</ListBucketResult>".encode()
        self._head(200, len(body))
        self.wfile.write(body)

    def _head(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", "e")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def limited(objects: dict[str, bytes], rate: int) -> Iterator[Credentials]:
    """Run the limited server, and yield what opens it."""
    handler = type("Handler", (Limited,), {"objects": objects, "rate": rate})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": endpoint}
    yield Credentials("the benchmark", keys)
    server.shutdown()
    server.server_close()


def main() -> int:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=384)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--rate", type=int, default=10)
    options = parser.parse_args()
    data = os.urandom((options.mib << 20) // options.files)
    names = [f"m/model-{number}.safetensors" for number in range(options.files)]
    files = {"m/config.json": b"{}"} | dict.fromkeys(names, data)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with limited({f"models/{key}": value for key, value in files.items()}, options.rate << 20) as credentials:
            found = {f"{options.rate}_mib_a_second_each": measure(credentials, folder)}
        server = S3Server(folder / "s3", buckets=("models",))
        server.start()
        try:
            for key, value in files.items():
                server.client().put_object(Bucket="models", Key=key, Body=value)
            found["s3_on_this_machine"] = measure(Credentials("the benchmark", server.environment()), folder)
        finally:
            server.remove()
    json.dump({"mib": options.mib, "files": options.files, **found, "load": os.getloadavg()[0]}, sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
