"""The loader: makes what the engine serves into what is desired, again and again, whatever happened meanwhile.

One pass (`step`) looks at everything and starts what is due; whatever takes time runs in a task of its own: one for
each name, and one for each version that is to leave. Of each bucket four are downloaded at once, the engine loads one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_api.redact import redact
from tunery_api.serving import Desired, DesiredAdapter, ReplicaState, ServeSpec
from tunery_common.errors import TuneryError, first_line
from tunery_server.adapters.bring import Bringer, StillHeld
from tunery_server.adapters.cache import AdapterCache
from tunery_server.adapters.departures import Departures
from tunery_server.adapters.desired import DesiredSource
from tunery_server.adapters.disk_room import DiskRoom
from tunery_server.adapters.needs import Needs
from tunery_server.adapters.notes import ServedNote, UsedNote
from tunery_server.adapters.places import Places
from tunery_server.adapters.poison import Breaker
from tunery_server.adapters.probe import Probe
from tunery_server.adapters.refusals import Refusals
from tunery_server.adapters.residents import Residents
from tunery_server.adapters.saying import say_failed, say_held, say_over
from tunery_server.adapters.slot import Slot
from tunery_server.adapters.source import Known, Opener, opener
from tunery_server.adapters.telling import ANEW, Teller, standing
from tunery_server.adapters.waking import Waking
from tunery_server.adapters.work import Later, Tools, Worker
from tunery_server.engine import Engine, EngineGone, EngineRefusal
from tunery_server.routes import Routes
from tunery_server.threads import in_thread

PATIENCE_SECONDS: Final = 120.0
"""How long a replica that comes up is held back by what may yet heal, without anything getting on."""
TICK_SECONDS: Final = 1.0
USED_TO: Final = 600
"""Seconds to which it is told when an adapter was last asked for."""
_TEXT: Final = 1024
_REPORTED: Final = 4096
"""Adapters that a report may hold."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ways:
    """What the loader works with, and what tests put in its place."""

    open: Opener
    clock: Callable[[], float] = time.monotonic


