"""The gateway's routes: what is not in this table is not there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from aiohttp import web

from tunery_api.reasons import FailureReason
from tunery_api.redact import redact
from tunery_api.serving import NO_KEYS, Remark, ReplicaState
from tunery_server.engine import EngineGone
from tunery_server.gateway.auth import HINT, ApiKeys
from tunery_server.gateway.body import MAX_BODY
from tunery_server.gateway.clients import CLIENTS_HINT, unknown_clients
from tunery_server.gateway.connections import Room, let_in
from tunery_server.gateway.dying import Dying
from tunery_server.gateway.engine_metrics import engine_metrics
from tunery_server.gateway.errors import Refusal, not_found, not_served
from tunery_server.gateway.metrics import Metrics
from tunery_server.gateway.models import models, one_model
from tunery_server.gateway.near import Near
from tunery_server.gateway.proxy import CHAT, COMPLETIONS, RESPONSES, Proxy
from tunery_server.gateway.session import EngineAsked
from tunery_server.routes import NotServed, Routes, UnknownModel

HEALTH_SECONDS: Final = 2.0
MOST_SAID: Final = 1024
"""Bytes of a sentence in a report."""
HEALTH_AGE: Final = 1.0
"""For how long the engine is not asked again what needs no key."""
_TEXT_FORMAT: Final = "text/plain; version=0.0.4; charset=utf-8"
Told = TypeVar("Told")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

logger = logging.getLogger(__name__)


class LoaderAsked(Protocol):
    """What the gateway asks of the loader."""

    def ready(self) -> bool:
        """Say whether every adapter is served, or has failed for good."""

    def state(self) -> ReplicaState:
        """Return what the replica says of itself."""


@dataclass
class Gateway:
    """What the gateway is made of."""

    routes: Routes
    engine: EngineAsked
    loader: LoaderAsked
    keys: ApiKeys
    metrics: Metrics = field(init=False)
    near: Near = field(default_factory=Near)
    room: Room = field(default_factory=Room)
    ending: bool = False
    """Told to stop: no new request is to come."""
    told: Callable[[], bool] = lambda: True
    """Whether the operator knows what is served here, so that its status says so once the kubelet calls us ready; or
    it is not waited for."""

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.routes, self.keys.names, self.room)

    def state(self) -> ReplicaState:
        """Return what the replica says of itself: the loader's state, and who gets in, and what is wrong with that."""
        state = self.loader.state()
        told: dict[str, object] = {"api_keys": self.keys.secret or NO_KEYS}
        if problem := self.keys.problem():
            if state.reason is None:
                told |= {"reason": FailureReason.SECRET_NOT_FOUND, "message": problem, "hint": HINT}
        else:
            told["remark"] = self._of_clients()
        return state.model_copy(update=told)

    def _of_clients(self) -> Remark | None:
        """Return which listed clients no key belongs to: that keeps nobody else out, nor the replica from its work."""
        secret, listed = self.keys.secret, frozenset(self.routes.limited())
        problem = unknown_clients(listed, self.keys.held(), secret) if secret is not None else None
        if problem is None:
            return None
        return Remark(reason=FailureReason.SECRET_NOT_FOUND, message=redact(problem, MOST_SAID), hint=CLIENTS_HINT)


def build_app(gateway: Gateway) -> web.Application:
    """Return the application. Its runner must not decompress bodies, and cancels a handler whose client has gone."""
    app = web.Application(client_max_size=MAX_BODY, middlewares=[_in_openais_shape])
    app.on_response_prepare.append(_without_server)
    proxy = Proxy(gateway.routes, gateway.engine, gateway.keys, gateway.metrics, gateway.near)
    app.add_routes([web.post(path, proxy.at(path)) for path in (CHAT, COMPLETIONS, RESPONSES)])
    probes = _Probes(gateway, proxy.dying)
    shown = _Models(gateway)
    for path, handler in (
        ("/v1/models", shown.all),
        ("/v1/models/{id:.+}", shown.one),
        ("/metrics", probes.metrics),
        ("/livez", probes.live),
        ("/readyz", probes.ready),
        ("/healthz/engine", probes.engine),
    ):
        app.router.add_get(path, handler, allow_head=False)
    return app


class _Models:
    """What can be asked for; with a key, as all that is asked."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def _client(self, request: web.Request) -> str:
        client = self._gateway.keys.client(request.headers.get("Authorization"))
        let_in(request)
        return client

    async def all(self, request: web.Request) -> web.Response:
        client = self._client(request)
        return web.json_response(models(self._gateway.routes, client))

    async def one(self, request: web.Request) -> web.Response:
        client = self._client(request)
        name = request.match_info["id"]
        try:
            return web.json_response(one_model(self._gateway.routes, client, name))
        except UnknownModel as error:
            raise self._gateway.near.refusal(self._gateway.routes, client, name) from error
        except NotServed as error:
            raise not_served(error) from error


class _Probes:
    """What the kubelet and Prometheus ask, without a key: the engine is asked for it no more than once a second."""

    def __init__(self, gateway: Gateway, dying: Dying) -> None:
        self._gateway = gateway
        self._dying = dying
        self._health = _Remembered(self._ask_health)
        self._engines = _Remembered(lambda: engine_metrics(gateway.engine))

    async def live(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def engine(self, _: web.Request) -> web.Response:
        return _told([] if await self._health.get() else ["the engine does not answer"])

    async def ready(self, _: web.Request) -> web.Response:
        gateway = self._gateway
        problems = ["told to stop"] if gateway.ending else []
        if problem := gateway.keys.problem():
            problems.append(f"{FailureReason.SECRET_NOT_FOUND}: {problem}. {HINT}")
        if not await self._health.get():
            problems.append("the engine does not answer")
        elif self._dying.now:
            problems.append("the engine is being stopped")
        elif not gateway.loader.ready():
            problems.append(gateway.loader.state().message or "adapters are being loaded")
        elif not problems and not gateway.told():
            problems.append("the operator is being told what is served")
        return _told(problems)

    async def metrics(self, _: web.Request) -> web.Response:
        own = self._gateway.metrics.expose()
        return web.Response(body=own + await self._engines.get(), headers={"Content-Type": _TEXT_FORMAT})

    async def _ask_health(self) -> bool:
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                return await self._gateway.engine.health()
        except (TimeoutError, EngineGone):
            return False


class _Remembered(Generic[Told]):
    """What the engine says, asked for by one at a time and remembered for a moment."""

    def __init__(self, ask: Callable[[], Awaitable[Told]]) -> None:
        self._ask = ask
        self._lock = asyncio.Lock()
        self._told: tuple[float, Told] | None = None

    async def get(self) -> Told:
        async with self._lock:
            if self._told is None or time.monotonic() - self._told[0] >= HEALTH_AGE:
                told = await self._ask()
                self._told = time.monotonic(), told
            return self._told[1]


def _told(problems: list[str]) -> web.Response:
    return web.Response(text="\n".join(problems), status=503) if problems else web.Response(text="ok")


@web.middleware
async def _in_openais_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refusal as refusal:
        return refusal.response()
    except (web.HTTPNotFound, web.HTTPMethodNotAllowed):
        return not_found().response()
    except Exception:
        logger.exception("a defect of the gateway, at %s %s", request.method, request.path)
        return Refusal(500, "The server has failed at this request; its log says more.", "internal_error").response()


async def _without_server(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.pop("Server", None)
