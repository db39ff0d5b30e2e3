"""The engine's answer, back to the client: a stream piece by piece as it comes, anything else as a whole."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp import web

from tunery_api.redact import redact
from tunery_server.gateway.dying import DIED, ENDS, engines_words
from tunery_server.gateway.errors import Refusal, engine_failed
from tunery_server.gateway.usage import Usage, UsageReader, usage_in
from tunery_server.routes import Target

ADAPTER_HEADER: Final = "X-Tunery-Adapter"
MANIFEST_HEADER: Final = "X-Tunery-Manifest-SHA256"
IDLE_SECONDS: Final = 600.0
"""Between two pieces of a stream: for the engine to give one, and for the client to take all of one.

Of who takes nothing at all the connection is closed before.
"""
ENGINE_DIED: Final = "EngineDied"
"""The code of an answer to a request that the engine had when it died: that may be the request's own doing."""
MAX_ANSWER: Final = 64 << 20
MAX_ERROR: Final = 512
"""Bytes of what the engine says of its own failure."""
MAX_ERROR_BODY: Final = 256 << 10
_JSON: Final = "application/json"
_CONTENT_TYPE: Final = re.compile(r"(?:application/json|text/event-stream|text/plain)(?:;[\x20-\x7e]{0,64})?")


@dataclass
class Passage:
    """A request on its way, and its answer."""

    request: web.Request
    path: str
    target: Target
    begun: web.StreamResponse | None = None
    """The answer of a stream, from when its head may have gone out."""
    usage: Usage | None = None

    def headers(self) -> dict[str, str]:
        """Return the headers that say which version answers; the base has none."""
        target = self.target
        if target.version is None:
            return {}
        digest = {} if target.sha256 is None else {MANIFEST_HEADER: target.sha256}
        return {ADAPTER_HEADER: target.engine_name, **digest}


class ClientGone(Exception):
    """Nobody waits for the rest of the answer."""

    def __init__(self, begun: web.StreamResponse) -> None:
        super().__init__()
        self.begun = begun


async def stream(
    passage: Passage, answer: aiohttp.ClientResponse, limit: asyncio.Timeout, *, swallow: bool
) -> web.StreamResponse:
    """Pass a stream on, each read at once; raises ClientGone, and what aiohttp raises where the engine breaks off.

    `limit` is moved on with the stream. `swallow`: the client had not asked for the number of tokens.
    """
    passage.begun = response = web.StreamResponse(headers={"Content-Type": _content_type(answer), **passage.headers()})
    now = asyncio.get_running_loop().time
    moved = 0.0
    reader = UsageReader(swallow)
    try:
        await _client(response, response.prepare(passage.request))
        async for data in answer.content.iter_any():
            if now() - moved > 1:  # moving it costs more than all else here
                moved = now()
                limit.reschedule(moved + IDLE_SECONDS)
            if kept := reader.feed(data):
                await _client(response, response.write(kept))
        if rest := reader.end():
            await _client(response, response.write(rest))
        await _client(response, response.write_eof())
    finally:
        passage.usage = reader.usage
    return response


async def _client(response: web.StreamResponse, said: Awaitable[object]) -> None:
    try:
        await said
    except ConnectionResetError as error:
        raise ClientGone(response) from error


async def whole(passage: Passage, answer: aiohttp.ClientResponse) -> web.Response:
    """Return an answer that is not streamed; raises Refusal where the engine has failed, and EngineEnds."""
    read = bytearray()
    async for data in answer.content.iter_any():
        read += data
        if len(read) > MAX_ANSWER:
            raise Refusal(502, f"The engine's answer takes more than {MAX_ANSWER >> 20} MiB.", "answer_too_large")
    if answer.status >= 500:
        _look_for_its_end(bytes(read))
        raise Refusal(answer.status, _told(bytes(read)), "engine_error")
    if answer.status < 200 or 300 <= answer.status < 400:
        raise Refusal(502, f"The engine answered with {answer.status}.", "engine_error")
    if answer.status == 200:
        passage.usage = usage_in(bytes(read))
    headers = {"Content-Type": _content_type(answer), **passage.headers()}
    return web.Response(body=bytes(read), status=answer.status, headers=headers)


class EngineEnds(Exception):
    """The engine says that it is ending; whatever it was asked is not to blame."""


def _look_for_its_end(read: bytes) -> None:
    """Raise EngineEnds, or Refusal where the engine has died, if that is what the engine says."""
    said = engines_words(read) if len(read) < MAX_ERROR_BODY else None
    if said in ENDS:
        raise EngineEnds
    if said in DIED:
        text = "The engine has died while it had this request, and is being started again; ask again."
        raise engine_failed(text, ENGINE_DIED)


async def break_off(request: web.Request, response: web.StreamResponse, error: Exception) -> None:
    """End a stream so that the client sees that it is not whole: an error is its last event, and it has no end."""
    transport = request.transport
    if transport is None:
        return
    if isinstance(error, TimeoutError):  # perhaps the client's: what was written to it may never be read
        transport.abort()
        return
    refusal = Refusal(503, "The engine has broken off this answer; ask again.", "engine_error")
    with suppress(OSError):
        await response.write(b"data: " + json.dumps(refusal.body()).encode() + b"\n\n")
    transport.close()


def _content_type(answer: aiohttp.ClientResponse) -> str:
    given = answer.headers.get("Content-Type", "")
    return given if _CONTENT_TYPE.fullmatch(given) else _JSON


def _told(read: bytes) -> str:
    """Return what the engine says of its failure, short and without credentials."""
    said = engines_words(read) if len(read) < MAX_ERROR_BODY else None
    text = read[: 8 * MAX_ERROR].decode(errors="replace") if said is None else said
    return redact(f"The engine failed: {text.strip() or 'it does not say why'}", MAX_ERROR)
