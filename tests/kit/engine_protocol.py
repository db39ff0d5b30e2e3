"""What a stand-in for vLLM and a faulty one have in common: arguments, socket, refusals and the shapes of answers.

Neither torch nor transformers is imported here. Shapes and words are those of vLLM 0.32.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

VERSION = "0.32.0"
Json = dict[str, Any]


class Refused(Exception):
    """A request is answered with this status and vLLM's shape of an error."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.param = status, kind, message, param

    def response(self) -> web.Response:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return web.json_response({"error": error}, status=self.status)


def arguments(description: str, words: Sequence[str]) -> argparse.Namespace:
    """Read the arguments of `vllm serve` that are used here; the others are passed over."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("model_tag", nargs="?", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--uds", required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--shutdown-timeout", type=float, default=0.0)
    for name, number in {"max-loras": 1, "max-lora-rank": 16, "max-cpu-loras": None}.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    words = list(words)
    options, _ = parser.parse_known_args(words[1:] if words[:1] == ["serve"] else words)
    options.model = options.model or options.model_tag
    options.max_cpu_loras = options.max_cpu_loras or options.max_loras
    return options


@dataclass
class Registry:
    """What is served by name: the base, and adapters with their folder and a number of their own."""

    base: str
    root: str
    max_model_len: int
    adapters: dict[str, tuple[int, str]] = field(default_factory=dict)
    loads: int = 0

    def cards(self) -> Json:
        """Return the answer of GET /v1/models."""
        base = _card(self.base, self.root, None, self.max_model_len)
        return {
            "object": "list",
            "data": [base, *(_card(name, path, self.base, None) for name, (_, path) in self.adapters.items())],
        }

    def check_load(self, body: Json) -> tuple[str, str]:
        """Return name and folder of an adapter to load; raises Refused."""
        for word in ("lora_name", "lora_path"):
            if not isinstance(body.get(word), str):
                raise Refused(400, "Bad Request", f"body.{word}: Field required", f"body.{word}")
        name, path = body["lora_name"], body["lora_path"]
        if not name or not path:
            raise Refused(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
        if name == self.base:
            raise Refused(400, "InvalidUserInput", f"The lora adapter '{name}' conflicts with a served base model.")
        if name in self.adapters:
            raise Refused(400, "InvalidUserInput", f"The lora adapter '{name}' has already been loaded.")
        return name, path

    def next_number(self) -> int:
        """Return a number that no adapter had before: the same name loaded again is another adapter."""
        self.loads += 1
        return self.loads

    def unload(self, body: Json) -> str:
        """Forget an adapter and return the answer; raises Refused."""
        name = body.get("lora_name")
        if name not in self.adapters:
            raise Refused(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        del self.adapters[name]
        return f"Success: LoRA adapter '{name}' removed successfully."

    def find(self, name: str | None) -> tuple[str, int | None]:
        """Return the name that answers and the adapter's number, None for the base; raises Refused."""
        if not name or name == self.base:
            return self.base, None
        if name not in self.adapters:
            message = f"The model `{name}` does not exist. Valid aliases: {self.base}."
            raise Refused(404, "NotFoundError", message, "model")
        return name, self.adapters[name][0]


def _card(name: str, root: str, parent: str | None, length: int | None) -> Json:
    own = {"id": name, "root": root, "parent": parent, "max_model_len": length}
    return {**own, "object": "model", "created": int(time.time()), "owned_by": "vllm", "permission": []}


def metrics(
    base: str, *, running: Sequence[str], waiting: Sequence[str], first_tokens: Sequence[float], max_loras: int
) -> str:
    """Return the metrics that people look at; `running` and `waiting` hold the model of each request.

    `first_tokens` are the seconds until each answer's first.
    """
    label = f'engine="0",model_name="{base}"'
    adapters = [",".join(sorted({name for name in names if name != base})) for names in (running, waiting)]
    info = f'max_lora="{max_loras}",running_lora_adapters="{adapters[0]}",waiting_lora_adapters="{adapters[1]}"'
    lines = []
    for name, labels, value in (
        ("num_requests_running", label, float(len(running))),
        ("num_requests_waiting", label, float(len(waiting))),
        ("lora_requests_info", info, time.time()),
    ):
        lines += [f"# TYPE vllm:{name} gauge", f"vllm:{name}{{{labels}}} {value}"]
    lines += _histogram("vllm:time_to_first_token_seconds", base, first_tokens)
    return "\n".join(lines) + "\n"


def _histogram(name: str, base: str, values: Sequence[float]) -> list[str]:
    label = f'engine="0",model_name="{base}"'
    buckets = [
        f'{name}_bucket{{engine="0",le="{most}",model_name="{base}"}} {float(sum(value <= most for value in values))}'
        for most in (0.01, 0.1, 1.0, 10.0)
    ]
    count = float(len(values))
    whole = f'{name}_bucket{{engine="0",le="+Inf",model_name="{base}"}} {count}'
    return [
        f"# TYPE {name} histogram",
        *buckets,
        whole,
        f"{name}_count{{{label}}} {count}",
        f"{name}_sum{{{label}}} {sum(values)}",
    ]


def answer_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:16]}"


def usage(prompt: int, completion: int) -> Json:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


async def read_body(request: web.Request) -> Json:
    """Return the JSON object of a request; raises Refused."""
    try:
        body = json.loads(await request.read())
    except ValueError as error:
        raise Refused(400, "Bad Request", f"JSON decode error: {error}", "body") from error
    if not isinstance(body, dict):
        raise Refused(400, "Bad Request", "body: Input should be a valid dictionary", "body")
    return body


@web.middleware
async def refusals(request: web.Request, handler: Any) -> web.StreamResponse:
    """Answer what a handler refuses in vLLM's shape, and an unknown route as FastAPI does."""
    try:
        response: web.StreamResponse = await handler(request)
    except Refused as refused:
        return refused.response()
    except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
        return web.json_response({"detail": error.reason}, status=error.status)
    return response


class Events:
    """A stream of server-sent events; one chunk a write."""

    def __init__(self, request: web.Request) -> None:
        self.request = request
        self.response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})

    async def send(self, chunk: Mapping[str, Any] | str) -> None:
        if not self.response.prepared:
            await self.response.prepare(self.request)
        text = chunk if isinstance(chunk, str) else json.dumps(chunk, separators=(",", ":"))
        await self.response.write(f"data: {text}\n\n".encode())

    async def end(self) -> web.StreamResponse:
        await self.send("[DONE]")
        await self.response.write_eof()
        return self.response


def bind(path: str) -> socket.socket:
    """Take the socket before a model is loaded, as vLLM does; ends the process where a file lies in its place."""
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        found.bind(path)
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")
    return found


async def serve(app: web.Application, bound: socket.socket, options: argparse.Namespace, stop: asyncio.Event) -> None:
    """Serve until SIGTERM or `stop`, then let what is in flight end within the shutdown timeout."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    runner = web.AppRunner(
        app, handler_cancellation=True, shutdown_timeout=options.shutdown_timeout, access_log=None, handle_signals=False
    )
    await runner.setup()
    await web.SockSite(runner, bound).start()
    sys.stderr.write("Application startup complete.\n")
    await stop.wait()
    await runner.cleanup()
