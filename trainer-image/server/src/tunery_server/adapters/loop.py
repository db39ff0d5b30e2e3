"""The loader: makes what the engine serves into what is desired, again and again, whatever happened meanwhile.

One pass (`step`) looks at everything and starts what is due; whatever takes time runs in a task of its own: one for
each name, and one for each version that is to leave. Downloads run four at a time, the engine loads one at a time.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_api.scrub import scrub
from tunery_api.serving import OLDEST_ENGINE, VERSION_DIGITS, Desired, ReplicaState, ServeSpec
from tunery_common.errors import TuneryError, first_line
from tunery_server.adapters.base import read_base
from tunery_server.adapters.bring import Bringer, StillHeld
from tunery_server.adapters.cache import AdapterCache, Content
from tunery_server.adapters.departures import Departures
from tunery_server.adapters.desired import DesiredSource
from tunery_server.adapters.fits import ServedBase, check_fit
from tunery_server.adapters.notes import ServedNote
from tunery_server.adapters.poison import Breaker
from tunery_server.adapters.probe import Probe
from tunery_server.adapters.residents import Residents
from tunery_server.adapters.slot import LOOK_SECONDS, Served, Slot
from tunery_server.adapters.source import Opener, opener
from tunery_server.engine import Engine, EngineGone, EngineRefusal
from tunery_server.routes import Routes
from tunery_server.threads import in_thread

PATIENCE_SECONDS: Final = 120.0
"""How long a replica that comes up is held back by what may yet heal, without anything getting on."""
TICK_SECONDS: Final = 1.0
_TEXT: Final = 1024

_log = logging.getLogger(__name__)


class _Later(Exception):
    """Nothing failed: it is to be tried again when something has changed."""


@dataclass(frozen=True)
class Ways:
    """What the loader works with, and what tests put in its place."""

    open: Opener
    clock: Callable[[], float] = time.monotonic


class Loader:
    """One replica's adapters. All of it runs on one event loop; only stores and disks are waited for in threads."""

    def __init__(self, spec: ServeSpec, routes: Routes, engine: Engine, ways: Ways | None = None) -> None:
        root = Path(spec.adapters_dir)
        self._ways = ways or Ways(opener(spec.adapter_secret))
        self._spec = spec
        self._routes = routes
        self.desired = DesiredSource(Path(spec.desired_file))
        self._slots: dict[str, Slot] = {}
        self._note = ServedNote(root)
        self._breaker = Breaker(root)
        self._residents = Residents(
            engine, spec.served_name, self._breaker, Probe(engine, spec.served_name), self._ways.clock
        )
        self._cache = AdapterCache(root, Path(spec.model_dir), spec.disk, self)
        self._taken: Desired | None = None
        """The list that the slots are of."""
        self._base: ServedBase | None = None
        self._bringer = Bringer(self._ways.open, self._cache, self._moved)
        self.departures = Departures(self._residents, routes, self._routed, self._ways.clock)
        self._was: tuple[bool, str | None] = (False, None)
        """Whether the engine was up, and which start of it, at the last pass."""
        self._came_up = False
        """Everything was there, or was waited for long enough, since the engine is up."""
        self._progress = self._ways.clock()
        self._wake = asyncio.Event()
        self.changed = asyncio.Event()
        """Set whenever `state` may say something new."""

    async def run(self) -> None:
        """Keep at it until cancelled."""
        await self.start()
        try:
            while True:
                await self._step_or_log()
                try:
                    await asyncio.wait_for(self._wake.wait(), TICK_SECONDS)
                except TimeoutError:
                    continue
                finally:
                    self._wake.clear()
        finally:
            for task in self._tasks():
                task.cancel()

    async def start(self) -> None:
        """Read what earlier processes have left; call it once, before `step`."""
        await in_thread(self._cache.prepare)
        self._breaker.read()
        self._note.read()

    async def step(self) -> None:
        """Look at everything once, and start what is due."""
        self.desired.refresh()
        if self.desired.current is not None:
            self._take(self.desired.current)
        await self._residents.check()
        if (self._residents.up, self._residents.birth) != self._was or self._lost():
            self._engine_changed()
        now = self._ways.clock()
        for slot in self._slots.values():
            if slot.task is None and self._due(slot, now):
                slot.task = asyncio.create_task(self._work_on(slot))
        kept = {slot.engine_name(slot.kept) for slot in self._slots.values() if slot.kept}
        for engine_name in self.departures.strangers(kept):
            self.departures.leave(engine_name)
        self._tell()

    def offer(self, desired: Desired) -> None:
        """Take what the operator answered, if it is newer."""
        if self.desired.offer(desired):
            self._wake.set()

    async def settle(self) -> None:
        """Wait until nothing that was started is under way; for tests."""
        while tasks := self._tasks():
            await asyncio.gather(*tasks, return_exceptions=True)

    def ready(self) -> bool:
        """Tell whether requests may come: the engine is up, and everything is served or will not be soon."""
        if not (self._residents.up and self._residents.supported) or self._taken is None:
            return False
        waited = self._ways.clock() - self._progress >= PATIENCE_SECONDS
        if not self._came_up and (waited or all(slot.settled for slot in self._slots.values())):
            self._came_up = True
        return self._came_up

    def state(self) -> ReplicaState:
        """Return how this replica stands."""
        residents = self._residents
        reason, message = self._standing()
        return ReplicaState(
            revision=self._taken.revision if self._taken else 0,
            engine_ready=residents.up,
            engine_version=residents.version or None,
            engine_restarts=residents.restarts,
            reason=reason,
            message=scrub(message, _TEXT) if message else None,
            adapters=[slot.report() for slot in self._slots.values()],
        )

    def _standing(self) -> tuple[str | None, str | None]:
        """Return what stands in the way of the replica as a whole."""
        residents = self._residents
        if not residents.up and residents.seen:
            return FailureReason.ENGINE_FAILED, "the engine does not answer any more; its container is started anew"
        if residents.up and not residents.supported:
            message = f"the engine is vLLM {residents.version}; the oldest that is used is {OLDEST_ENGINE}"
            return FailureReason.ENGINE_UNSUPPORTED, message
        if not residents.up:
            return None, "the engine is starting"
        return None, self.desired.problem

    def _take(self, desired: Desired) -> None:
        """Make the slots those of the list, in its order."""
        if self._taken is None:
            self._moved()
        self._taken = desired
        wanted = {item.name: item for item in desired.adapters}
        for name in self._slots.keys() - wanted.keys():
            self._remove(self._slots.pop(name))
        slots: dict[str, Slot] = {}
        for place, (name, item) in enumerate(wanted.items()):
            slot = self._slots.get(name)
            if slot is None:
                slot = Slot(item, kept=self._note.get(name), wanted=item.manifest_sha256)
            elif slot.take(item) and slot.task is not None and slot.bringing:
                slot.task.cancel()
            self._admit(slot, place, len(wanted))
            slots[name] = slot
        self._slots = slots

    def _admit(self, slot: Slot, place: int, count: int) -> None:
        limit = self._spec.max_loaded_adapters
        if place < limit:
            slot.over = None
            return
        slot.over = f"{count} adapters are wanted, engine.maxLoadedAdapters is {limit}, and this is number {place + 1}"
        if slot.task is not None and slot.bringing:
            slot.task.cancel()
        self._unroute(slot)

    def _remove(self, slot: Slot) -> None:
        self._routes.drop(slot.item.name)
        if slot.task is not None and slot.bringing:
            slot.task.cancel()
        self._unroute(slot)
        self.changed.set()

    def _unroute(self, slot: Slot) -> None:
        """Have what the name led to leave."""
        served, slot.served, slot.kept = slot.served, None, None
        if served is not None:
            self.departures.leave(served.engine_name, drain=True)

    def _lost(self) -> bool:
        """Tell whether the engine does not hold what is routed to."""
        held = self._residents.registered
        return any(slot.served and slot.served.engine_name not in held for slot in self._slots.values())

    def _engine_changed(self) -> None:
        """Route to what the engine holds, and to nothing else."""
        residents, trying = self._residents, self._breaker.trying()
        anew = residents.up and self._was != (True, residents.birth)
        if not residents.up or anew:
            self._came_up = False
        if anew:
            self._moved()
        for slot in self._slots.values():
            served = slot.served
            if served is not None and (not residents.up or served.engine_name not in residents.registered):
                slot.served, slot.kept = None, served.sha256
            kept = slot.engine_name(slot.kept) if slot.kept else ""
            if residents.up and kept in residents.registered and slot.kept != trying:
                residents.answered.add(kept)  # its probe: it stands in the note only since then
            if anew:
                slot.engine_started()
                slot.not_before = -math.inf
        self._was = (residents.up, residents.birth)
        self.changed.set()

    def _due(self, slot: Slot, now: float) -> bool:
        residents = self._residents
        if residents.up and not residents.supported:
            return False
        if slot.over is not None or now < slot.not_before:
            return False
        if residents.up and slot.served is None and slot.kept is not None:
            return True
        return slot.due(now) and (residents.up or not slot.ready_to_load)

    async def _work_on(self, slot: Slot) -> None:
        """Bring one name nearer to what is wanted; whatever goes wrong is noted in its slot."""
        item = slot.item
        try:
            await self._advance(slot)
        except (_Later, StillHeld, EngineGone, EngineRefusal) as error:
            _log.debug("%s waits: %r", item.name, error)
            slot.not_before = self._ways.clock() + TICK_SECONDS
        except asyncio.CancelledError:
            _log.debug("%s is not brought any more", item.name)
        except TuneryError as error:
            self._failed(slot, item, error)
        except Exception as error:  # noqa: BLE001 (one adapter must not end the loader)
            _log.exception("%s could not be looked after", item.name)
            message = f"{type(error).__name__}: {first_line(error)}"
            self._failed(slot, item, TuneryError(FailureReason.INTERNAL_ERROR, message))
        finally:
            slot.task, slot.bringing = None, False
            self._tell()
            self._wake.set()

    def _failed(self, slot: Slot, item: object, error: TuneryError) -> None:
        if slot.item is not item:
            return  # of what is not wanted any more
        _log.warning("%s: %s", slot.item.name, error)
        slot.failed(error, slot.about, self._ways.clock())
        if slot.settled:
            self._progress = self._ways.clock()

    async def _advance(self, slot: Slot) -> None:
        if slot.served is None and slot.kept is not None and self._residents.up:
            await self._restore(slot)
        item = slot.item
        wanted = await self._wanted(slot)
        if slot.served is not None and slot.served.sha256 == wanted:
            slot.succeeded()
            return
        slot.about = wanted
        if slot.rests(wanted, self._ways.clock()):
            return
        self._breaker.check(wanted)
        slot.bringing = True
        content = await self._bringer.bring(slot, wanted)
        slot.bringing = False
        if slot.item is item:
            await self._serve(slot, content)
            slot.succeeded()

    async def _restore(self, slot: Slot) -> None:
        """Serve again what the name led to before; what that fails for is told of what is wanted, if it is the same."""
        kept = slot.about = slot.kept
        content = await in_thread(functools.partial(self._cache.find, str(kept)))
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
        now = self._ways.clock()
        if slot.look is not None and now < slot.look_at:
            slot.wanted = slot.look.sha256
            return slot.wanted
        slot.bringing, slot.about, before = True, None, slot.look
        found = await self._bringer.look(item, before)
        slot.bringing, slot.look, slot.wanted, slot.look_at = False, found, found.sha256, now + LOOK_SECONDS
        if found != before or (slot.problem is not None and slot.problem.sha256 is None):
            slot.problem, slot.tries = None, 0
        return found.sha256

    def _moved(self) -> None:
        self._progress = self._ways.clock()

    async def _serve(self, slot: Slot, content: Content) -> None:
        """Have a version that is on the disk loaded and probed, and route to it."""
        item, name = slot.item, slot.engine_name(content.sha256)
        fit = await in_thread(functools.partial(check_fit, content.folder, content.manifest.lineage, await self._for()))
        slot.ready_to_load = True
        async with self._residents.lock:
            if slot.item is not item or self._slots.get(item.name) is not slot or slot.over is not None:
                raise _Later
            self._check_room(slot, name)
            await self._residents.ensure(name, content)
        if self._slots.get(item.name) is not slot or slot.over is not None:
            raise _Later  # a stranger now
        before, slot.served = slot.served, Served(content.sha256, name, fit, content.size)
        slot.kept, slot.ready_to_load, slot.held = content.sha256, False, None
        self._routes.serve(item.name, name, content.sha256)
        self._cache.used(content.sha256)
        self._moved()
        if before is not None and before.engine_name != name:
            self.departures.leave(before.engine_name, drain=True)

    async def _for(self) -> ServedBase:
        if self._base is None:
            model = await in_thread(lambda: read_base(Path(self._spec.model_dir)))
            self._base = ServedBase(model, self._spec.served_name, self._spec.max_rank)
        return self._base

    def _check_room(self, slot: Slot, engine_name: str) -> None:
        """Let what leaves leave first; an update may have one more for the moment that both versions are there."""
        room = self._spec.max_loaded_adapters + (slot.served is not None)
        if len(self._residents.registered - {engine_name}) >= room:
            raise _Later

    def _routed(self) -> set[str]:
        """Return the engine's names for what names lead to."""
        return {slot.served.engine_name for slot in self._slots.values() if slot.served}

    def held(self, sha256: str) -> bool:
        """Tell whether the engine may read a version's folder; called from threads."""
        names = (*self._residents.registered, self._residents.trying or "")
        return any(name.endswith(f"@{sha256[:VERSION_DIGITS]}") for name in names)

    def wanted(self, sha256: str) -> bool:
        """Tell whether some name leads to a version, or is to; called from threads."""
        return any(sha256 in slot.digests for slot in list(self._slots.values()))

    def _tell(self) -> None:
        """Have the routes and the note say what is so."""
        for name, slot in self._slots.items():
            if slot.served is not None:
                continue
            report = slot.report()
            reason, message = report.reason or "AdapterLoading", report.message or "it is being loaded"
            if not self._residents.up and self._residents.seen:
                reason, message = FailureReason.ENGINE_FAILED, "the engine is being started anew"
            if slot.held != (reason, message):
                slot.held = (reason, message)
                self._routes.hold(name, reason, message)
        self._note.keep({name: slot.kept for name, slot in self._slots.items() if slot.kept})
        self.changed.set()

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [*(slot.task for slot in self._slots.values() if slot.task), *self.departures.tasks()]

    async def _step_or_log(self) -> None:
        try:
            await self.step()
        except Exception:  # noqa: BLE001 (the next pass looks at everything again)
            _log.exception("a pass over the adapters failed")
