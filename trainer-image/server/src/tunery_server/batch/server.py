"""The server that is asked: which models it has, and a line's answer, however often it takes to get one."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, Protocol
from urllib.parse import quote

import aiohttp
from yarl import URL

from tunery_api.reasons import FailureReason
from tunery_api.redact import redact
from tunery_api.remedies import recreate, retry
from tunery_common.errors import TuneryError, first_line
from tunery_common.progress_client import retry_after
from tunery_server.batch.answers import Answer, Reply, Trouble, answered, failed, request_id
from tunery_server.batch.lines import Line
from tunery_server.batch.requests import Request
from tunery_server.gateway.answers import ADAPTER_HEADER, ENGINE_DIED, MANIFEST_HEADER, MAX_ANSWER
from tunery_server.gateway.errors import MODEL_NOT_ALLOWED

_TIMEOUT: Final = aiohttp.ClientTimeout(total=1800.0, sock_connect=10.0)
"""The gateway gives an engine ten minutes for an answer; waiting for a slot comes before."""
_TOO_MANY, _UNAVAILABLE, _UNAUTHORIZED, _FORBIDDEN, _REQUEST_TIMEOUT = 429, 503, 401, 403, 408
_MOST_WORDS: Final = 400
_SILENCE: Final = 1 / 30
"""Of the patience with an outage: for so long a server may say nothing to anybody that answers others."""
_SHORTEST_PAUSE: Final = 0.05
_OF_ANY_MODEL: Final = (FailureReason.ENGINE_FAILED, FailureReason.SECRET_NOT_FOUND, "engine_error", "http_503")
"""Codes of 503 that say nothing about the model, unless others are answered meanwhile."""

_DENIED: Final = (
    retry("Allow the model for the client of this key in access.clients of the AdapterServer"),
    retry("Change the lines to models that it may ask for (GET /v1/models with the key lists them)"),
    recreate("Name another key in apiKeySecretRef", "apiKeySecretRef"),
)

_log = logging.getLogger(__name__)


class Stopped(Exception):
    """Told to stop while a line was waiting to be asked again."""


class Absent(Exception):
    """The server answers, and not for the model of this line now."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.code)
        self.trouble = trouble


@dataclass(frozen=True)
class Patience:
    """How long is waited for what may heal by itself, in seconds."""

    outage: float = 1800.0
    """For a server that cannot be reached, or does not answer for a model."""
    known_outage: float = 10.0
    """For a model on which a line has waited so long already, until it answers again."""
    failures: int = 5
    """Of one line, after which it is an error: 5xx that is no outage, and deaths of an engine that had it."""
    first_pause: float = 0.5
    longest_pause: float = 30.0
    unknown_model: float = 10.0
    """For a model that the server does not know: it may be about to, within two reports of a replica."""
    renewed_key: float = 120.0
    """For a key that was let in before: the kubelet may renew a Secret in one pod earlier than in the other."""


class Standing(Enum):
    """How a model stands with a server."""

    KNOWN = auto()
    UNKNOWN = auto()
    DENIED = auto()
    """The API key may not ask for it."""


class Waits(Protocol):
    """As much of a stop signal as is needed here."""

    def is_set(self) -> bool:
        """Tell whether it was given."""
        ...

    async def wait(self) -> object:
        """Return once it is given."""
        ...


@dataclass(frozen=True)
class Access:
    """Where the server is and what opens it."""

    url: str
    """Ends with /v1."""
    key: Callable[[], str | None]
    """Reads the API key anew; None: none is given."""
    uid: str
    """Of the batch, for the names of its requests."""
    patience: Patience = Patience()

    @property
    def root(self) -> str:
        """The URL that the path of a line follows."""
        return self.url.rstrip("/").removesuffix("/v1")


