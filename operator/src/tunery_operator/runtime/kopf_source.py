"""Provide the events that Kopf dispatches, and Kopf itself. Only this module imports Kopf.

Kopf is the framework that users of this project asked for: it calls a handler for each of our objects that changed.
Kopf's own watches do not suit a long-lived operator (decisions 19 and 20). They end the process on an error, miss what
was deleted in a gap, and read a resource in one list. So reflectors watch the cluster and keep the cache. Kopf watches
a small API server inside this process, which names each changed object. Jobs, pods, and Deployments bypass Kopf.

Kopf discovers our kinds, and namespaces, without which it does not start. It lists nothing, and reads one endless
stream of events per kind. All that Kopf 1.45 needs of its connection is in this file:

- `kopf.AiohttpSession` uses `headers`, `closed`, `request()`, and `close()` of a session.
- Of a response it uses `status`, `json()`, `content.iter_chunked()`, `close()`, `closed`, and `async with`.
- An event has a type, and an object with apiVersion, kind, name, and namespace. It has no uid: Kopf keeps a record of
  each uid until the object's deletion, which it never sees here. Objects without a uid share one record.

An event only names an object. Events for an object that Kopf has not read yet are one event.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Final, Self, cast
from urllib.parse import urlsplit

import aiohttp
import kopf

from tunery_api.kinds import Kind
from tunery_api.names import API_VERSION, GROUP, VERSION
from tunery_operator.observed.metadata import Key

SERVER: Final = "http://kopf-source.invalid"
"""A name that no resolver knows, so that no request leaves the process."""
_BATCH: Final = 100
"""Events in one chunk; between two chunks the event loop runs other tasks."""


def _resource(name: str, kind: str) -> dict[str, Any]:
    verbs = ["get", "list", "watch"]
    return {"name": name, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": verbs}


_VERSION: Final = {"groupVersion": API_VERSION, "version": VERSION}
_DISCOVERY: Final[dict[str, dict[str, Any]]] = {
    "/api": {"versions": ["v1"]},
    "/api/v1": {"resources": [_resource("namespaces", "Namespace") | {"namespaced": False}]},
    "/apis": {"groups": [{"name": GROUP, "versions": [_VERSION], "preferredVersion": _VERSION}]},
    f"/apis/{API_VERSION}": {"resources": [_resource(kind.plural, kind.value) for kind in Kind]},
}


class KopfEventSource:
    """The API server that Kopf watches; all methods belong to the event loop's thread."""

    def __init__(self) -> None:
        self._streams = {f"/apis/{API_VERSION}/{kind.plural}": _Stream(kind) for kind in Kind}
        self._by_kind = {stream.kind: stream for stream in self._streams.values()}
        self.headers: dict[str, str] = {"User-Agent": "kopf"}
        self.closed = False

    def add(self, keys: Iterable[Key]) -> None:
        """Have Kopf call its handlers for these objects."""
        for key in keys:
            self._by_kind[key.kind].put(key)

    async def request(self, method: str, url: str, **_: Any) -> _Response:
        """Return what an API server returns. Raises LookupError for a request that Kopf is not expected to make."""
        parts = urlsplit(url)
        known = _DISCOVERY.get(parts.path)
        if method.lower() == "get" and known is not None:
            return _Response(known)
        stream = self._streams.get(parts.path)
        if method.lower() != "get" or stream is None:
            raise LookupError(f"Kopf asks for {method} {parts.path}: has its version changed?")
        if "watch=true" in parts.query.split("&"):
            return _Response({}, stream)
        return _Response({"metadata": {"resourceVersion": "0"}, "items": []})

    async def close(self) -> None:
        """Note that Kopf has ended. Streams never end: Kopf would open the next one at once."""
        self.closed = True


class _Stream:
    """The events of one kind that Kopf has not read yet."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._waiting: dict[Key, None] = {}
        self._changed = asyncio.Event()

    def put(self, key: Key) -> None:
        self._waiting.setdefault(key)
        self._changed.set()

    async def iter_chunked(self, _: int) -> AsyncIterator[bytes]:
        """Yield lines of JSON, one event each, without end."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._waiting:
                batch = list(itertools.islice(self._waiting, _BATCH))
                for key in batch:
                    del self._waiting[key]
                yield b"".join(map(_line, batch))


def _line(key: Key) -> bytes:
    meta = {"namespace": key.namespace, "name": key.name}
    item = {"apiVersion": API_VERSION, "kind": key.kind.value, "metadata": meta}
    return json.dumps({"type": "MODIFIED", "object": item}).encode() + b"\n"


class _Response:
    """A response with status 200."""

    status: Final = 200

    def __init__(self, body: dict[str, Any], content: _Stream | None = None) -> None:
        self._body = body
        self.content = content
        self.closed = False

    async def json(self) -> dict[str, Any]:
        """Return the body, which callers must not change."""
        return self._body

    def close(self) -> None:
        """Note that Kopf stops reading."""
        self.closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


OnChange = Callable[[Iterable[Key]], None]
_YEAR: Final = 365 * 86_400.0


class KopfDispatcher:
    """Kopf, which watches the event source instead of a cluster."""

    def __init__(self, source: KopfEventSource, on_change: OnChange) -> None:
        self._registry = _registry(source, on_change)
        self._stop = asyncio.Event()

    async def run(self, on_started: Callable[[], None]) -> None:
        """Dispatch changes to the handlers until stopped.

        Calls `on_started` once Kopf has set its signal handlers, so that the caller can replace them.
        """
        # Kopf logs each step as INFO, and what fails as WARNING or ERROR.
        logging.getLogger("kopf").setLevel(logging.WARNING)
        others = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(registry=self._registry, clusterwide=True, stop_flag=self._stop)
        on_started()
        await kopf.run_tasks(tasks, ignored=others)

    def stop(self) -> None:
        """Let `run` return."""
        self._stop.set()


def _registry(source: KopfEventSource, on_change: OnChange) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    for kind in Kind:
        watch = kopf.on.event(GROUP, VERSION, kind.plural, registry=registry, id=kind.plural)
        watch(_handler(kind, on_change))

    @kopf.on.startup(registry=registry)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        _configure(settings)

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        return kopf.AiohttpSession(server=SERVER, aiohttp_session=cast(aiohttp.ClientSession, source))

    return registry


def _handler(kind: Kind, on_change: OnChange) -> Any:
    async def changed(namespace: str, name: str, **_: Any) -> None:
        on_change([Key(kind, namespace, name)])

    return changed


def _configure(settings: kopf.OperatorSettings) -> None:
    """Set Kopf up to dispatch and to do nothing else: no annotations, no finalizers, no events, no peering."""
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = _NoDiffs()
    # A worker per object only waits for the next event: end it soon.
    settings.queueing.idle_timeout = 0.2
    # The source is silent while nothing changes.
    settings.watching.inactivity_timeout = _YEAR


class _NoDiffs(kopf.DiffBaseStorage):
    """Kopf keeps no last-seen state: it would copy each body on each event to compare it."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        """Store nothing."""
