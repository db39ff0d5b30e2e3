"""Provide the reflector, which keeps the cache of one resource equal to the cluster: list, then watch."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from tunery_operator.metrics import WATCH_ERRORS, WATCH_RELISTS
from tunery_operator.runtime.list_watch import (
    CUT,
    DISORDER,
    UNREADABLE,
    ListWatchClient,
    WatchFailure,
    WatchSpec,
    refusal,
)
from tunery_operator.runtime.store import later

logger = logging.getLogger(__name__)

PAGE: Final = 250
"""Objects in a page of a list, which bounds the memory for unparsed objects."""
BREATH: Final = 50
"""Objects after which the event loop runs other tasks."""
FIRST_PAUSE: Final = 0.2
MAX_PAUSE: Final = 15.0
WATCH_SECONDS: Final = (300, 600)
"""Bounds of a watch's duration: random, so that not all watches end at once."""
WORKS_SECONDS: Final = 1.0
"""A watch that was open this long works, even if it sent nothing."""
STEADY_SECONDS: Final = 5.0
"""A watch that was open this long resets the backoff."""
MAX_REFUSALS: Final = 3
"""After so many rejections in a row, the reflector lists again instead of watching from its version."""
MAX_SILENCE: Final = 180.0
"""Seconds without any line from an open watch, after which the liveness probe fails."""

Json = dict[str, Any]