class Loader:
    """One replica's adapters. All of it runs on one event loop; only stores and disks are waited for in threads."""

    def __init__(self, spec: ServeSpec, routes: Routes, engine: Engine, ways: Ways | None = None) -> None:
        root = Path(spec.adapters_dir)
        self._ways = ways or Ways(opener(spec.adapter_secret, spec.identity.namespace))
        self._routes, self._keys_of, clock = routes, spec.api_keys_secret, self._ways.clock
        self.desired = DesiredSource(Path(spec.desired_file))
        self._slots: dict[str, Slot] = {}
        routes.wake, routes.idle, routes.refused = self.wake, self._admit, self._refused
        self._note, self._used, self._breaker = ServedNote(root), UsedNote(root), Breaker(root)
        self._residents = Residents(engine, spec.served_name, self._breaker, Probe(engine, spec.served_name), clock)
        self._places = Places(
            spec.max_loaded_adapters, routes, self._leave, lambda each: self._cache.known(each) is not None
        )
        self._teller, self._needs = Teller(routes, self._residents, clock), Needs(self._residents, self._places)
        self._cache = AdapterCache(root, Path(spec.model_dir), spec.disk, self._needs)
        self.departures = Departures(self._residents, routes, self._needs.routed, clock)
        room = DiskRoom(self._places, self._cache, self.departures, clock)
        self._refusals = Refusals(self._residents, self._cache, room, self._teller, clock)
        self._waking = Waking(self._places, self._refusals.why, self._asked, self._refusals.silent)
        bringer = Bringer(self._ways.open, self._cache, self._moved, clock)
        tools = Tools(
            routes, self._residents, self._breaker, self._cache, bringer, self.departures, room, self._places, clock
        )
        self._worker = Worker(spec, tools, self._is_current, self._moved)
        self._taken: Desired | None = None
        self._base_task: asyncio.Task[None] | None = None
        self._was: tuple[bool, str | None] = (False, None)
        """Whether the engine was up, and which start of it, at the last pass."""
        self._came_up = False
        """Everything was there, or was waited for long enough, since the engine is up."""
        self._progress = clock()
        self._wake, self.changed = asyncio.Event(), asyncio.Event()
        """Set whenever a pass is due; `changed` whenever `state` may say something new."""

    async def run(self) -> None:
        """Keep at it until cancelled."""
        await self.start()
        try:
            while True:
                await self._step_or_log()
                # wait_for of Python 3.11 forgets to be cancelled where that and the end of the waiting come together.
                with suppress(TimeoutError):
                    async with asyncio.timeout(TICK_SECONDS):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            for task in self._tasks():
                task.cancel()

    async def start(self) -> None:
        """Read what earlier processes have left; call it once, before `step`."""
        await in_thread(self._cache.prepare)
        self._breaker.read()
        self._note.read()
        for name, when in self._used.read().items():
            self._routes.remember(name, when)

    async def step(self) -> None:
        """Look at everything once, and start what is due."""
        self.desired.refresh()
        if self.desired.current is not None and self.desired.current is not self._taken:
            self._take(self.desired.current)
        await self._residents.check()
        if (self._residents.up, self._residents.birth) != self._was or self._needs.lost():
            self._engine_changed()
        if self._residents.up and self._residents.supported and not self._residents.answers and not self._base_task:
            self._base_task = asyncio.create_task(self._ask_base())
        now = self._ways.clock()
        for slot in self._places.fill(self._slots, now, self._refusals.over_disk):
            slot.begin()
        for slot in self._slots.values():
            if not self._started(slot, now) and slot.problem is not None:
                self._teller.tell(slot)
        kept = {slot.engine_name(slot.kept) for slot in self._places.hot.values() if slot.kept}
        for engine_name in self.departures.strangers(kept):
            self.departures.leave(engine_name)
        self._keep_notes(now)
        self.changed.set()

    def offer(self, desired: Desired) -> None:
        """Take what the operator answered, if it is newer."""
        if self.desired.offer(desired):
            self._wake.set()

    async def settle(self) -> None:
        """Wait until nothing that was started is under way; for tests."""
        while tasks := self._tasks():
            await asyncio.gather(*tasks, return_exceptions=True)

    def ready(self) -> bool:
        """Tell whether requests may come: the base answers, and everything is served, cold, or will not be soon."""
        if not (self._residents.answers and self._residents.supported) or self._taken is None or self._routes.closed:
            return False
        waited = self._ways.clock() - self._progress >= PATIENCE_SECONDS
        if not self._came_up and (waited or all(slot.settled for slot in self._slots.values())):
            self._came_up = True
        return self._came_up

    def state(self) -> ReplicaState:
        """Return how this replica stands."""
        residents = self._residents
        reason, message = standing(residents, self.desired.problem)
        for name, slot in self._slots.items():
            slot.used = int(self._routes.used(name).when // USED_TO) * USED_TO or None
        return ReplicaState(
            revision=self._taken.revision if self._taken else 0,
            engine_ready=residents.up,
            engine_version=residents.version or None,
            engine_restarts=residents.restarts,
            reason=reason,
            message=redact(message, _TEXT) if message else None,
            adapters=[slot.report() for slot in islice(self._slots.values(), _REPORTED)],
        )

    def _take(self, desired: Desired) -> None:
        """Make the slots those of the list, in its order."""
        if self._taken is None:
            self._moved()
        before, self._taken = self._taken, desired
        wanted = {item.name: item for item in desired.adapters}
        for name in self._slots.keys() - wanted.keys():
            self._remove(self._slots.pop(name))
        self._slots = {name: self._slot(item) for name, item in wanted.items()}
        self._places.judge(self._slots.values())
        for slot in self._slots.values():
            if slot.over is not None:
                say_over(slot)
                self._withdraw(slot)
            self._teller.tell(slot)
        say_held(before.held if before else (), desired.held)
        held = {each.name: each for each in desired.held if each.name not in wanted}
        for name in {each.name for each in before.held} - held.keys() - wanted.keys() if before else ():
            self._routes.drop(name)
        for name, each in held.items():
            self._routes.hold(name, each.reason, each.message)
        self._routes.lead(desired.aliases)
        clients = desired.clients_of(self._keys_of)
        if clients is not None or before is None:
            self._routes.allow(clients, of_before=desired.api_keys not in (None, self._keys_of))

    def _slot(self, item: DesiredAdapter) -> Slot:
        """Return the slot of an entry of the list, a new one or the one that it has."""
        slot = self._slots.get(item.name)
        if slot is None:
            return Slot(item, kept=self._note.get(item.name), wanted=item.manifest_sha256)
        if slot.take(item):
            self._forget_unless_there(slot)
            if slot.task is not None and slot.bringing:
                slot.task.cancel()
        return slot

    def _forget_unless_there(self, slot: Slot) -> None:
        """Of what is cold only what lies on the disk can be loaded once something else is wanted, or it is lost."""
        if (
            slot.cold is not None
            and (slot.lost or not slot.verified)
            and not self._cache.folder(slot.cold.sha256).exists()
        ):
            slot.cold = None

    def _remove(self, slot: Slot) -> None:
        self._routes.drop(slot.item.name)
        self._withdraw(slot)
        self.changed.set()

    def _withdraw(self, slot: Slot) -> None:
        """Have what the name led to leave, and nothing of it come."""
        if slot.task is not None and slot.bringing:
            slot.task.cancel()
        self._places.forget(slot)
        served, slot.served, slot.kept, slot.cold = slot.served, None, None, None
        if served is not None:
            self.departures.leave(served.engine_name, drain=True)
        slot.wake((FailureReason.TOO_MANY_ADAPTERS, slot.over) if slot.over else None)

    def _leave(self, slot: Slot) -> None:
        """Have a slot that has lost its place to another go cold."""
        served = slot.served
        if served is not None:
            self._cache.used(served.sha256)
            slot.became_cold(Known(served.sha256, served.fit, served.size))
            self.departures.leave(served.engine_name, drain=True)
        self._teller.tell(slot)

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
                residents.remember(kept, str(slot.kept))  # its probe: it stands in the note only since then
            if anew:
                slot.engine_started()
                slot.not_before = -math.inf
            if not residents.up:
                slot.wake((FailureReason.ENGINE_FAILED, ANEW))
        self._was = (residents.up, residents.birth)
        for slot in self._slots.values():
            self._teller.tell(slot)

    async def _ask_base(self) -> None:
        try:
            await self._residents.ask_base()
        finally:
            self._base_task = None
            if self._residents.answers:
                self._wake.set()

    def _admit(self) -> None:
        """Give places to those that wait for one, and have them come at once."""
        for slot in self._places.admit() if self._places.waits else ():
            slot.begin()
            self._started(slot, self._ways.clock())

    def _asked(self, slot: Slot) -> None:
        """Give a slot a place if one can be had for it, else have its files brought until one can."""
        if self._places.ask(slot):
            slot.seek()
        self._admit()
        self._started(slot, self._ways.clock())

    async def wake(self, name: str) -> None:
        """Have a cold adapter loaded, once for all that wait for it; raises NotServed.

        It is waited for some time, as is a place for it.
        """
        if (slot := self._slots.get(name)) is not None and slot.served is None:
            await self._waking.wait(slot)

    def _refused(self, name: str) -> None:
        """Somebody has asked for what is not served: look at it again if it may be there by now."""
        if (slot := self._slots.get(name)) is not None and self._waking.again.asked(slot, self._ways.clock()):
            self._wake.set()

    def _started(self, slot: Slot, now: float) -> bool:
        """Start what is due; return whether it was."""
        if slot.task is not None or not self._due(slot, now):
            return False
        slot.task = asyncio.create_task(self._work_on(slot))
        return True

    def _due(self, slot: Slot, now: float) -> bool:
        residents = self._residents
        if residents.up and not residents.supported:
            return False
        if slot.over is not None or now < slot.not_before:
            return False
        if slot.hot and residents.up and slot.served is None and slot.kept is not None:
            return True
        if self._places.seeks(slot):
            return slot.problem is None or now >= slot.problem.retry_at
        return slot.due(now) and (residents.up or not slot.ready_to_load)

    async def _work_on(self, slot: Slot) -> None:
        """Bring one name nearer to what is wanted; whatever goes wrong is noted in its slot."""
        item = slot.item
        try:
            await self._worker.advance(slot)
        except (Later, StillHeld, EngineGone, EngineRefusal) as error:
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
            self._ended(slot)

    def _failed(self, slot: Slot, item: object, error: TuneryError) -> None:
        if slot.item is not item:
            return  # of what is not wanted any more
        say_failed(slot, error)
        slot.failed(error, slot.about, self._ways.clock())
        self._forget_unless_there(slot)
        if slot.settled:
            self._progress = self._ways.clock()

    def _ended(self, slot: Slot) -> None:
        """Work on a slot has ended, one way or another: tell those who wait for it, and give on its place."""
        problem = slot.problem
        if slot.served is not None:
            slot.wake(None)
        elif self._places.comes(slot) and problem is not None and (problem.settled or slot.woken is not None):
            slot.wake((problem.error.reason, problem.error.message))
            self._places.forget(slot)
            self._forget_unless_there(slot)
            self._wake.set()
        if self._slots.get(slot.item.name) is slot:
            self._teller.tell(slot)
        self._keep_served()
        self._admit()
        if (slot.hot or self._places.seeks(slot)) and self._due(slot, self._ways.clock()):
            self._wake.set()
        self.changed.set()

    def _moved(self) -> None:
        self._progress = self._ways.clock()

    def _is_current(self, slot: Slot) -> bool:
        return self._slots.get(slot.item.name) is slot and slot.over is None and slot.hot

    def _keep_served(self) -> None:
        self._note.keep({name: slot.kept for name, slot in self._places.hot.items() if slot.kept})

    def _keep_notes(self, now: float) -> None:
        self._keep_served()
        if self._used.due(now):
            used = {name: int(self._routes.used(name).when // USED_TO) * USED_TO for name in self._slots}
            self._used.keep({name: when for name, when in used.items() if when})

    def _tasks(self) -> list[asyncio.Task[None]]:
        base = [self._base_task] if self._base_task else []
        return [*base, *(slot.task for slot in self._slots.values() if slot.task), *self.departures.tasks()]

    async def _step_or_log(self) -> None:
        try:
            await self.step()
        except Exception:  # noqa: BLE001 (the next pass looks at everything again)
            _log.exception("a pass over the adapters failed")