class Server:
    """Asks through one session; made and used within one event loop."""

    def __init__(self, access: Access, stop: Waits) -> None:
        self._access = access
        self._stop = stop
        self._key = access.key()
        self._let_in = False
        self._denied_since: float | None = None
        self._spoke = time.monotonic()
        """When it last answered, if only that it cannot serve a model now; that its engine is gone is no answer."""
        self._answered = self._spoke
        """When it last answered a line."""
        self._outage: Trouble | None = None
        """Why it could not be asked when it last was tried."""
        self._lost: set[str] = set()
        """Models on which a line has waited in vain."""
        self._waiting: dict[int, float] = {}
        """Since when a line is asked again and again, by its index."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, socket_factory=_lasting_socket), timeout=_TIMEOUT
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def models(self) -> set[str]:
        """Return what the server lists; raises TuneryError, and Stopped."""
        got = await self._patiently("/v1/models")
        data = got.body.get("data") if isinstance(got.body, dict) and got.status == 200 else None
        if not isinstance(data, list):
            message = f"{self._access.url}/models answered {got.status} and no list of models"
            raise TuneryError(FailureReason.SERVER_UNAVAILABLE, message)
        return {model["id"] for model in data if isinstance(model, dict) and isinstance(model.get("id"), str)}

    async def standing(self, model: str) -> Standing:
        """Return whether a model can be asked for, also one that is not served yet; raises TuneryError, and Stopped."""
        path, began, patience = f"/v1/models/{quote(model, safe='')}", time.monotonic(), self._access.patience
        while True:
            got, waited = await self._get(path), time.monotonic() - began
            status = got.status if isinstance(got, Reply) else None
            if status in (200, _UNAVAILABLE):
                return Standing.KNOWN
            if status == _FORBIDDEN:
                return Standing.DENIED
            if status == 404 and waited >= patience.unknown_model:
                return Standing.UNKNOWN
            if waited >= patience.outage:
                raise self._silent(path, got)
            await self._pause(min(1.0, patience.longest_pause))

    def waits(self, line: Line, seconds: float) -> bool:
        """Tell whether a line has been asked again and again for so long."""
        since = self._waiting.get(line.index)
        return since is not None and time.monotonic() - since >= seconds

    async def ask(self, line: Line, request: Request) -> Answer:
        """Return the end of a line; raises TuneryError where no line can be asked any more, Absent, and Stopped."""
        try:
            return await self._ask(line, request)
        finally:
            self._waiting.pop(line.index, None)

    async def _ask(self, line: Line, request: Request) -> Answer:
        name = request_id(self._access.uid, line)
        failures, pause = 0, self._access.patience.first_pause
        while True:
            got = await self._post(line, request, name)
            now = time.monotonic()
            if isinstance(got, Reply):
                self._lost.discard(request.model)
                self._answered, self._outage = now, None
                return answered(line, request, got)
            began = self._waiting.setdefault(line.index, now)
            if self._is_of_model(got, began):
                raise Absent(got)
            self._outage = got if got.outage else None
            failures += not got.outage or got.code == ENGINE_DIED
            left = self.seconds_left(request.model, now - began)
            if got.final or failures >= self._access.patience.failures or left <= 0:
                self.give_up(request.model, got)
                return failed(line, request, got, name)
            await self._pause(min(got.retry_after or pause, max(left, _SHORTEST_PAUSE)))
            pause = min(pause * 2, self._access.patience.longest_pause)

    def failed(self, line: Line, request: Request, trouble: Trouble) -> Answer:
        """Return the end of a line that is not asked again."""
        return failed(line, request, trouble, request_id(self._access.uid, line))

    def words(self, seconds: float) -> str | None:
        """Return what is waited for where a line waits and none was answered for so long; None: nothing."""
        if self._outage is None or not self._waiting or time.monotonic() - self._answered < seconds:
            return None
        return f"waits for {self._access.url} to answer: {self._outage.code}: {self._outage.message}"

    def _is_of_model(self, got: Trouble, began: float) -> bool:
        """Tell whether only the model of a line that was first asked in vain at `began` is not served now."""
        if not got.outage or got.reply is None or got.reply.status != _UNAVAILABLE or got.code == ENGINE_DIED:
            return False
        return got.code not in _OF_ANY_MODEL or self._answered > began

    def seconds_left(self, model: str, waited: float) -> float:
        """Return for how many seconds a line, or a model, that has waited so long is asked again.

        While nothing answers at all, that is no matter of the line: it waits on, until it is no use for any.
        """
        patience, silent = self._access.patience, time.monotonic() - self._spoke
        if silent >= patience.outage * _SILENCE:
            return max(patience.outage - waited, patience.outage - silent)
        return (patience.known_outage if model in self._lost else patience.outage) - waited

    def give_up(self, model: str, trouble: Trouble) -> None:
        """Raise ServerUnavailable where it is not about the line or its model: nothing has answered for long."""
        silent = time.monotonic() - self._spoke
        if trouble.outage and silent >= self._access.patience.outage:
            message = (
                f"{self._access.url} has not answered any request for {silent / 60:.0f} minutes; the last one: "
                f"{trouble.code}: {trouble.message}"
            )
            raise TuneryError(FailureReason.SERVER_UNAVAILABLE, message)
        if trouble.outage:
            self._lost.add(model)

    def _silent(self, path: str, got: Reply | Trouble) -> TuneryError:
        said = got.message if isinstance(got, Trouble) else f"it answers {got.status}"
        return TuneryError(FailureReason.SERVER_UNAVAILABLE, f"{self._access.root}{path} cannot be asked: {said}")

    async def _pause(self, seconds: float) -> None:
        """Wait, never exactly as long as others do; raises Stopped."""
        try:
            await asyncio.wait_for(self._stop.wait(), seconds * random.uniform(1.0, 1.3))  # noqa: S311 (no secret)
        except TimeoutError:
            return
        raise Stopped

    async def _patiently(self, path: str) -> Reply:
        began, pause = time.monotonic(), self._access.patience.first_pause
        while True:
            got = await self._get(path)
            if isinstance(got, Reply) and got.status < 500 and got.status != _TOO_MANY:
                return got
            failure = self._silent(path, got)
            if time.monotonic() - began >= self._access.patience.outage:
                raise failure
            _log.info("waiting for the server: %s", failure.message)
            await self._pause(pause)
            pause = min(pause * 2, self._access.patience.longest_pause)

    async def _get(self, path: str) -> Reply | Trouble:
        try:
            async with self._session.get(URL(self._access.root + path, encoded=True), headers=self._headers()) as got:
                reply = Reply(got.status, "", _json(await _read(got)))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return _unreached(error)
        if reply.status in (_UNAUTHORIZED, _FORBIDDEN) and _code(reply) != MODEL_NOT_ALLOWED:
            return await self._denied(reply)
        self._entered()
        return reply

    async def _post(self, line: Line, request: Request, name: str) -> Reply | Trouble:
        """Ask once; raises TuneryError where the server lets nobody in with this key, or not to the model."""
        headers = {**self._headers(), "Content-Type": "application/json", "X-Request-Id": name}
        try:
            url = self._access.root + request.url
            async with self._session.post(url, data=request.body, headers=headers, allow_redirects=False) as got:
                read = await _read(got)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return _unreached(error)
        adapter, sha = got.headers.get(ADAPTER_HEADER), got.headers.get(MANIFEST_HEADER)
        reply = Reply(got.status, name, _json(read), adapter.partition("@")[0] if adapter else None, sha)
        if reply.status in (_UNAUTHORIZED, _FORBIDDEN):
            if _code(reply) == MODEL_NOT_ALLOWED:
                raise model_denied(f"{request.model!r} of line {line.number}")
            return await self._denied(reply)
        trouble = _trouble(reply, got.headers.get("Retry-After"))
        self._entered()
        if trouble is None or trouble.code not in (FailureReason.ENGINE_FAILED, ENGINE_DIED):
            self._spoke = time.monotonic()
        return trouble or reply

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def _entered(self) -> None:
        self._let_in, self._denied_since = True, None

    async def _denied(self, reply: Reply) -> Trouble:
        """Take a renewed key if there is one, or wait for it where the old one was good; else raise TuneryError."""
        now = time.monotonic()
        self._denied_since = self._denied_since or now
        waiting = self._let_in and now - self._denied_since < self._access.patience.renewed_key
        renewed = self._access.key()
        if reply.status == _UNAUTHORIZED and (renewed != self._key or waiting):
            self._key = renewed
            return Trouble("invalid_api_key", _words(reply), reply, outage=True, retry_after=1.0)
        raise _access_denied(self._access.url, reply, has_key=self._key is not None)


def model_denied(which: str, meant: str = "") -> TuneryError:
    """Return that the server holds the API key to other models; `which` names the model and its line."""
    message = f"spec.apiKeySecretRef: the server does not let this API key ask for the model {which}{meant}"
    return TuneryError(FailureReason.SERVER_ACCESS_DENIED, message, *_DENIED)


def _access_denied(url: str, reply: Reply, *, has_key: bool) -> TuneryError:
    said = f"{url} answers {reply.status}: {_words(reply)}"
    if not has_key:
        message = f"spec.apiKeySecretRef is not set, and the server asks for an API key: {said}"
        name = recreate("Name the Secret and its key with an API key in apiKeySecretRef", "apiKeySecretRef")
        return TuneryError(FailureReason.INVALID_SPEC, message, name)
    return TuneryError(FailureReason.SERVER_ACCESS_DENIED, f"spec.apiKeySecretRef: {said}")


def _trouble(reply: Reply, asked: str | None) -> Trouble | None:
    """Return what is wrong with an answer; None: nothing."""
    if reply.status == 200 and isinstance(reply.body, dict):
        return None
    if reply.status == 200:
        return Trouble("invalid_answer", "the server's answer is no JSON object", reply)
    outage = reply.status in (_TOO_MANY, _UNAVAILABLE)
    final = 400 <= reply.status < 500 and not outage and reply.status != _REQUEST_TIMEOUT
    return Trouble(_code(reply), _words(reply), reply, outage, final, retry_after(asked) if outage else None)


def _unreached(error: Exception) -> Trouble:
    if isinstance(error, _TooLarge):
        return Trouble("answer_too_large", str(error), final=True)
    if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ServerTimeoutError):
        return Trouble("timeout", f"no answer within {_TIMEOUT.total:.0f} seconds")
    text = first_line(error, _MOST_WORDS)
    return Trouble("server_unreachable", f"{type(error).__name__}: {text}", outage=True)


class _TooLarge(OSError):
    """The answer is larger than any that is kept."""


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    read = bytearray()
    async for data in answer.content.iter_any():
        read += data
        if len(read) > MAX_ANSWER:
            raise _TooLarge(f"the answer takes more than {MAX_ANSWER >> 20} MiB")
    return bytes(read)


def _json(read: bytes) -> Any:
    try:
        return json.loads(read)
    except (ValueError, RecursionError):
        return read.decode(errors="replace")[:_MOST_WORDS]


def _error(reply: Reply) -> dict[str, Any]:
    error = reply.body.get("error") if isinstance(reply.body, dict) else None
    return error if isinstance(error, dict) else {}


def _code(reply: Reply) -> str:
    code = _error(reply).get("code")
    return code if isinstance(code, str) and code else f"http_{reply.status}"


def _words(reply: Reply) -> str:
    found = _error(reply).get("message")
    text = found if isinstance(found, str) and found else f"the server answered {reply.status}"
    return redact(text, _MOST_WORDS)


def _lasting_socket(info: aiohttp.AddrInfoType) -> socket.socket:
    """Return a socket that notices within two minutes that its peer is gone: a lost node says no word."""
    family, kind, protocol, *_ = info
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 6)):
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made
