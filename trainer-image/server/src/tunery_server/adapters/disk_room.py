"""Room on the disk for who is asked for: idle adapters leave the engine, so that their files may go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_api.remedies import edit
from tunery_common.errors import TuneryError, raise_disk
from tunery_server.adapters.cache import AdapterCache, DiskTooSmall, LargerThanDisk, OverLimit
from tunery_server.adapters.departures import Departures
from tunery_server.adapters.places import Places
from tunery_server.adapters.slot import LOOK_SECONDS, Slot

WAIT_SECONDS: Final = 10.0
"""How long who is asked for waits until another has answered what it is being asked."""
_POLL_SECONDS: Final = 0.1
_LEAVES_SECONDS: Final = 1.0
"""How long one that is leaving already is waited for before another has to."""
_FEWER_KEPT: Final = edit("Remove keepLoaded from some adapters", "adapters")


class DiskRoom:
    """Asks the places for who may leave; the cache removes the files of those that have left, once it needs to."""

    def __init__(self, places: Places, cache: AdapterCache, departures: Departures, clock: Callable[[], float]) -> None:
        self._places = places
        self._cache = cache
        self._departures = departures
        self._clock = clock

    def check_size(self, size: int) -> None:
        """Raise LargerThanDisk where a version of `size` bytes would not fit even if no other was there."""
        if (disk := self._cache.disk) is not None and size > (room := self._cache.for_all(disk)):
            message = (
                f"{size:,} bytes are needed on the disk, and {room:,} are for adapters, beside the model, of the "
                f"{disk.bytes:,} of {disk.field}"
            )
            raise LargerThanDisk(FailureReason.DISK_FULL, message, raise_disk(disk))

    def check(self, slot: Slot, size: int) -> None:
        """Raise DiskTooSmall where a version of `size` bytes would not fit even if all left that ever do."""
        self.check_size(size)
        if (disk := self._cache.disk) is None:
            return
        room, stay = self._cache.for_all(disk), self._places.staying(slot)
        if size <= room - stay:
            return
        own = slot.served.size if slot.served is not None else 0
        who = " and ".join(
            [*(["those with keepLoaded"] if stay > own else []), *(["its version of now"] if own else [])]
        )
        message = (
            f"{size:,} bytes are needed on the disk, and of the {room:,} that are for adapters, beside the model, "
            f"{stay:,} are taken by {who} ({disk.field})"
        )
        remedies = (raise_disk(disk), *([_FEWER_KEPT] if stay > own else []))
        raise DiskTooSmall(FailureReason.DISK_FULL, message, *remedies)

    async def make(self, slot: Slot, full: TuneryError) -> bool:
        """Return once more may fit for a slot that met `full`; False where nobody asks for it, and it has no place now.

        Nobody leaves before enough may. Raises DiskTooSmall where even all others would not be enough, else `full`.
        """
        limited = full if isinstance(full, OverLimit) else None
        if limited is not None:
            self.check(slot, limited.size)
            if slot.waiters and slot.served is None and slot.kept not in (None, slot.wanted):
                slot.kept = None  # the version of before, which would answer if the new one failed
                return True
        if not (slot.waiters or slot.item.keep_loaded or slot.served):
            if limited is None:
                raise full
            self._places.release(slot)
            self._places.disk_is_full(self._clock() + LOOK_SECONDS, limited.size - limited.missing)
            return False
        leaving = self._departures.tasks()
        if leaving:
            done, _ = await asyncio.wait(leaving, timeout=_LEAVES_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return True
        missing = limited.missing if limited is not None else 0
        freed = await self._evicted(slot, full, missing)
        self._places.disk_is_full(self._clock() + LOOK_SECONDS, max(0, freed - missing))
        return True

    async def _evicted(self, slot: Slot, full: TuneryError, missing: int) -> int:
        """Have an idle one leave once all idle ones take `missing` bytes; return its own, or raise as `make` does.

        Nobody does where the room can be had meanwhile. Only sizes tell what will stay: though all others that have a
        place are kept, what takes the room may be on its way, wait for its place, or be leaving.
        """
        left = WAIT_SECONDS
        while True:
            if self._places.idle() >= missing and (freed := self._places.evict()):
                return freed
            if isinstance(full, OverLimit):
                self.check(slot, full.size)
            if not slot.waiters or left <= 0:
                raise full
            await asyncio.sleep(_POLL_SECONDS)
            left -= _POLL_SECONDS
            if isinstance(full, OverLimit) and self._cache.could_hold(full.size):
                return missing  # what was on its way has come, or will not
