"""Versions that leave the engine: once nobody is answered by them any more, and never one that is routed to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Set
from typing import Final

from tunery_server.adapters.residents import Residents
from tunery_server.adapters.slot import LOOK_SECONDS
from tunery_server.routes import Routes

DRAIN_SECONDS: Final = 60.0


class Departures:
    """One task for each version that is to leave; `routed` tells the engine's names for what is routed to."""

    def __init__(
        self, residents: Residents, routes: Routes, routed: Callable[[], Set[str]], clock: Callable[[], float]
    ) -> None:
        self._residents = residents
        self._routes = routes
        self._routed = routed
        self._clock = clock
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._stuck: dict[str, float] = {}
        """Names that the engine would not forget, and when that is asked again."""

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return what is under way."""
        return list(self._leaving.values())

    def strangers(self, kept: Set[str]) -> list[str]:
        """Return what the engine holds, and is neither routed to, nor leaving, nor one of `kept`."""
        residents, now = self._residents, self._clock()
        if not residents.up:
            return []
        known = {*self._routed(), *kept, *self._leaving, residents.trying or ""}
        return [name for name in residents.registered - known if now >= self._stuck.get(name, now)]

    def leave(self, engine_name: str, *, drain: bool = False) -> None:
        """Have a version unloaded, after what is being answered by it, unless it is routed to again by then."""
        if engine_name not in self._leaving:
            self._leaving[engine_name] = asyncio.create_task(self._unload(engine_name, drain=drain))

    async def _unload(self, engine_name: str, *, drain: bool) -> None:
        try:
            if drain:
                await self._routes.drained(engine_name, DRAIN_SECONDS)
            async with self._residents.lock:
                if engine_name in self._routed() or not self._residents.up:
                    return
                if await self._residents.unload(engine_name):
                    self._stuck.pop(engine_name, None)
                else:
                    self._stuck[engine_name] = self._clock() + LOOK_SECONDS
        finally:
            self._leaving.pop(engine_name, None)
