"""Room on the disk for who is asked for: idle adapters leave the engine, so that their files may go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from tunery_common.errors import TuneryError
from tunery_server.adapters.cache import DiskTooSmall, OverLimit
from tunery_server.adapters.departures import Departures
from tunery_server.adapters.places import Places
from tunery_server.adapters.slot import LOOK_SECONDS, Slot

WAIT_SECONDS: Final = 10.0
"""How long who is asked for waits until another has answered what it is being asked."""
_POLL_SECONDS: Final = 0.1
_LEAVES_SECONDS: Final = 1.0
"""How long one that is leaving already is waited for before another has to."""


class DiskRoom:
    """Asks the places for who may leave; the cache removes the files of those that have left, once it needs to."""

    def __init__(self, places: Places, departures: Departures, clock: Callable[[], float]) -> None:
        self._places = places
        self._departures = departures
        self._clock = clock

    async def make(self, slot: Slot, full: TuneryError) -> bool:
        """Return once more may fit for a slot that met `full`; False where nobody asks for it, and it has no place now.

        Raises DiskTooSmall where nothing could leave for it even if nobody was asked, else `full`.
        """
        is_limit = isinstance(full, OverLimit)
        if not (slot.waiters or slot.item.keep_loaded or slot.served):
            if not is_limit:
                raise full
            self._places.release(slot)
            self._places.disk_is_full(self._clock() + LOOK_SECONDS)
            return False
        leaving = self._departures.tasks()
        if leaving:
            done, _ = await asyncio.wait(leaving, timeout=_LEAVES_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return True
        left = WAIT_SECONDS
        while not self._places.evict():
            if is_limit and self._places.only_kept_beside(slot):
                raise DiskTooSmall(full.reason, full.message, full.hint) from full
            if not slot.waiters or left <= 0:
                raise full
            await asyncio.sleep(_POLL_SECONDS)
            left -= _POLL_SECONDS
        self._places.disk_is_full(self._clock() + LOOK_SECONDS)
        return True
