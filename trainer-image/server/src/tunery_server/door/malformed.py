"""What is no request, or none that gets as far as a route: refused in OpenAI's form, and nothing of it is repeated."""

from __future__ import annotations

import logging
from typing import Any, Final

from aiohttp import http_exceptions, web
from aiohttp.web_protocol import RequestHandler

from tunery_server.door.errors import Refusal

LONGEST_LINE: Final = 8190
"""Bytes of the request line, and of one header."""
MOST_HEADERS: Final = 128
_NAME: Final = {"Server": "tunery"}
"""Without it aiohttp writes its own, with its version; what takes that from other answers is not asked here."""

logger = logging.getLogger(__name__)


class Runner(web.AppRunner):
    """Runs the door's application, and answers what never gets there, too."""

    def __init__(self, app: web.Application, **kwargs: Any) -> None:
        super().__init__(
            app, max_line_size=LONGEST_LINE, max_field_size=LONGEST_LINE, max_headers=MOST_HEADERS, **kwargs
        )

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server())


class _Server(web.Server):
    """What aiohttp has made of the application, with connections of our own."""

    def __init__(self, made: web.Server) -> None:
        super().__init__(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,
            **made._kwargs,
        )

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(RequestHandler):
    """One client's connection."""

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
        logger.error("a defect of the door, before a route", exc_info=exc)
        return _answer(Refusal(500, "The server has failed at this request; its log says more.", "internal_error"))

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Answer; what aiohttp itself has refused is said in our words."""
        if isinstance(resp, web.HTTPExpectationFailed):
            resp = _answer(Refusal(resp.status, "Of Expect only 100-continue is known.", "expectation_failed"))
        return await super().finish_response(request, resp, start_time)


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
    text = "This is no request of HTTP/1.1: its first line, a header or its body is malformed."
    return Refusal(400, text, "malformed_request")
