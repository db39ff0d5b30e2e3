"""What is no request, or none that gets as far as a route: refused in OpenAI's form, and nothing of it is repeated."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import HttpVersion10, HttpVersion11, http_exceptions, web
from aiohttp.web_protocol import RequestHandler

from tunery_server.gateway.connections import Connection, Room
from tunery_server.gateway.errors import Refusal

LONGEST_LINE: Final = 8190
"""Bytes of the request line, and of one header."""
MOST_HEADERS: Final = 128
_NAME: Final = {"Server": "tunery"}
"""Without it aiohttp writes its own, with its version; what takes that from other answers is not asked here."""

logger = logging.getLogger(__name__)


class Runner(web.AppRunner):
    """Runs the gateway's application, and answers what never gets there, too."""

    def __init__(self, app: web.Application, room: Room, **kwargs: Any) -> None:
        super().__init__(
            app,
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_LINE,
            max_headers=MOST_HEADERS,
            keepalive_timeout=room.limits.idle,
            **kwargs,
        )
        self._room = room

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self._room)


class _Server(web.Server):
    """What aiohttp has made of the application, with connections of our own."""

    def __init__(self, made: web.Server, room: Room) -> None:
        super().__init__(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,
            **made._kwargs,
        )
        self._room = room

    def __call__(self) -> RequestHandler:
        return _Connection(self, self._room, self._loop, **self._kwargs)


class _Connection(Connection):
    """One client's connection, and what it is told where no route is asked."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer to what could not be read, or what failed outside of every route."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun: no other can follow")
        if status < web.HTTPInternalServerError.status_code:
            logger.debug("a request that cannot be read: %s", type(exc).__name__)
            return _answer(_unread(exc))
        logger.error("a defect of the gateway, before a route", exc_info=exc)
        return _answer(Refusal(500, "The server has failed at this request; its log says more.", "internal_error"))

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        """Answer a request; what aiohttp would refuse in its own words, or not at all, is refused in ours."""
        refusal = _unfit(request)
        if refusal is None:
            return await super()._handle_request(request, start_time, request_handler)
        # An answer begins with the version that the request had, which may be none that an answer can have.
        request._version = HttpVersion11
        answer = _answer(refusal)

        async def refuse(_: web.BaseRequest) -> web.StreamResponse:
            return answer

        return await super()._handle_request(request, start_time, refuse)


def _unfit(request: web.BaseRequest) -> Refusal | None:
    """Return why a request that was read gets to no route, in words that hold no byte of it."""
    version = request._message.version  # that of the request itself is remembered once it was read
    if version not in (HttpVersion10, HttpVersion11):
        return _malformed()
    expect = request.headers.get("Expect")
    if version == HttpVersion11 and expect and expect.lower() != "100-continue":
        return Refusal(417, "Of Expect only 100-continue is known.", "expectation_failed")
    return None


def _answer(refusal: Refusal) -> web.Response:
    refusal.headers |= _NAME
    refusal.closes = True
    return refusal.response()


def _unread(error: BaseException | None) -> Refusal:
    """Return why a request could not be read, without a byte of it."""
    if isinstance(error, http_exceptions.LineTooLong) or "Too many headers" in str(error):
        text = (
            f"The request line and each header may have {LONGEST_LINE:,} bytes, and there may be {MOST_HEADERS} "
            "headers; a long text belongs into the body."
        )
        return Refusal(400, text, "headers_too_large")
    return _malformed()


def _malformed() -> Refusal:
    text = "This is no request of HTTP/1.1: its first line, a header or its body is malformed."
    return Refusal(400, text, "malformed_request")
