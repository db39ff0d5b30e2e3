"""Whether this replica acts: a stand-by keeps its cache warm and looks at nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from tunery_operator.kube.cache import Cache
from tunery_operator.runtime.priority_queue import Lane
from tunery_operator.runtime.workqueue import WorkQueue
from tunery_operator.views.owner import Key

ROUND_SECONDS: Final = 600.0
"""In this time each object that has not ended is looked at once, whatever happens or does not."""
EXPIRY_SECONDS: Final = 1.0
STOP_SECONDS: Final = 3.0
"""Time for what runs when the replica is to act no more; shorter than what a Lease still holds then."""


class Duty:
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
            self._queue.add([key], lane=self._lane(key, Lane.LOW))
        self._queue.add(self._cache.unmarked(), lane=Lane.LOW)
        self._queue.open()

    async def stop(self) -> None:
        """Act no more; returns when what ran has ended, or has had its time."""
        self.on = False
        await self._queue.close(STOP_SECONDS)

    def add(self, keys: Iterable[Key], lane: Lane = Lane.NORMAL) -> None:
        """Have objects looked at."""
        if self.on:
            self._queue.add(keys, lane=lane)

    def add_changed(self, key: Key) -> None:
        """Have an object looked at that has changed itself: a person may be waiting for the answer."""
        self.add([key], self._lane(key, Lane.NORMAL))

    def _lane(self, key: Key, otherwise: Lane) -> Lane:
        """Return the lane of an object: it goes first as long as its manifest is newer than its status."""
        body = self._cache.body(key)
        if body is None:
            return otherwise
        observed = (body.get("status") or {}).get("observedGeneration")
        return otherwise if observed == body["metadata"].get("generation", 1) else Lane.FRESH

    async def look_again(self) -> None:
        """Look at each object that has not ended once a round, spread over it, from memory, after everything else.

        What time alone changes is looked at when its time comes, and what a watch missed its next list tells. This is
        for whatever neither covers.
        """
        while True:
            keys = self._cache.unfinished()
            for key in keys:
                await asyncio.sleep(ROUND_SECONDS / len(keys))
                self.add([key], Lane.LOW)
            if not keys:
                await asyncio.sleep(ROUND_SECONDS)

    async def expire(self) -> None:
        """Have finished objects looked at when their time to live is over."""
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            if self.on:
                self.add(self._cache.take_expired(), Lane.LOW)
