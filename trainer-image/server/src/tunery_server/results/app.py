"""Serve the results over HTTP to the bearer of one token: a list, and each file with ranges."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

from aiohttp import hdrs, web

from tunery_api.fetching import FILES_PATH, RESULTS_PATH, FetchError, is_token
from tunery_api.reasons import FailureReason
from tunery_api.redact import redact
from tunery_api.runspec import RunSpec
from tunery_common.errors import TuneryError
from tunery_common.storage import Entry
from tunery_server.results.listing import Listing, read_listing
from tunery_server.threads import in_thread

MAX_DOWNLOADS: Final = 8
"""Files that are read at a time; each takes one chunk of memory."""
_R: Final = FailureReason
_STATUSES: Final = {
    _R.STORAGE_NOT_FOUND: 404,
    _R.ADAPTER_MISSING: 404,
    _R.STORAGE_ACCESS_DENIED: 403,
    _R.SECRET_NOT_FOUND: 403,
    _R.ADAPTER_CORRUPT: 409,
    _R.STORAGE_UNAVAILABLE: 502,
}
"""Any other reason is answered with 500."""
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

logger = logging.getLogger(__name__)


class ByteRange(NamedTuple):
    """A part of a file."""

    start: int
    length: int

    def content_range(self, size: int) -> str:
        """Return the value of the header Content-Range."""
        return f"bytes {self.start}-{self.start + self.length - 1}/{size}"


def parse_range(request: web.BaseRequest, size: int) -> ByteRange | None:
    """Return the one range that a request names; None: it has no Range header.

    Raises ValueError if the header isn't one range of bytes, or no byte of the file is in the range. aiohttp's
    `http_range` reads `bytes=-0` as the complete file.
    """
    header = request.headers.get(hdrs.RANGE)
    if header is None:
        return None
    found = _RANGE.fullmatch(header)
    first, last = found.groups() if found is not None else ("", "")
    start, stop = (int(first), int(last or size) + 1) if first else (max(0, size - int(last or 0)), size)
    stop = min(stop, size)
    if start >= stop:
        raise ValueError(f"{header} isn't one range of a file of {size} bytes")
    return ByteRange(start, stop - start)


class ResultsServer:
    """The application; it notes when the last request with the token ended."""

    def __init__(self, run: RunSpec, token_sha256: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._token_sha256, self._clock = run, token_sha256, clock
        self._listing: Listing | None = None
        self._reading = asyncio.Lock()
        self._downloads = asyncio.Semaphore(MAX_DOWNLOADS)
        self._open = 0
        self._ended_at = clock()

    def idle_seconds(self) -> float:
        """Return the seconds since the last request with the token ended; 0 while one is answered."""
        return 0.0 if self._open else self._clock() - self._ended_at

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application(middlewares=[self._answer])
        app.router.add_get(RESULTS_PATH, self._results, allow_head=False)
        app.router.add_get(FILES_PATH + "/{group}/{path:.+}", self._file, allow_head=False)
        return app

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer 401 without the token, and each failure as JSON."""
        scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() != "bearer" or not is_token(token.strip(), self._token_sha256):
            return _error(
                401, "Unauthorized", "the bearer token isn't the requested one", {"WWW-Authenticate": "Bearer"}
            )
        self._open += 1
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _error(
                error.status, error.reason.replace(" ", ""), f"{request.method} {request.path}: {error.reason}"
            )
        except TuneryError as error:
            logger.warning("Failed to answer: path=%s reason=%s error=%s", request.path, error.reason, error.message)
            return _error(_STATUSES.get(error.reason, 500), error.reason.value, redact(error.message))
        except ConnectionError:
            raise
        except Exception:  # any bug: the client gets an answer, and the log the cause
            logger.exception("Bug in Tunery: path=%s", request.path)
            return _error(500, _R.INTERNAL_ERROR.value, "the log of the pod has the cause")
        finally:
            self._open -= 1
            self._ended_at = self._clock()

    async def _results(self, _: web.Request) -> web.StreamResponse:
        listing = await self._read()
        return web.json_response([group.to_json_dict() for group in listing.groups], headers=_NO_STORE)

    async def _read(self) -> Listing:
        """Return a new listing: the object may have published since, or a Secret may have been written."""
        async with self._reading:
            self._listing = await in_thread(partial(read_listing, self._run))
            return self._listing

    async def _file(self, request: web.Request) -> web.StreamResponse:
        """Answer a file, or one range of it, as it is read from the storage."""
        group, path = request.match_info["group"], request.match_info["path"]
        listing = self._listing
        if listing is None or listing.failure(group) is not None:
            listing = await self._read()
        async with self._downloads:
            place, entry = await in_thread(partial(listing.open, group, path))
            try:
                part = parse_range(request, entry.size)
            except ValueError as error:
                return _error(416, "RangeNotSatisfiable", str(error), {"Content-Range": f"bytes */{entry.size}"})
            read = part or ByteRange(0, entry.size)
            chunks = place.store.stream(entry, read.start, read.length)
            return await _send(request, _response(entry, part), chunks)


_NO_STORE: Final = {"Cache-Control": "no-store"}


def _error(status: int, reason: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    body = FetchError(reason=reason, message=message).to_json_dict()
    return web.json_response(body, status=status, headers={**_NO_STORE, **(headers or {})})


def _response(entry: Entry, part: ByteRange | None) -> web.StreamResponse:
    headers = {**_NO_STORE, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    if part is not None:
        headers["Content-Range"] = part.content_range(entry.size)
    response = web.StreamResponse(status=200 if part is None else 206, headers=headers)
    response.content_length = entry.size if part is None else part.length
    return response


async def _send(request: web.Request, response: web.StreamResponse, chunks: Iterator[bytes]) -> web.StreamResponse:
    """Send the chunks; the status is sent only once the first one is read.

    If a later one can't be read, close the connection: the client has fewer bytes than Content-Length.
    """

    def read() -> bytes | None:
        return next(chunks, None)

    try:
        chunk = await in_thread(read)
        await response.prepare(request)
        while chunk is not None:
            await response.write(chunk)
            chunk = await in_thread(read)
        await response.write_eof()
    except TuneryError as error:
        if not response.prepared:
            raise
        logger.warning("Lost a file halfway: path=%s reason=%s error=%s", request.path, error.reason, error.message)
        if request.transport is not None:
            request.transport.abort()
    finally:
        _close(chunks)
    return response


def _close(chunks: Any) -> None:
    """Close the connection to the storage, unless a thread still reads from it."""
    with suppress(AttributeError, ValueError):
        chunks.close()
