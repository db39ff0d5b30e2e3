"""Requests that wait for a cold adapter: all of them for one load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from tunery_server.adapters.again import Again
from tunery_server.adapters.places import Places
from tunery_server.adapters.slot import Slot
from tunery_server.routes import NotServed

HOLD_SECONDS: Final = 30.0
"""How long a request waits, for a place in the engine and for the load together."""
LOADING: Final = "AdapterLoading"
NO_ROOM: Final = "NoRoom"
Why = tuple[str, str]
"""A reason, and a sentence."""


class Waking:
    """Asks for places on behalf of requests."""

    def __init__(
        self,
        places: Places,
        refusal: Callable[[Slot], Why | None],
        ask: Callable[[Slot], None],
        silent: Callable[[Slot, str], Why],
    ) -> None:
        """`refusal` says why a slot cannot be loaded now; `ask` gives it a place, or has it brought for one.

        `silent` notes of a slot, in the words given, that its storage is, and returns why it is not served.
        """
        self._places = places
        self._refusal = refusal
        self._ask = ask
        self._silent = silent
        self.again = Again()

    async def wait(self, slot: Slot) -> None:
        """Return once the slot is served; raises NotServed.

        Until whoever waited has been resumed the slot does not leave: it has waiters.
        """
        if (why := self._refusal(slot)) is not None:
            raise NotServed(slot.item.name, *why)
        slot.waiters += 1
        try:
            if slot.woken is None:
                slot.woken = asyncio.get_running_loop().create_future()
            woken = slot.woken
            self._ask(slot)
            async with asyncio.timeout(HOLD_SECONDS):
                why = await asyncio.shield(woken)
        except TimeoutError:
            why = self._too_long(slot)
        finally:
            slot.waiters -= 1
            if not slot.waiters and not slot.hot:
                self._places.give_up(slot)
        if why is not None:
            raise NotServed(slot.item.name, *why)

    def _too_long(self, slot: Slot) -> Why:
        at_store = slot.bringing or self._places.seeks(slot)
        if at_store and (slot.heard is None or (slot.heard.begun and not slot.heard.bytes)):
            return self._silent(slot, f"nothing of it has come from its storage within {HOLD_SECONDS:.0f} s")
        if slot.hot or at_store:
            return LOADING, f"it could not be loaded within {HOLD_SECONDS:.0f} s"
        return NO_ROOM, (
            f"all {self._places.limit} places in the engine (engine.maxLoadedAdapters) were taken for "
            f"{HOLD_SECONDS:.0f} s by adapters that are being asked"
        )