class ReflectorHealth:
    """The state of one reflector, for probes, metrics, and the log; all in the event loop's thread."""

    def __init__(self, spec: WatchSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self.spec = spec
        self.synced = False
        """At least one complete list was applied to the cache."""
        self._clock = clock
        self._sign = clock()
        self.astray = False
        """The cluster is older than the cache: its etcd was restored from a backup."""
        self._open = False
        self._failure: WatchFailure | None = None
        self._failing_since = 0.0

    @property
    def age(self) -> float:
        """Seconds since the last sign of life: a line of a watch, or a page of a list."""
        return self._clock() - self._sign

    @property
    def defect(self) -> str | None:
        """What only a restart fixes; not an API server that is away or rejects requests."""
        if self.astray:
            return f"{self.spec}: the cluster is older than what is known of it"
        if self._open and self.age > MAX_SILENCE:
            return f"{self.spec}: an open watch has been silent for {self.age:.0f} s"
        return None

    @property
    def trouble(self) -> str | None:
        """Why the cache is not current, such as `jobs: 403 … for 42 s`; None: it is."""
        if self._failure is not None:
            return f"{self.spec}: {self._failure} for {self._clock() - self._failing_since:.0f} s"
        return None if self.synced else f"{self.spec}: not listed yet"

    def opens(self) -> None:
        """Record the request for a watch."""
        self._open, self._sign = True, self._clock()

    def alive(self) -> None:
        """Record a sign of life, and log that a former failure has ended."""
        self._sign = self._clock()
        if self._failure is not None:
            logger.info('Watch works again: resource="%s" seconds=%.0f', self.spec, self._sign - self._failing_since)
            self._failure = None

    def ended(self) -> None:
        """Record the end of a watch."""
        self._open = False

    def counts(self, failure: WatchFailure) -> None:
        """Count a failure that the next try may end."""
        self.ended()
        WATCH_ERRORS.labels(self.spec.resource, failure.code).inc()
        logger.debug('Watch failed: resource="%s" error="%s"', self.spec, failure)

    def fails(self, failure: WatchFailure) -> None:
        """Count a failure, and log it once for each change of state."""
        self.counts(failure)
        if self._failure is None:
            self._failing_since = self._clock()
        if self._failure is None or self._failure.code != failure.code:
            logger.warning('Watch failed: resource="%s" error="%s"', self.spec, failure)
        self._failure = failure

    def lists(self) -> None:
        """Count a list after the first."""
        if self.synced:
            WATCH_RELISTS.labels(self.spec.resource).inc()


class EventHandler(Protocol):
    """Receives the objects of a reflector, possibly repeatedly and late."""

    def on_update(self, body: Json) -> None:
        """Add or update an object, which the handler may keep."""

    def on_delete(self, body: Json) -> None:
        """Remove an object that was deleted, or is no longer selected; `body` is its last state."""

    def on_list(self, uids: set[str], version: str) -> None:
        """Remove every object older than `version` that a complete list of that version does not have."""


class Reflector:
    """Keeps one resource in the cache. `run` survives every failure, counts it, and reports it to `health`."""

    def __init__(self, client: ListWatchClient, handler: EventHandler, health: ReflectorHealth) -> None:
        self.health = health
        self._client = client
        self._handler = handler
        self._spec = health.spec
        self._version: str | None = None
        """The version that the next watch continues from; None: list first."""
        self._newest = ""
        """The latest version ever seen."""
        self._failures = 0
        """In a row; the pause before the next try grows with them."""
        self._heard = False
        """The current watch has sent an event."""

    async def run(self) -> None:
        """List and watch until cancelled."""
        try:
            while True:
                try:
                    await self._once()
                except WatchFailure as failure:
                    await self._survive(failure)
        finally:
            await self._client.close()

    async def _once(self) -> None:
        self._heard = False
        if self._version is None:
            await self._list()
        await self._watch(self._version or "")
        self.health.ended()

    async def _list(self) -> None:
        """Pass on every object page by page, then what no longer exists."""
        self.health.lists()
        # Without a resourceVersion the answer is the newest state, and one state over all pages.
        query, uids, version = {"limit": str(PAGE)}, set[str](), ""
        while True:
            page = await self._client.page(self._spec, query)
            self.health.alive()
            meta = page["metadata"]
            version = version or self._begin(str(meta.get("resourceVersion") or ""))
            await self._hand_on(page, uids)
            if not meta.get("continue"):
                break
            query["continue"] = meta["continue"]
            del page
        self._handler.on_list(uids, version)
        self._version = self._newest = version
        self.health.synced = True

    def _begin(self, version: str) -> str:
        """Check the version of a list, which cannot be older than any seen before."""
        if self._newest and later(self._newest, version):
            self.health.astray = True
        return version

    async def _hand_on(self, page: Json, uids: set[str]) -> None:
        for index, body in enumerate(_taken(page.get("items") or [])):
            uids.add(body["metadata"]["uid"])
            self._handler.on_update(body)
            if index % BREATH == BREATH - 1:
                await asyncio.sleep(0)

    async def _watch(self, version: str) -> None:
        query = {
            "watch": "1",
            "allowWatchBookmarks": "1",
            "resourceVersion": version,
            "timeoutSeconds": str(random.randint(*WATCH_SECONDS)),  # noqa: S311 - spreads load
        }
        self.health.opens()
        async with self._client.watch(self._spec, query) as events:
            loop = asyncio.get_running_loop()
            began, works = loop.time(), loop.call_later(WORKS_SECONDS, self.health.alive)
            try:
                async for event in events:
                    if event["type"] == "ERROR":
                        raise refusal(event["object"])
                    self._heard = True
                    self.health.alive()
                    self._take(event["type"], event["object"])
            finally:
                works.cancel()
                if loop.time() - began > STEADY_SECONDS:
                    self._failures = 0
            if not self._heard and loop.time() - began < WORKS_SECONDS:
                raise WatchFailure(CUT, "the watch ended at once")

    def _take(self, kind: str, body: Json) -> None:
        """Apply one event. The API server sends each once, in the order of their versions, also over all objects."""
        try:
            version = str(body["metadata"]["resourceVersion"])
        except (KeyError, TypeError) as error:
            raise WatchFailure(UNREADABLE, "an event has no resourceVersion") from error
        if version == self._version and kind != "BOOKMARK":
            return
        if self._version and later(self._version, version):
            raise WatchFailure(DISORDER, f"version {version} came after {self._version}")
        if kind in ("ADDED", "MODIFIED"):
            self._handler.on_update(_stripped(body))
        elif kind == "DELETED":
            self._handler.on_delete(body)
        self._version = self._newest = version

    async def _survive(self, failure: WatchFailure) -> None:
        """Report a failure, and wait before the next try."""
        self._failures += 1
        if failure.is_usual and self._failures == 1:
            self.health.counts(failure)
        else:
            self.health.fails(failure)
        if failure.needs_list or (failure.doubts_version and self._failures >= MAX_REFUSALS):
            self._version = None
        # What rotates credentials or the server's certificate needs no more than a new connection.
        await self._client.close()
        await asyncio.sleep(self._pause(failure))

    def _pause(self, failure: WatchFailure) -> float:
        """Return the seconds until the next try: capped, growing, spread, and no less than the API server asks for."""
        pause = min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10))
        return max(pause * random.uniform(0.5, 1.0), failure.retry_after or 0.0)  # noqa: S311 - spreads load


def _taken(items: list[Json]) -> Iterator[Json]:
    """Yield the objects of a page, and drop each from memory."""
    items.reverse()
    while items:
        yield _stripped(items.pop())


def _stripped(body: Json) -> Json:
    """Return an object without what no reader needs: half of each is managedFields."""
    body["metadata"].pop("managedFields", None)
    return body
