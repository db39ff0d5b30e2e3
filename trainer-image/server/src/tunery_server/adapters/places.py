"""The places in the engine: which names have one, who waits for one, and who leaves for them.

There are engine.maxLoadedAdapters of them. While some are free everything that can be loaded is; once there are none,
the name that was least recently asked for leaves for the one that is asked for now, unless it is being asked or is to
stay (keepLoaded). Nobody leaves before the files of the other are here: a store that hangs costs nobody a place.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping

from tunery_server.adapters.slot import Slot
from tunery_server.routes import Routes


class Places:
    """At most `limit` names; all of it runs on one event loop, and nothing in it waits."""

    def __init__(self, limit: int, routes: Routes, leave: Callable[[Slot], None], here: Callable[[str], bool]) -> None:
        """`leave` has a slot that is served, or about to be, go cold; its place is given to another by then.

        `here` tells whether a version lies verified on the disk.
        """
        self.limit = limit
        self._here = here
        self._routes = routes
        self._leave = leave
        self._fit = limit
        """How many are loaded without being asked for: fewer than `limit` where the disk does not hold more."""
        self._full_until = -math.inf
        self._left = 0
        """Bytes that were free on the disk when it was found to hold no more."""
        self.hot: dict[str, Slot] = {}
        self._asked: dict[str, Slot] = {}
        """Those that wait for a place, the longest first."""

    def judge(self, slots: Iterable[Slot]) -> None:
        """Say of each slot whether there can ever be a place for it, which only keepLoaded takes away."""
        self._full_until = -math.inf
        all_of_them = list(slots)
        kept = [slot for slot in all_of_them if slot.item.keep_loaded]
        many = f"{len(kept)} adapters have keepLoaded, engine.maxLoadedAdapters is {self.limit}"
        number = 0
        for slot in all_of_them:
            if slot.item.keep_loaded:
                number += 1
                slot.over = f"{many}, and this is number {number} of them" if number > self.limit else None
            else:
                slot.over = f"{many}: none is left for the others" if len(kept) >= self.limit else None

    def fill(self, slots: Mapping[str, Slot], now: float, lacks_room: Callable[[Slot], object]) -> list[Slot]:
        """Give free places to who may use them, and have who must stay ask for one; return who got one.

        First those that must stay, then those that were served before, then by last use, then in the list's order.
        Nobody leaves for what was not verified, or what `lacks_room` on the disk even then.
        """
        for name, slot in slots.items():
            if not slot.item.keep_loaded or slot.hot or slot.over is not None or not _worth_a_place(slot, now):
                continue
            if len(self.hot) < self.limit or (slot.verified and not lacks_room(slot)):
                self._asked.setdefault(name, slot)
        given = self.admit()
        full = now < self._full_until
        free = (self._fit if full else self.limit) - len(self.hot) - len(self._asked)
        if free > 0:
            given += self._fill(free, slots, now)
        free = self.limit - len(self.hot) - len(self._asked)
        if full and free > 0 and self._left > 0:
            given += self._fill(free, {name: slot for name, slot in slots.items() if 0 < slot.bytes <= self._left}, now)
        return given

    def _fill(self, free: int, slots: Mapping[str, Slot], now: float) -> list[Slot]:
        """Give so many free places, or as many as there are who may use them; return who got one."""
        may = (slot for slot in slots.values() if not slot.hot and slot.over is None and not _failed(slot, now))
        given = heapq.nsmallest(free, may, key=self._order)
        for slot in given:
            self._give(slot)
            self._left -= slot.bytes
        return given

    def ask(self, slot: Slot) -> bool:
        """Have a slot get the next place that becomes free, or can be made so; `admit` gives it.

        Return whether it did not wait for one before.
        """
        if slot.hot or self._asked.get(slot.item.name) is slot:
            return False
        self._asked[slot.item.name] = slot
        return True

    def give_up(self, slot: Slot) -> None:
        """Nobody waits for it any more."""
        if not slot.item.keep_loaded:
            self._asked.pop(slot.item.name, None)

    def admit(self) -> list[Slot]:
        """Give places to who waits for one, as many as can be had; return who got one."""
        given: list[Slot] = []
        while (slot := self._next()) is not None:
            if len(self.hot) >= self.limit:
                victim = self._victim(slot for slot in self.hot.values() if self._may_leave(slot))
                if victim is None:
                    break
                self.release(victim)
                if victim.bringing:
                    victim.kept = None  # it got its place while it was brought already, and is not here
                if victim.waiters:
                    self.ask(victim)  # it is brought without a place from now on
                self._leave(victim)
            del self._asked[slot.item.name]
            self._give(slot)
            given.append(slot)
        return given

    def _next(self) -> Slot | None:
        """Return who waits longest for a place; where none is free, only of those whose files are here."""
        free = len(self.hot) < self.limit
        return next((slot for slot in self._asked.values() if free or self._at_hand(slot)), None)

    def seeks(self, slot: Slot) -> bool:
        """Tell whether its files are to be brought before it gets a place."""
        return self._asked.get(slot.item.name) is slot and not self._at_hand(slot)

    def comes(self, slot: Slot) -> bool:
        """Tell whether it is on its way, and nothing is here that would answer if it failed."""
        return (slot.hot and slot.kept is None) or self.seeks(slot)

    def needed(self) -> set[str]:
        """Return the versions that those who have a place, or wait for one, lead to or are to lead to."""
        asked = list(self._asked.values())
        cold = {slot.cold.sha256 for slot in asked if slot.cold is not None}
        return cold.union(*(slot.digests for slot in [*self.hot.values(), *asked]))

    def evict(self) -> int:
        """Have the one leave that is loaded, idle, and was not asked for the longest time; return its bytes, or 0."""
        victim = self._victim(slot for slot in self.hot.values() if slot.served is not None and self._may_leave(slot))
        if victim is None:
            return 0
        self.release(victim)
        self._leave(victim)
        return victim.bytes

    def idle(self) -> int:
        """Return how many bytes those take that are loaded and may leave, and nobody else serves."""
        loaded = [slot for slot in self.hot.values() if slot.served is not None]
        stay = {slot.served.sha256 for slot in loaded if slot.served and not self._may_leave(slot)}
        sizes = {slot.served.sha256: slot.served.size for slot in loaded if slot.served}
        return sum(size for sha256, size in sizes.items() if sha256 not in stay)

    def staying(self, slot: Slot) -> int:
        """Return how many bytes those take that never leave for a slot: others that are kept, and what it serves."""
        stay = [each.served or each.cold for each in self.hot.values() if each.item.keep_loaded and each is not slot]
        sizes = {each.sha256: each.size for each in (*stay, slot.served) if each is not None}
        return sum(sizes.values())

    def disk_is_full(self, until: float, left: int = 0) -> None:
        """Until then, or until another list is judged, load no more than there are unless somebody asks.

        But for who is known to fit into what is `left`, in bytes.
        """
        self._fit, self._full_until, self._left = len(self.hot), until, left

    @property
    def waits(self) -> bool:
        """Whether somebody waits for a place."""
        return bool(self._asked)

    def release(self, slot: Slot) -> None:
        """Take the place of a slot back."""
        slot.hot = False
        if self.hot.get(slot.item.name) is slot:
            del self.hot[slot.item.name]

    def forget(self, slot: Slot) -> None:
        """It is not wanted any more."""
        self.release(slot)
        if self._asked.get(slot.item.name) is slot:
            del self._asked[slot.item.name]

    def _give(self, slot: Slot) -> None:
        slot.hot = True
        self.hot[slot.item.name] = slot

    def _at_hand(self, slot: Slot) -> bool:
        """Tell whether some version that it leads to, or is to lead to, is here."""
        digests = slot.digests if slot.cold is None else slot.digests | {slot.cold.sha256}
        return any(self._here(sha256) for sha256 in digests)

    def _victim(self, free: Iterable[Slot]) -> Slot | None:
        """Return who is to leave: who is not here yet, or failed to come, else who was not asked the longest time."""
        return min(free, key=lambda slot: (slot.served is not None, _recent(self._routes, slot)), default=None)

    def _may_leave(self, slot: Slot) -> bool:
        if slot.bringing and slot.served is None and slot.kept in (None, slot.about) and not self._at_hand(slot):
            return True  # it is at its store, and needs no place there
        if slot.item.keep_loaded or slot.waiters or slot.task is not None:
            return False
        if slot.served is None:
            return slot.problem is not None
        return not self._routes.busy(slot.served.engine_name)

    def _order(self, slot: Slot) -> tuple[bool, float]:
        return slot.kept is None, -self._routes.used(slot.item.name).when


def _recent(routes: Routes, slot: Slot) -> tuple[int, float]:
    used = routes.used(slot.item.name)
    return used.number, used.when


def _failed(slot: Slot, now: float) -> bool:
    """Tell whether nothing of it can be loaded now, not even what it led to before a bad update."""
    problem = slot.problem
    if problem is None or now >= problem.retry_at:
        return False
    return slot.cold is None or problem.sha256 in (None, slot.cold.sha256)


def _worth_a_place(slot: Slot, now: float) -> bool:
    """Tell whether another may leave for it: after a failure only once it was verified anew."""
    return slot.problem is None or (slot.verified and now >= slot.problem.retry_at)
