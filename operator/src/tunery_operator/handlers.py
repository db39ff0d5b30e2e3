"""Watches: every event becomes keys on the queue; the only user of Kopf."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import json
import random
from collections.abc import Iterator
from typing import Any, Final

import aiohttp
import kopf
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory

from tunery_api.names import GROUP, MANAGED_BY, MANAGED_BY_LABEL, VERSION
from tunery_operator.kube.cache import Cache
from tunery_operator.plan.model import Key, Kind
from tunery_operator.queue import Lane, WorkQueue
from tunery_operator.watches import WatchAges

RESYNC_SECONDS: Final = 300.0
SETTLE_SECONDS: Final = 0.2
"""Time that Kopf needs to hand the first objects over after they have arrived."""
TRIM_SECONDS: Final = 5.0
"""Time after which the lists that every start reads have been worked through."""
_DELETED: Final = "DELETED"


def build_registry(cache: Cache, queue: WorkQueue, ages: WatchAges) -> kopf.OperatorRegistry:
    """Return the handlers of one operator."""
    registry = kopf.OperatorRegistry()
    for kind in Kind:
        watch = kopf.on.event(GROUP, VERSION, kind.plural, registry=registry, id=kind.plural)
        watch(_owner_handler(kind, cache, queue))
    labelled = {MANAGED_BY_LABEL: MANAGED_BY}

    @kopf.on.event("batch", "v1", "jobs", registry=registry, labels=labelled)
    async def job(event: kopf.RawEvent, **_: Any) -> None:
        body: Any = event["object"]
        meta = body["metadata"]
        deleted = event["type"] == _DELETED
        queue.add(cache.forget_job(meta["namespace"], meta["name"], meta["uid"]) if deleted else cache.see_job(body))

    @kopf.on.event("", "v1", "pods", registry=registry, labels=labelled)
    async def pod(event: kopf.RawEvent, **_: Any) -> None:
        body: Any = event["object"]
        queue.add(cache.forget_pod(body) if event["type"] == _DELETED else cache.see_pod(body))

    @kopf.on.startup(registry=registry)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure_kopf(settings)

    @kopf.on.login(registry=registry)
    async def login(**kwargs: Any) -> kopf.AiohttpSession | None:
        return _session(ages, **kwargs)

    return registry


def _owner_handler(kind: Kind, cache: Cache, queue: WorkQueue) -> Any:
    async def handle(event: kopf.RawEvent, **_: Any) -> None:
        body: Any = event["object"]
        meta = body["metadata"]
        if event["type"] == _DELETED:
            queue.add(cache.forget_owner(Key(kind, meta["namespace"], meta["name"]), meta["uid"]))
        else:
            queue.add(cache.see_owner(kind, body), lane=Lane.NORMAL if "status" in body else Lane.FRESH)

    return handle


def configure_kopf(settings: kopf.OperatorSettings) -> None:
    """Set Kopf up to watch and to do nothing else: no annotations, no finalizers, no events of its own."""
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = NoDiffs()
    settings.networking.error_backoffs = EndlessBackoffs()
    # A worker for each object only waits for the next event: let it go at once.
    settings.queueing.idle_timeout = 0.2
    selector = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
    settings.watching.label_selectors["batch", "v1", "jobs"] = selector
    settings.watching.label_selectors["", "v1", "pods"] = selector


class NoDiffs(kopf.DiffBaseStorage):
    """Kopf keeps no last-seen state: it would copy each body on each event to compare it."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Return nothing to compare."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        """Return no earlier state."""
        return None

    def store(self, **_: Any) -> None:
        """Store nothing."""


class NoMemories(ResourceMemories):
    """Kopf keeps a record of each object for what its other handlers remember; these remember nothing.

    At 20,000 objects those records were a tenth of the operator's memory.
    """

    async def recall(self, raw_body: Any, **options: Any) -> ResourceMemory:
        """Return a record that nobody keeps."""
        return await super().recall(raw_body, **{**options, "ephemeral": True})


class EndlessBackoffs:
    """Delays between the attempts of a request, capped and without end: a watch that fails must not end the process."""

    def __iter__(self) -> Iterator[float]:
        for attempt in itertools.count():
            yield min(30.0, 0.5 * 2 ** min(attempt, 10)) * random.uniform(0.5, 1.0)  # noqa: S311


def _session(ages: WatchAges, **kwargs: Any) -> kopf.AiohttpSession | None:
    """Return Kopf's connection to the API server, with a note of each sign of life of each watch."""
    info = kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)
    if info is None:
        return None
    trace = aiohttp.TraceConfig()

    async def on_chunk(
        session: aiohttp.ClientSession, context: Any, params: aiohttp.TraceResponseChunkReceivedParams
    ) -> None:
        ages.saw(params.url.path)

    trace.on_response_chunk_received.append(on_chunk)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers=info.as_http_headers(),
        trace_configs=[trace],
        response_class=LeanResponse,
    )
    return kopf.AiohttpSession(
        server=info.server,
        default_namespace=info.default_namespace,
        expiration=info.expiration,
        aiohttp_session=session,
    )


class LeanResponse(aiohttp.ClientResponse):
    """A response whose JSON leaves out what nobody reads: half of each object is managedFields."""

    async def json(self, **_: Any) -> Any:
        """Return the parsed body."""
        return json.loads(await self.read(), object_hook=_without_managed_fields)


def _without_managed_fields(value: dict[str, Any]) -> dict[str, Any]:
    value.pop("managedFields", None)
    return value


async def open_when_listed(queue: WorkQueue, ages: WatchAges) -> None:
    """Open the queue once each watch has listed its objects: before, a child that was not seen says nothing.

    A little later the memory that the lists took is given back.
    """
    while not ages.ready:
        await asyncio.sleep(0.02)
    await asyncio.sleep(SETTLE_SECONDS)
    queue.open()
    await asyncio.sleep(TRIM_SECONDS)
    give_memory_back()


def give_memory_back() -> None:
    """Return to the machine what reading all objects at once took; glibc would keep it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


async def resync(cache: Cache, queue: WorkQueue) -> None:
    """From time to time look at everything that has not ended, after everything else."""
    while True:
        await asyncio.sleep(RESYNC_SECONDS * random.uniform(0.9, 1.1))  # noqa: S311
        queue.add(cache.unfinished(), lane=Lane.LOW)
