"""Whether this replica acts: a stand-by keeps its cache warm and looks at nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from tunery_operator.kube.cache import Cache
from tunery_operator.runtime.priority_queue import Priority
from tunery_operator.runtime.workqueue import WorkQueue
from tunery_operator.views.owner import Key

ROUND_SECONDS: Final = 600.0
"""In this time each object that has not ended is looked at once, whatever happens or does not."""
EXPIRY_SECONDS: Final = 1.0
STOP_SECONDS: Final = 3.0
"""Time for what runs when the replica is to act no more; shorter than what a Lease still holds then."""


class LeaderGate:
    """Stands before the queue: keys that come while the replica does not act are dropped, not kept.

    When it begins to act it looks at everything that has not ended, so nothing is missed; and what others finished or
    deleted while it stood by costs it nothing.
    """

    def __init__(self, cache: Cache, queue: WorkQueue) -> None:
        self._cache = cache
        self._queue = queue
        self.on = False

    def start(self) -> None:
        """Act: begin with what nobody has looked at yet."""
        self.on = True
        for key in self._cache.unfinished():
            self._queue.add([key], Priority.HIGH if self._is_unobserved(key) else Priority.LOW)
        self._queue.add(self._cache.unmarked(), Priority.LOW)
        self._queue.open()

    async def stop(self) -> None:
        """Act no more; returns when what ran has ended, or has had its time."""
        self.on = False
        await self._queue.close(STOP_SECONDS)

    def add(self, keys: Iterable[Key], priority: Priority = Priority.HIGH) -> None:
        """Reconcile these objects, if this replica leads."""
        if self.on:
            self._queue.add(keys, priority)

    def _is_unobserved(self, key: Key) -> bool:
        """Return whether the manifest of an object is newer than its status."""
        body = self._cache.body(key)
        if body is None:
            return False
        observed = (body.get("status") or {}).get("observedGeneration")
        return bool(observed != body["metadata"].get("generation", 1))

    async def resync(self) -> None:
        """Look at each object that has not ended once a round, spread over it, from memory, after everything else.

        What time alone changes is looked at when its time comes, and what a watch missed its next list tells. This is
        for whatever neither covers.
        """
        while True:
            keys = self._cache.unfinished()
            for key in keys:
                await asyncio.sleep(ROUND_SECONDS / len(keys))
                self.add([key], Priority.LOW)
            if not keys:
                await asyncio.sleep(ROUND_SECONDS)

    async def expire(self) -> None:
        """Have finished objects looked at when their time to live is over."""
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            if self.on:
                self.add(self._cache.take_expired(), Priority.LOW)
