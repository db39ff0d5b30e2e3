"""The API server as the tests use it: plain dicts, by path."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import urllib3
import yaml

T = TypeVar("T")
Json = dict[str, Any]
LIMIT_SECONDS = 60.0
"""How long tests wait for the operator, on a machine that trains beside them."""


class Refused(Exception):
    """An answer of 400 or more."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(f"{status} {message}")


class Api:
    """One user of an API server."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.server: str = cluster["server"]
        self._headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        self._pool = urllib3.PoolManager(
            ca_certs=cluster["certificate-authority"],
            cert_file=user.get("client-certificate"),
            key_file=user.get("client-key"),
            maxsize=16,
        )

    def call(self, method: str, path: str, body: Any = None, content: str = "application/json", **headers: str) -> Json:
        """Return the JSON answer; raises Refused."""
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers | {"Content-Type": content} | headers
        answer = self._pool.request(method, self.server + path, body=data, headers=headers)
        parsed: Json = json.loads(answer.data) if answer.data else {}
        if answer.status >= 400:
            raise Refused(answer.status, parsed.get("message", ""))
        return parsed

    def columns(self, path: str) -> Json:
        """Return what kubectl get shows of an object, by the name of the column."""
        table = self.call("GET", path, Accept="application/json;as=Table;v=v1;g=meta.k8s.io")
        names = [column["name"] for column in table["columnDefinitions"]]
        return dict(zip(names, table["rows"][0]["cells"], strict=True))

    def stream(self, path: str) -> urllib3.BaseHTTPResponse:
        """Return an answer whose body comes line by line: a watch."""
        return self._pool.request("GET", self.server + path, headers=self._headers, preload_content=False)

    def get(self, path: str) -> Json | None:
        """Return an object, or None where there is none."""
        try:
            return self.call("GET", path)
        except Refused as refused:
            if refused.status == 404:
                return None
            raise

    def items(self, path: str) -> list[Json]:
        """Return the objects of a list."""
        items: list[Json] = self.call("GET", path)["items"]
        return items

    def patch(self, path: str, body: Json) -> Json:
        """Merge-patch an object."""
        return self.call("PATCH", path, body, "application/merge-patch+json")

    def delete(self, path: str) -> None:
        """Delete an object, its children in the background."""
        self.call("DELETE", path, {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"})


def eventually(what: str, check: Callable[[], T | None], timeout: float = LIMIT_SECONDS) -> T:
    """Return the first true answer of `check`, which is asked more and more slowly; fails naming `what`."""
    start = time.monotonic()
    while True:
        answer = check()
        if answer:
            return answer
        waited = time.monotonic() - start
        assert waited < timeout, f"{what}: not within {timeout:.0f} s"
        # Many threads that ask for long would slow down what they wait for.
        time.sleep(min(0.5, 0.05 + waited / 20))
