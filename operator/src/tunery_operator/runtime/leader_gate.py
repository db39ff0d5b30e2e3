"""Provide the gate before the work queue: only the leader reconciles; a standby replica keeps its cache current."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from tunery_operator.observed.metadata import Key
from tunery_operator.observed.object import ObjectView
from tunery_operator.runtime.cache import Cache
from tunery_operator.runtime.priority_queue import Priority
from tunery_operator.runtime.workqueue import WorkQueue

ROUND_SECONDS: Final = 600.0
"""The period of the resync: each object that has not ended is reconciled once in it."""
EXPIRY_SECONDS: Final = 1.0
STOP_SECONDS: Final = 3.0
"""Time for running reconciles after leadership is lost; the Lease is valid for longer."""


class LeaderGate:
    """Passes keys to the queue while this replica leads, and drops them otherwise.

    A new leader reconciles every object that has not ended, so no dropped key is missed.
    """

    def __init__(self, cache: Cache, queue: WorkQueue) -> None:
        self._cache = cache
        self._queue = queue
        self.on = False

    def start(self) -> None:
        """Start to reconcile, objects whose manifest is newer than their status first."""
        self.on = True
        for view in self._active():
            self._queue.add([view.key], Priority.HIGH if _is_unobserved(view) else Priority.LOW)
        owners = {job.owner for job in self._cache.jobs.items()}
        ended = (view for view in self._cache.all_objects() if not view.active)
        # Their Jobs are to be marked as done, or a fetch Job is to be created or deleted.
        self._queue.add((view.key for view in ended if view.key in owners or view.fetch), Priority.LOW)
        self._queue.open()

    async def stop(self) -> None:
        """Stop; returns when running reconciles have ended, or after STOP_SECONDS."""
        self.on = False
        await self._queue.close(STOP_SECONDS)

    def add(self, keys: Iterable[Key], priority: Priority = Priority.HIGH) -> None:
        """Reconcile these objects, if this replica leads."""
        if self.on:
            self._queue.add(keys, priority)

    def _active(self) -> list[ObjectView]:
        return [view for view in self._cache.all_objects() if view.active]

    async def resync(self) -> None:
        """Reconcile each object that has not ended once in ROUND_SECONDS, spread evenly, from the cache.

        Timers cover what time alone changes, and lists what a watch missed. This covers the rest.
        """
        while True:
            keys = [view.key for view in self._active()]
            for key in keys:
                await asyncio.sleep(ROUND_SECONDS / len(keys))
                self.add([key], Priority.LOW)
            if not keys:
                await asyncio.sleep(ROUND_SECONDS)

    async def expire(self) -> None:
        """Reconcile finished objects when their time to live has ended."""
        checked = 0.0
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            now = self._cache.now().timestamp() if self.on else 0.0
            expiries = ((view.key, view.expires) for view in self._cache.all_objects() if view.expires is not None)
            self.add((key for key, expires in expiries if checked < expires <= now), Priority.LOW)
            checked = now


def _is_unobserved(view: ObjectView) -> bool:
    """Return whether the manifest of an active object is newer than its status."""
    body = view.body or {}
    observed = (body.get("status") or {}).get("observedGeneration")
    return bool(observed != (body.get("metadata") or {}).get("generation", 1))
