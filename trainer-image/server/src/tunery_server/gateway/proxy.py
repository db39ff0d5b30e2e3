"""The way of a request: whose it is, what it asks for, and on to the engine."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import aiohttp
from aiohttp import web

from tunery_server.gateway import body
from tunery_server.gateway.answers import ClientGone, EngineEnds, Passage, break_off, stream, whole
from tunery_server.gateway.auth import ANYBODY, ApiKeys
from tunery_server.gateway.body import Asked
from tunery_server.gateway.connections import let_in
from tunery_server.gateway.dying import Dying
from tunery_server.gateway.errors import Refusal, engine_failed, look_whether_open, not_allowed, not_served
from tunery_server.gateway.metrics import NOTHING, Metrics
from tunery_server.gateway.near import Near
from tunery_server.gateway.session import HasSession, url
from tunery_server.routes import NotServed, Routes, UnknownModel

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
RESPONSES: Final = "/v1/responses"
CLIENT_GONE: Final = 499
CONNECT_SECONDS: Final = 10.0
FIRST_SECONDS: Final = 3600.0
"""For the engine's first word: an answer that is not streamed comes all at once."""
AT_ONCE_SECONDS: Final = 2.0
_PAUSES: Final = (0.0, 0.1, 0.5, None)
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
_ACCEPT: Final = re.compile(r"[\x20-\x7e]{1,256}")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")

logger = logging.getLogger(__name__)


class _Count:
    """What is counted of one request, whatever comes of it."""

    def __init__(self) -> None:
        self.adapter = NOTHING
        self.client = ANYBODY
        self.code = 500


class Proxy:
    """Takes requests of clients to the engine."""

    def __init__(self, routes: Routes, engine: HasSession, keys: ApiKeys, metrics: Metrics, near: Near) -> None:
        self._routes = routes
        self._engine = engine
        self._keys = keys
        self._metrics = metrics
        self._near = near
        self._gone = False
        self.dying = Dying()
        """Whether the engine says that it ends."""

    def at(self, path: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Return the handler of a path, which is the engine's path, too."""

        async def handle(request: web.Request) -> web.StreamResponse:
            count = _Count()
            try:
                answer = await self._answer(request, path, count)
            except Refusal as refusal:
                count.code = refusal.status
                raise
            except ClientGone as gone:
                count.code = CLIENT_GONE
                return gone.begun
            except asyncio.CancelledError:
                count.code = CLIENT_GONE
                raise
            else:
                count.code = answer.status
                return answer
            finally:
                self._metrics.requested(count.adapter, count.client, count.code)

        return handle

    async def _answer(self, request: web.Request, path: str, count: _Count) -> web.StreamResponse:
        count.client = self._keys.client(request.headers.get("Authorization"))
        let_in(request)
        asked = await body.read(request)
        look_whether_open(self._routes)
        if not self._routes.allows(count.client, asked.model):
            raise not_allowed()
        try:
            target = await self._routes.find(asked.model, asked.user)
        except UnknownModel as error:
            raise self._near.refusal(self._routes, count.client, asked.model) from error
        except NotServed as error:
            count.adapter = error.name
            raise not_served(error) from error
        with self._routes.using(target):
            count.adapter = target.name
            self._metrics.used(target.name)
            passage = Passage(request, path, target)
            try:
                return await self._pass_on(passage, asked)
            except Refusal as refusal:
                refusal.headers.update(passage.headers())
                raise
            finally:
                self._metrics.took(target.name, count.client, passage.usage)

    async def _pass_on(self, passage: Passage, asked: Asked) -> web.StreamResponse:
        # In its older form a stream ends with the number of its tokens only where it is asked to.
        asks = asked.streams and not asked.wants_usage and passage.path != RESPONSES
        data = asked.for_engine(passage.target.engine_name, asks)
        try:
            async with asyncio.timeout(FIRST_SECONDS) as limit, await self._ask(passage, data) as answer:
                self._gone = False
                if answer.status == 200:
                    self.dying.answers()
                if answer.status == 200 and answer.content_type == "text/event-stream":
                    return await stream(passage, answer, limit, swallow=asks)
                _lost(passage, answer)
                return await whole(passage, answer)
        except EngineEnds as error:
            self.dying.said()
            raise engine_failed("The engine is being stopped, and takes no request any more; ask again.") from error
        except (aiohttp.ClientError, OSError) as error:
            if passage.begun is None:
                raise self._is_gone(error) from error
            logger.warning("an answer of %s was broken off: %s", passage.target.engine_name, type(error).__name__)
            await break_off(passage.request, passage.begun, error)
            return passage.begun

    async def _ask(self, passage: Passage, data: bytes) -> aiohttp.ClientResponse:
        """Return the head of the engine's answer.

        Tried again is what fails at once, so has not been worked at: the engine had closed the connection for being
        idle, or had too many that it had not taken yet (asyncio believes then to be connected, and fails at the first
        byte).
        """
        begun = time.monotonic()
        for pause in _PAUSES:
            try:
                return await self._engine.session.post(
                    url(passage.path),
                    data=data,
                    headers=headers_for_engine(passage.request.headers),
                    timeout=_TIMEOUT,
                    allow_redirects=False,
                )
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                late = pause is None or time.monotonic() - begun > AT_ONCE_SECONDS
                if late or isinstance(error, aiohttp.ClientConnectorError):
                    raise
                await asyncio.sleep(pause or 0)
        raise AssertionError("the last try returns or raises")

    def _is_gone(self, error: Exception) -> Refusal:
        if not self._gone:
            self._gone = True
            logger.warning("the engine does not answer: %s: %s", type(error).__name__, error)
        text = "The engine does not answer: it is starting, or has failed and is being started again."
        return engine_failed(text)


def headers_for_engine(given: Mapping[str, str]) -> dict[str, str]:
    """Return the few headers that go on to the engine."""
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    for name, pattern in (("Accept", _ACCEPT), ("X-Request-Id", _REQUEST_ID)):
        if pattern.fullmatch(value := given.get(name, "")):
            headers[name] = value
    return headers


def _lost(passage: Passage, answer: aiohttp.ClientResponse) -> None:
    """Raise Refusal where the engine does not know what it had loaded: it was started again, and will know it soon.

    To Responses a 404 has other meanings, too.
    """
    target = passage.target
    if answer.status == 404 and target.version is not None and passage.path != RESPONSES:
        logger.warning("the engine does not know %s", target.engine_name)
        text = f"The engine has lost {target.engine_name}; it is loaded again as soon as it can be."
        raise engine_failed(text)
