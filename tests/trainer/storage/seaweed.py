"""A real S3 server for these tests: seaweedfs, with an identity that may do all and one that may only read."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tunery_trainer.credentials import Credentials

ADMIN = ("AKIATESTADMIN0000001", "test-admin-secret-key-0001")
READER = ("AKIATESTREADER000001", "test-reader-secret-key-0001")


@dataclass
class Seaweed:
    """Starts on free ports with its data below `folder`; a context manager."""

    folder: Path
    endpoint_url: str = ""
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": [_identity("admin", ADMIN, ["Admin"]), _reader()]}))
        ports = dict(zip(("master", "volume", "filer", "s3", "g1", "g2", "g3", "g4"), _free_ports(8), strict=True))
        self.endpoint_url = f"http://127.0.0.1:{ports['s3']}"
        data = self.folder / "data"
        data.mkdir()
        weed = Path(sys.executable).with_name("weed")
        with (self.folder / "weed.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(str(weed), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={data}", "-s3", "-filer"),
                    *(f"-master.port={ports['master']}", f"-master.port.grpc={ports['g1']}"),
                    *(f"-volume.port={ports['volume']}", f"-volume.port.grpc={ports['g2']}"),
                    *(f"-filer.port={ports['filer']}", f"-filer.port.grpc={ports['g3']}"),
                    *(f"-s3.port={ports['s3']}", f"-s3.port.grpc={ports['g4']}", f"-s3.config={config}"),
                    *("-master.volumeSizeLimitMB=64", "-volume.max=4000", "-master.telemetry=false"),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "HOME": str(self.folder)},
            )
        self._wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def credentials(self, who: tuple[str, str] = ADMIN, **more: str) -> Credentials:
        values = {
            "AWS_ACCESS_KEY_ID": who[0],
            "AWS_SECRET_ACCESS_KEY": who[1],
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_REGION": "us-east-1",
        }
        return Credentials("the Secret s3", values | more)

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(self.endpoint_url + "/healthz", timeout=1)
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise RuntimeError((self.folder / "weed.log").read_text()[-2000:])


def _identity(name: str, keys: tuple[str, str], actions: list[str]) -> dict[str, object]:
    return {"name": name, "credentials": [{"accessKey": keys[0], "secretKey": keys[1]}], "actions": actions}


def _reader() -> dict[str, object]:
    return _identity("reader", READER, ["Read", "List"])


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
