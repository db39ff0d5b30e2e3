"""Engines as processes on a Unix socket: the stand-in, the faulty one, and vLLM from tests/tools/engine/.venv."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import aiohttp

from kit.installation import ROOT
from tools.cluster.daemon import ENDS_WITH_PARENT
from tools.cluster.waiting import wait_until

VLLM = ROOT / "tests" / "tools" / "engine" / ".venv" / "bin" / "vllm"
FIX = "tunery_cpu_fix"
VLLM_ENVIRONMENT = {
    "VLLM_PLUGINS": FIX,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # There may be no compiler, without which the first request that asks for log-probabilities would end it.
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
START_SECONDS = 300


class Kind(StrEnum):
    """The engines."""

    STAND_IN = "stand-in"
    FAULTY = "faulty"
    VLLM = "vllm"


COMMANDS: Mapping[Kind, Sequence[str | Path]] = {
    Kind.STAND_IN: (sys.executable, "-m", "kit.engine"),
    Kind.FAULTY: (sys.executable, "-m", "kit.faulty_engine"),
    Kind.VLLM: (VLLM, "serve"),
}


@dataclass(frozen=True)
class Answer:
    """What an engine said: the JSON if it is some, else the text."""

    status: int
    body: Any


@dataclass
class EngineProcess:
    """One engine; `options` are arguments of `vllm serve`, `more` is added to its environment."""

    kind: Kind
    folder: Path
    options: Sequence[str]
    more: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "engine.sock"

    @property
    def log(self) -> str:
        file = self.folder / "engine.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def launch(self) -> None:
        """Start the process and return at once; it ends with the thread that starts it."""
        own = VLLM_ENVIRONMENT if self.kind == Kind.VLLM else {"PYTHONPATH": str(ROOT / "tests")}
        switches = {"HF_HUB_OFFLINE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", **own, **self.more}
        command = [*ENDS_WITH_PARENT, *COMMANDS[self.kind], *self.options, "--uds", self.socket]
        with (self.folder / "engine.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command], env=os.environ | switches, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def start(self) -> EngineProcess:
        """Start the process and return once it is healthy; raises WaitedTooLong."""
        self.launch()
        wait_until(lambda: self.healthy() or self.ended() is not None, f"{self.kind} is healthy", START_SECONDS)
        assert self.ended() is None, self.log[-4000:]
        return self

    def healthy(self) -> bool:
        try:
            return _get(self.socket, "/health") == 200
        except (OSError, http.client.HTTPException):
            return False

    def ended(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self.process.poll() if self.process else None

    def wait(self, seconds: float = 60) -> int:
        """Return the exit status; raises subprocess.TimeoutExpired."""
        assert self.process
        return self.process.wait(seconds)

    def terminate(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process and those that it started, and leave its socket's file where it is."""
        if self.process:
            # vLLM's workers are of its session; they may outlive it.
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @asynccontextmanager
    async def request(self, method: str, path: str, body: Any = None) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the response to one request, for what reads it piece by piece."""
        timeout = aiohttp.ClientTimeout(total=120)
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.socket)), timeout=timeout) as session,
            session.request(method, f"http://engine{path}", json=body) as response,
        ):
            yield response

    async def get(self, path: str) -> Answer:
        async with self.request("GET", path) as response:
            return await _answer(response)

    async def post(self, path: str, body: Any) -> Answer:
        async with self.request("POST", path, body) as response:
            return await _answer(response)

    async def load(self, name: str, folder: Path | str) -> Answer:
        return await self.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})

    async def unload(self, name: str) -> Answer:
        return await self.post("/v1/unload_lora_adapter", {"lora_name": name})

    async def complete(self, model: str, prompt: str, **more: Any) -> Answer:
        """Ask for a completion, the likeliest tokens unless `more` says otherwise."""
        return await self.post("/v1/completions", {"model": model, "prompt": prompt, "temperature": 0, **more})

    async def models(self) -> dict[str, dict[str, Any]]:
        """Return the cards of GET /v1/models by name."""
        return {card["id"]: card for card in (await self.get("/v1/models")).body["data"]}


async def _answer(response: aiohttp.ClientResponse) -> Answer:
    text = await response.text()
    try:
        return Answer(response.status, json.loads(text))
    except ValueError:
        return Answer(response.status, text)


def _get(path: Path, route: str) -> int:
    connection = http.client.HTTPConnection("engine", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(10)
        connection.sock.connect(str(path))
        connection.request("GET", route)
        return connection.getresponse().status
    finally:
        connection.close()
