"""Provide lists and watches of the API server over HTTP: parsed JSON, and every fault as a WatchFailure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import orjson

from tunery_operator.client.client import seconds_to_wait
from tunery_operator.client.connection import Connection
from tunery_operator.metrics import API_REQUESTS

GONE: Final = "410"
"""The API server no longer has the version that the watch or list continues from."""
CUT: Final = "cut"
"""The connection ended within a response."""
SILENT: Final = "silent"
"""The connection is open, and nothing comes, not even a bookmark."""
UNREACHABLE: Final = "unreachable"
DISORDER: Final = "disorder"
"""Events came in an order that an API server does not send them in."""
UNREADABLE: Final = "unreadable"


class WatchFailure(Exception):
    """A list or watch that failed; `code` is the HTTP status, or one of the constants above."""

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        self.code = code
        self.retry_after = retry_after
        """Seconds that the API server asks to wait for."""
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.code} {self.args[0]}".strip()

    @property
    def needs_list(self) -> bool:
        """Return whether only a new list helps, not a watch from the last version."""
        return self.code in (GONE, "404", DISORDER, UNREADABLE)

    @property
    def doubts_version(self) -> bool:
        """Return whether the requested version may be the cause."""
        return self.code.isdigit() and self.code not in ("401", "429", "503")

    @property
    def is_usual(self) -> bool:
        """Return whether it also happens in a healthy cluster, where the next try works."""
        return self.code in (GONE, CUT, SILENT, DISORDER)


def refusal(status: dict[str, Any], code: int | None = None, retry_after: float | None = None) -> WatchFailure:
    """Return the failure that a Status object of the API server describes."""
    number = code if code is not None else int(status.get("code") or 500)
    message = str(status.get("message") or status.get("reason") or "")
    return WatchFailure(str(number), message[:500], retry_after)


@dataclass(frozen=True, slots=True)
class WatchSpec:
    """One resource, in one namespace or in all."""

    resource: str
    """Its plural."""
    api: str
    """The path of its group and version."""
    namespace: str | None = None
    selectors: tuple[tuple[str, str], ...] = field(default=())
    """Query parameters that say which objects."""

    @property
    def path(self) -> str:
        """The path that lists and watches it."""
        namespaces = "" if self.namespace is None else f"/namespaces/{self.namespace}"
        return f"{self.api}{namespaces}/{self.resource}"

    def __str__(self) -> str:
        return self.resource if self.namespace is None else f"{self.resource} in {self.namespace}"


Json = dict[str, Any]

_MAX_REFUSAL: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait, in seconds."""

    connect: float = 10.0
    answer: float = 30.0
    """For the head of an answer, and between two pieces of a list."""
    page: float = 120.0
    """For a complete page of a list."""
    inactivity: float = 120.0
    """Between two lines of a watch: bookmarks come once a minute."""


class ListWatchClient:
    """One reflector's connection. It reads credentials for each request, and certificates after each failure."""

    def __init__(self, connection: Connection, timeouts: Timeouts) -> None:
        self._connection = connection
        self._timeouts = timeouts
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def page(self, spec: WatchSpec, query: Mapping[str, str]) -> Json:
        """Return one page of a list. Raises WatchFailure."""
        async with self._answer("list", spec, query, self._timeouts.answer) as answer:
            try:
                async with asyncio.timeout(self._timeouts.page):
                    body = orjson.loads(await answer.read())
                if not isinstance(body.get("metadata"), dict):
                    raise WatchFailure(UNREADABLE, "the answer is no list")
            except (ValueError, AttributeError) as error:
                raise WatchFailure(UNREADABLE, f"the list is not JSON: {error}") from error
            page: Json = body
            return page

    @asynccontextmanager
    async def watch(self, spec: WatchSpec, query: Mapping[str, str]) -> AsyncIterator[AsyncIterator[Json]]:
        """Open a watch, and give its events until the API server ends it. Raises WatchFailure."""
        async with self._answer("watch", spec, query, self._timeouts.inactivity) as answer:
            yield _events(answer.content, self._timeouts.inactivity)

    @asynccontextmanager
    async def _answer(
        self, verb: str, spec: WatchSpec, query: Mapping[str, str], silence: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        code = "0"
        timeout = aiohttp.ClientTimeout(sock_connect=self._timeouts.connect, sock_read=silence)
        with _raise_watch_failure(silence):
            try:
                async with asyncio.timeout(self._timeouts.answer):
                    answer = await self._open(spec, query, timeout)
                code = str(answer.status)
            finally:
                API_REQUESTS.labels(verb, spec.resource, code).inc()
            async with answer:
                if answer.status != 200:
                    raise await _rejection(answer)
                yield answer

    async def _open(
        self, spec: WatchSpec, query: Mapping[str, str], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            context = self._connection.ssl_context()
            connector = aiohttp.TCPConnector(limit=0, ssl=True if context is None else context)
            self._session = aiohttp.ClientSession(connector=connector)
        return await self._session.get(
            self._connection.host + spec.path,
            params={**dict(spec.selectors), **query},
            headers={**self._connection.headers(), "Accept": "application/json"},
            timeout=timeout,
            **self._connection.route(),
        )


@contextmanager
def _raise_watch_failure(silence: float) -> Iterator[None]:
    """Raise each error of the connection as a WatchFailure."""
    try:
        yield
    except aiohttp.SocketTimeoutError as error:
        raise WatchFailure(SILENT, f"nothing came for {silence:.0f} s") from error
    except TimeoutError as error:
        raise WatchFailure(UNREACHABLE, "no answer in time") from error
    except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionResetError) as error:
        raise WatchFailure(CUT, str(error) or type(error).__name__) from error
    # Files of certificates and tokens that are missing while they are replaced are OSErrors, too.
    except (aiohttp.ClientError, OSError) as error:
        raise WatchFailure(UNREACHABLE, str(error) or type(error).__name__) from error


async def _rejection(answer: aiohttp.ClientResponse) -> WatchFailure:
    text = await answer.content.read(_MAX_REFUSAL)
    try:
        status = orjson.loads(text)
    except ValueError:
        status = {"message": text[:200].decode(errors="replace")}
    retry_after = seconds_to_wait(answer.status, answer.headers.get("Retry-After"))
    return refusal(status if isinstance(status, dict) else {}, answer.status, retry_after)


async def _events(content: aiohttp.StreamReader, silence: float) -> AsyncIterator[Json]:
    rest, since = b"", time.monotonic()
    async for data in content.iter_any():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.strip():
                yield _event(line)
        if lines:
            since = time.monotonic()
        elif time.monotonic() - since > silence:
            raise WatchFailure(SILENT, f"no complete line came for {silence:.0f} s")
    if rest.strip():
        raise WatchFailure(CUT, "the watch ended within a line")


def _event(line: bytes) -> Json:
    try:
        event = orjson.loads(line)
        if isinstance(event["type"], str) and isinstance(event["object"], dict):
            found: Json = event
            return found
    except (ValueError, KeyError, TypeError) as error:
        raise WatchFailure(UNREADABLE, f"a line of the watch is no event: {error}") from error
    raise WatchFailure(UNREADABLE, "a line of the watch is no event")
