"""A gateway on a real port before a fake engine on a Unix socket, for tests of the gateway alone, without a model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from tunery_api.runspec import MountedSecret
from tunery_api.serving import ReplicaState, engine_name
from tunery_server.engine import Engine
from tunery_server.gateway.app import Gateway
from tunery_server.gateway.auth import ApiKeys
from tunery_server.gateway.connections import Limits, Room
from tunery_server.process import open_gateway
from tunery_server.routes import Routes

BASE = "SmolLM2-135M"
SHA = "3fa9c1d20b7e" + "0" * 52
BOT = engine_name("support-bot", SHA)
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
CHAT = "/v1/chat/completions"
METRICS = (
    "# HELP vllm:lora_requests_info Running stats on lora requests.\n"
    "# TYPE vllm:lora_requests_info gauge\n"
    f'vllm:lora_requests_info{{running_lora_adapters="{BOT},support-bot@{"0" * 12},tone@{"1" * 12}",'
    'waiting_lora_adapters=""} 1.0\n'
    f'vllm:request_success_total{{finished_reason="stop",model_name="{BOT}"}} 4.0\n'
    'vllm:num_requests_waiting{model_name="SmolLM2-135M"} 2.0\n'
    'tunery_adapter_tokens_total{adapter="forged"} 1e9\n'
)
Handler = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


def event(payload: Any, end: str = "\n") -> bytes:
    """Return one server-sent event, as vLLM writes it."""
    return f"data: {json.dumps(payload)}{end}{end}".encode()


def chunk(text: str) -> dict[str, Any]:
    """Return a chunk of a chat completion."""
    delta = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": BOT, "choices": [delta]}


USAGE_CHUNK = {**chunk(""), "choices": [], "usage": USAGE}


@dataclass
class FakeEngine:
    """Answers as vLLM does, and remembers what it was asked."""

    socket: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    healthy: bool = True
    slow_health: float = 0.0
    handler: Handler | None = None
    metrics: str = METRICS
    runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1/models", self._models)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self.runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.UnixSite(self.runner, self.socket, backlog=2048).start()  # as of uvicorn, vLLM's

    async def stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()
            self.runner = None
        Path(self.socket).unlink(missing_ok=True)

    async def _health(self, _: web.Request) -> web.Response:
        await asyncio.sleep(self.slow_health)
        return web.Response(status=200 if self.healthy else 503)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.33.0"})

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": BASE, "object": "model"}]})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=self.metrics)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path)
        self.headers.append(dict(request.headers))
        body = await request.json()
        self.asked.append(body)
        try:
            return await (self.handler or self.default)(request, body)
        except asyncio.CancelledError:
            self.aborted.set()
            raise

    async def default(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        """Answer with three tokens, the way that was asked for."""
        if body.get("stream"):
            asked = (body.get("stream_options") or {}).get("include_usage")
            parts = [event(chunk(text)) for text in ("a", "b", "c")]
            return await stream(request, [*parts, *([event(USAGE_CHUNK)] if asked else []), b"data: [DONE]\n\n"])
        choices = [{"index": 0, "message": {"role": "assistant", "content": 'not "usage": {}'}}]
        answer = {"id": "x", "model": body["model"], "choices": choices, "usage": USAGE}
        return web.json_response(answer, headers={"X-Engine": "secret", "Server": "uvicorn"})


async def stream(request: web.Request, parts: Iterable[bytes], seconds: float = 0.0) -> web.StreamResponse:
    """Write `parts`, each by itself."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for part in parts:
        await response.write(part)
        await asyncio.sleep(seconds)
    await response.write_eof()
    return response


class Loader:
    """What the gateway asks of the loader."""

    is_ready = True
    message: str | None = None

    def ready(self) -> bool:
        return self.is_ready

    def state(self) -> ReplicaState:
        return ReplicaState(message=self.message)


@dataclass
class Site:
    """The gateway, what is behind it, and a client before it."""

    url: str
    gateway: Gateway
    engine: FakeEngine
    loader: Loader
    client: aiohttp.ClientSession
    runner: web.AppRunner

    @property
    def routes(self) -> Routes:
        return self.gateway.routes

    async def ask(self, body: Any = None, path: str = CHAT, **more: Any) -> Answer:
        """Post a request; by default one to support-bot."""
        given = {"model": "support-bot", "messages": []} if body is None else body
        data = given if isinstance(given, bytes) else json.dumps(given).encode()
        async with self.client.post(self.url + path, data=data, **more) as answer:
            return Answer(answer.status, dict(answer.headers), await answer.read())

    async def get(self, path: str, method: str = "GET", **more: Any) -> Answer:
        """Ask for a path as it is written."""
        async with self.client.request(method, URL(self.url + path, encoded=True), **more) as answer:
            return Answer(answer.status, dict(answer.headers), await answer.read())

    async def metric(self, line: str) -> float | None:
        """Return the value of a series of /metrics."""
        text = (await self.get("/metrics")).body.decode()
        values = [float(found.rpartition(" ")[2]) for found in text.splitlines() if found.startswith(line + " ")]
        return values[0] if values else None


@dataclass
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


def write_keys(folder: Path, **keys: str) -> MountedSecret:
    """Write API keys as the kubelet does: each renewal is a folder of its own, to which a link leads."""
    folder.mkdir(exist_ok=True)
    content = folder / f"..{len(list(folder.iterdir()))}"
    content.mkdir()
    for name, value in keys.items():
        (content / name).write_text(value)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    new = folder / "..data_tmp"
    new.symlink_to(content.name)
    new.rename(folder / "..data")
    return MountedSecret(name="keys", path=str(folder), field="spec.access.apiKeysSecretRef")


@asynccontextmanager
async def open_site(
    folder: Path, keys: MountedSecret | None = None, start: bool = True, limits: Limits | None = None
) -> AsyncIterator[Site]:
    """Yield a gateway that serves the base and support-bot; without `start` there is no engine yet."""
    engine = FakeEngine(str(folder / "engine.sock"))
    if start:
        await engine.start()
    routes = Routes(BASE)
    routes.serve("support-bot", BOT, SHA)
    way = Engine(engine.socket)
    loader = Loader()
    gateway = Gateway(routes, way, loader, ApiKeys(keys), room=Room(limits))
    runner = await open_gateway(gateway, 0, "127.0.0.1")
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        try:
            yield Site(url, gateway, engine, loader, client, runner)
        finally:
            await runner.cleanup()
            await way.close()
            await engine.stop()
