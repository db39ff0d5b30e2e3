"""What is done for one name: find out what is wanted, verify it, bring it, have it loaded and probed, route to it."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tunery_api.manifest import WEIGHTS_FILE
from tunery_api.reasons import FailureReason
from tunery_api.serving import VERSION_DIGITS, ServeSpec
from tunery_common.errors import TuneryError
from tunery_common.storage.published_folder import Replaced
from tunery_server.adapters.base import read_base
from tunery_server.adapters.bring import Bringer
from tunery_server.adapters.cache import AdapterCache, Content
from tunery_server.adapters.departures import Departures
from tunery_server.adapters.disk_room import DiskRoom
from tunery_server.adapters.finite import check_finite
from tunery_server.adapters.fits import Fit, ServedBase, check_fit
from tunery_server.adapters.places import Places
from tunery_server.adapters.poison import Breaker
from tunery_server.adapters.residents import Residents
from tunery_server.adapters.saying import say_served, say_stranger
from tunery_server.adapters.slot import LOOK_SECONDS, Served, Slot
from tunery_server.routes import Routes
from tunery_server.threads import in_thread

ROOM_SECONDS: Final = 1.0
"""How long what leaves the engine is waited for at a time."""
AT_ONCE_SECONDS: Final = 3.0
"""How long the place of what is loaded from the disk for who asks is asked for something newer."""
_REMEMBERED: Final = 4096

_log = logging.getLogger(__name__)


class Later(Exception):
    """Nothing failed: it is to be tried again when something has changed."""


@dataclass(frozen=True)
class Tools:
    """What it is done with."""

    routes: Routes
    residents: Residents
    breaker: Breaker
    cache: AdapterCache
    bringer: Bringer
    departures: Departures
    disk: DiskRoom
    places: Places
    clock: Callable[[], float]


class Worker:
    """Advances slots; whatever it fails at is raised."""

    def __init__(
        self, spec: ServeSpec, tools: Tools, current: Callable[[Slot], bool], moved: Callable[[], None]
    ) -> None:
        """`current` tells whether a slot is wanted in the engine still; `moved` is called where something got on."""
        self._spec = spec
        self._tools = tools
        self._current = current
        self._moved = moved
        self._base: ServedBase | None = None
        self._checked: dict[str, Fit] = {}
        """Versions on the disk whose files were found to be good by this process."""

    async def advance(self, slot: Slot) -> None:
        """Bring one name nearer to what is wanted; raises TuneryError, Later, StillHeld, EngineGone, EngineRefusal.

        Without a pin another manifest than at the last look is no damage: it is what is wanted now. Where it is
        another at every look, that is told as a fault of the storage, or of the way to it.
        """
        slot.began = self._tools.clock()
        for last in (False, True):
            try:
                await self._advance(slot)
                break
            except Replaced as error:
                if slot.item.manifest_sha256 is not None:
                    raise
                slot.look_at, slot.about = -math.inf, None
                if slot.look is not None:
                    slot.look = replace(slot.look, mark=())  # the manifest may have come damaged: it is read anew
                if last:
                    message = f"the manifest is another at every look: {error.message}"
                    raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, message) from error

    async def _advance(self, slot: Slot) -> None:
        if slot.hot and slot.served is None and slot.kept is not None and self._tools.residents.up:
            await self._come_back(slot)
        if self._tools.places.seeks(slot) and await self._found(slot):
            return  # what has a place is looked after further
        await self._go_on(slot)

    async def _found(self, slot: Slot) -> bool:
        """Tell whether what is cold lies on the disk, every byte of it read."""
        cold = slot.cold
        return cold is not None and await in_thread(lambda: self._tools.cache.find(cold.sha256)) is not None

    async def _come_back(self, slot: Slot) -> None:
        """Serve again what the name led to, or what was published in its place since.

        Where that cannot be found out, or cannot be served, what is on the disk is; then it is raised why.
        """
        why: TuneryError | Later | None = None
        about: str | None = None
        try:
            if slot.unseen and await self._replaced(slot):
                await self._go_on(slot)
        except (TuneryError, Later) as error:
            why, about, slot.bringing = error, slot.about, False
        if slot.served is None and slot.kept is not None:
            await self._restore(slot)
        if why is not None:
            slot.about = about
            raise why

    async def _replaced(self, slot: Slot) -> bool:
        """Look at the place of what is loaded for who asks; return whether something else there is to be served.

        Raises what the look raises, and Later where the storage did not answer just now.
        """
        if not self._tools.cache.folder(str(slot.kept)).exists():
            slot.unseen = False  # its manifest is read anyway
            return False
        now, problem = self._tools.clock(), slot.problem
        if problem is not None and problem.sha256 is None and not problem.settled and now < problem.retry_at:
            raise Later
        slot.look_at = -math.inf
        wanted = await self._look(slot, AT_ONCE_SECONDS)
        return wanted != slot.kept and not slot.rests(wanted, now)

    async def _go_on(self, slot: Slot) -> None:
        """Bring and serve what is wanted, or know of it where it has no place; bring it only, to get a place then."""
        item = slot.item
        wanted = await self._wanted(slot)
        if slot.served is not None and slot.served.sha256 == wanted:
            slot.succeeded()
            return
        if not slot.hot and not self._tools.places.seeks(slot):
            await self._verify(slot, wanted)
            return
        slot.about = wanted
        if slot.rests(wanted, self._tools.clock()):
            return
        self._tools.breaker.check(wanted)
        slot.bringing = True
        content = await self._brought(slot, wanted)
        slot.bringing = False
        if slot.item is item and not slot.hot:
            slot.brought = content.sha256
            slot.reached()
        elif slot.item is item:
            await self._serve(slot, content)
            slot.succeeded()

    async def _brought(self, slot: Slot, wanted: str) -> Content:
        """Return the version once it is on the disk, for which others may have to leave it."""
        async with self._tools.bringer.turn(slot, wanted):
            while True:
                try:
                    return await self._tools.bringer.bring(slot, wanted)
                except TuneryError as error:
                    if error.reason is not FailureReason.DISK_FULL:
                        raise
                    if not await self._tools.disk.make(slot, error):
                        raise Later from error

    async def _verify(self, slot: Slot, wanted: str) -> None:
        """Know of what would be loaded for whoever asks."""
        away = slot.problem is not None and slot.problem.error.reason is FailureReason.STORAGE_UNAVAILABLE
        if slot.cold is not None and slot.cold.sha256 == wanted and slot.verified_at == slot.look and not away:
            if slot.problem is not None and not slot.problem.settled:
                slot.tries = 0 if slot.problem.error.reason is FailureReason.DISK_FULL else slot.tries
                slot.problem = None
            return
        item, slot.about = slot.item, wanted
        if slot.rests(wanted, self._tools.clock()):
            return
        self._tools.breaker.check(wanted)
        slot.bringing = True
        known = await self._tools.bringer.know(slot, wanted, await self._for())
        slot.bringing = False
        if slot.item is item:
            self._tools.disk.check_size(known.size)
            slot.cold, slot.verified_at = known, slot.look
            slot.succeeded()

    async def _restore(self, slot: Slot) -> None:
        """Serve again what the name led to before; what that fails for is told of what is wanted, if it is the same."""
        kept = slot.about = slot.kept
        content = await in_thread(functools.partial(self._tools.cache.find, str(kept)))
        if content is None:
            slot.kept = None
            return
        try:
            await self._serve(slot, content)
        except TuneryError as error:
            _log.warning("%s: %s cannot be served again: %s", slot.item.name, str(kept)[:VERSION_DIGITS], error)
            slot.kept = None
            if kept == slot.wanted:
                raise

    async def _wanted(self, slot: Slot) -> str:
        """Return the digest that is to be served: the pinned one, or what is published now."""
        item = slot.item
        if item.manifest_sha256 is not None:
            return item.manifest_sha256
        now = self._tools.clock()
        if slot.look is not None and now < slot.look_at:
            slot.wanted = slot.look.sha256
            return slot.wanted
        return await self._look(slot)

    async def _look(self, slot: Slot, seconds: float | None = None) -> str:
        """Return what is published now, and take note of it; raises what Bringer.look raises."""
        now = self._tools.clock()
        slot.bringing, slot.about, before = True, None, slot.look
        found = await self._tools.bringer.look(slot.item, before, seconds)
        slot.bringing, slot.look, slot.wanted, slot.look_at = False, found, found.sha256, now + LOOK_SECONDS
        slot.unseen = False
        if found != before or (slot.problem is not None and slot.problem.sha256 is None):
            slot.tries = 0
            if slot.problem is not None and slot.problem.sha256 == found.sha256:
                slot.retry(now)  # not even a file that has changed tells that all is well
            else:
                slot.problem = None
        return found.sha256

    async def _serve(self, slot: Slot, content: Content) -> None:
        """Have a version that is on the disk loaded and probed, and route to it."""
        tools, item, name = self._tools, slot.item, slot.engine_name(content.sha256)
        fit = await self._fit(content)
        slot.ready_to_load = True
        await self._room(slot, name)
        async with tools.residents.lock:
            if slot.item is not item or not self._current(slot) or not self._has_room(slot, name):
                raise Later
            await tools.residents.ensure(name, content)
        if not self._current(slot):
            say_stranger(name)
            raise Later
        before, slot.served = slot.served, Served(content.sha256, name, fit, content.size)
        slot.kept, slot.ready_to_load, slot.cold = content.sha256, False, None
        tools.routes.serve(item.name, name, content.sha256)
        say_served(slot, slot.served, tools.clock() - slot.began)
        tools.cache.used(content.sha256)
        self._moved()
        if before is not None and before.engine_name != name:
            tools.departures.leave(before.engine_name, drain=True)

    async def _fit(self, content: Content) -> Fit:
        """Return what is known of a version on the disk, every number of its weights looked at the first time."""
        if content.sha256 not in self._checked:
            base = await self._for()

            def check() -> Fit:
                fit = check_fit(content.folder, content.manifest.lineage, base)
                check_finite(content.folder / WEIGHTS_FILE)
                return fit

            if len(self._checked) >= _REMEMBERED:
                self._checked.clear()
            self._checked[content.sha256] = await in_thread(check)
        return self._checked[content.sha256]

    async def _for(self) -> ServedBase:
        if self._base is None:
            model = await in_thread(lambda: read_base(Path(self._spec.model_dir)))
            self._base = ServedBase(model, self._spec.served_name, self._spec.max_rank)
        return self._base

    async def _room(self, slot: Slot, engine_name: str) -> None:
        """Let what leaves the engine leave first."""
        while not self._has_room(slot, engine_name) and (leaving := self._tools.departures.tasks()):
            if not self._current(slot):
                raise Later
            await asyncio.wait(leaving, timeout=ROOM_SECONDS, return_when=asyncio.FIRST_COMPLETED)

    def _has_room(self, slot: Slot, engine_name: str) -> bool:
        """Tell whether the engine may hold one more, and an update one above that while both versions are there."""
        room = self._spec.max_loaded_adapters + (slot.served is not None)
        return len(self._tools.residents.registered - {engine_name}) < room
