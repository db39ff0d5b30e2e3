"""An AdapterServer as its users see it: applied, asked through its Service, and its status."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from kit.jobs import Job
from kit.kubectl import Kubectl, wait_for
from kit.processes import PROC

CHOSEN = "X-Tunery-Adapter"


@dataclass(frozen=True)
class Reply:
    """What the gateway answered."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def model(self) -> str:
        """The engine's name of what answered."""
        return str(self.body["model"])

    @property
    def error(self) -> dict[str, Any]:
        """The error, in OpenAI's shape; empty where there is none."""
        found: dict[str, Any] = self.body.get("error", {}) if isinstance(self.body, dict) else {}
        return found


class Server(Job):
    """One AdapterServer."""

    def __init__(self, kubectl: Kubectl, manifest: dict[str, Any], namespace: str) -> None:
        super().__init__(kubectl, manifest, namespace)
        self.key: str | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """The Service's own address: tests run on the node. It is asked for again where nothing answers there."""
        if self._url:
            return self._url
        service = self.kubectl.get("service", f"{self.name}-server", self.namespace)
        assert service is not None, f"{self.name} has no Service\n{self.story()}"
        self._url = f"http://{service['spec']['clusterIP']}:8000"
        return self._url

    def ask(self, model: str, path: str = "/v1/completions", **body: Any) -> Reply:
        """Post a request for a model; of a completion one token by default."""
        asked = (
            {"model": model} | ({"prompt": "Say number 4.", "max_tokens": 1} if "messages" not in body else {}) | body
        )
        return self.request(path, json.dumps(asked | {"temperature": 0}).encode())

    def request(self, path: str, data: bytes | None = None, method: str | None = None) -> Reply:
        """Return whatever the gateway answers."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Reply(answer.status, _document(answer.read()), dict(answer.headers))
        except urllib.error.HTTPError as error:
            return Reply(error.code, _document(error.read()), dict(error.headers))
        except OSError as error:
            self._url = ""
            return Reply(0, {"error": {"message": str(error)}}, {})

    def adapter(self, name: str) -> dict[str, Any]:
        """Return what the status says of an adapter; empty where it is not among them."""
        return next((each for each in self.status.get("adapters", []) if each["name"] == name), {})

    def wait_state(self, name: str, state: str, timeout: float = 120) -> dict[str, Any]:
        """Return an adapter's status once it is in a state; raises AssertionError with the whole story."""
        try:
            wait_for(f"{name}: {state}", lambda: self.adapter(name).get("state") == state, timeout)
        except TimeoutError as error:
            raise AssertionError(f"{error}; it says {self.adapter(name)}\n{self.story()}") from error
        return self.adapter(name)

    def wait_ready(self, timeout: float = 400) -> dict[str, Any]:
        """Return the status once every replica is ready; raises AssertionError with the whole story."""
        return self.wait_phase("Ready", "Degraded", timeout=timeout)

    def wait_answer(self, model: str, status: int = 200, timeout: float = 60) -> Reply:
        """Return the first answer of that status; raises AssertionError with the last one."""
        last: list[Reply] = []

        def check() -> bool:
            last[:] = [self.ask(model)]
            return last[0].status == status

        try:
            wait_for(f"{model}: HTTP {status}", check, timeout, every=0.2)
        except TimeoutError as error:
            raise AssertionError(f"{error}; the last answer was {last[0]}\n{self.story()}") from error
        return last[0]

    def prompt_logprobs(self, model: str, prompt: str) -> list[float]:
        """Return the log-probability of each token of a prompt but the first, as the engine computes it."""
        reply = self.ask(model, prompt=prompt, prompt_logprobs=0)
        assert reply.status == 200, reply
        told = reply.body["choices"][0]["prompt_logprobs"]
        return [next(iter(each.values()))["logprob"] for each in told if each]


def _document(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace")


@dataclass
class Traffic:
    """What came of requests that were sent all the while."""

    replies: list[Reply] = field(default_factory=list)

    @property
    def failed(self) -> list[Reply]:
        return [reply for reply in self.replies if reply.status != 200]


@contextmanager
def traffic(server: Server, *models: str, every: float = 0.05) -> Iterator[Traffic]:
    """Ask for models in turn until the block ends; what was answered is in the Traffic."""
    seen, ended = Traffic(), threading.Event()

    def ask() -> None:
        index = 0
        while not ended.is_set():
            seen.replies.append(server.ask(models[index % len(models)]))
            index += 1
            time.sleep(every)

    thread = threading.Thread(target=ask, name="traffic", daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join(70)


@contextmanager
def storage_standing_still(environment: dict[str, str]) -> Iterator[None]:
    """Stop the local cluster's S3 server: its connections stay open, and nothing is answered."""
    (weed,) = _storage_processes(environment)
    os.kill(weed, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(weed, signal.SIGCONT)


def _storage_processes(environment: dict[str, str]) -> list[int]:
    port = environment["AWS_ENDPOINT_URL"].rpartition(":")[2].rstrip("/")
    found = []
    for folder in PROC.glob("[0-9]*"):
        with suppress(OSError):
            line = (folder / "cmdline").read_bytes()
            if b"weed" in line and f"s3.port={port}".encode() in line:
                found.append(int(folder.name))
    return found
