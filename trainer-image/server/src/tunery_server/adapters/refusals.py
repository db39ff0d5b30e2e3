"""Requests for a cold adapter that it is not even tried to load now: told why before another leaves for it."""

from __future__ import annotations

from collections.abc import Callable

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_server.adapters.cache import AdapterCache, DiskTooSmall
from tunery_server.adapters.disk_room import DiskRoom
from tunery_server.adapters.residents import Residents
from tunery_server.adapters.slot import Slot
from tunery_server.adapters.telling import ANEW, Teller
from tunery_server.adapters.waking import Why


class Refusals:
    """Knows by engine, disk and slot; nothing in it waits."""

    def __init__(
        self, residents: Residents, cache: AdapterCache, room: DiskRoom, teller: Teller, clock: Callable[[], float]
    ) -> None:
        self._residents = residents
        self._cache = cache
        self._room = room
        self._teller = teller
        self._clock = clock

    def why(self, slot: Slot) -> Why | None:
        """Return why it is not even tried to load a slot now."""
        if not self._residents.up:
            return FailureReason.ENGINE_FAILED, ANEW
        problem, cold = slot.problem, slot.cold
        if problem is None or cold is None or self._clock() >= problem.retry_at:
            return self.over_disk(slot)
        if problem.sha256 != cold.sha256 and self._cache.folder(cold.sha256).exists():
            return None
        return problem.error.reason, problem.error.message

    def silent(self, slot: Slot, words: str) -> Why:
        """Note of what was waited for in vain, and may be so for long yet, that its storage is silent; return why."""
        error, now = TuneryError(FailureReason.STORAGE_UNAVAILABLE, words), self._clock()
        if slot.problem is None or now >= slot.problem.retry_at:  # many may have waited
            slot.failed(error, slot.wanted, now)
            self._teller.tell(slot)
        return error.reason, error.message

    def over_disk(self, slot: Slot) -> Why | None:
        """Return, and note, why a cold version would find no room on the disk whoever of the others left it."""
        cold = slot.cold
        if cold is None or self._cache.folder(cold.sha256).exists():
            return None
        try:
            self._room.check(slot, cold.size)
        except DiskTooSmall as error:
            slot.failed(error, cold.sha256, self._clock())
            self._teller.tell(slot)
            return error.reason, error.message
        return None
