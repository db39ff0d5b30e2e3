"""Who is next: four lanes of keys, and in each of them the namespaces take turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import Final

from tunery_operator.views.owner import Key

FRESH_IN_A_ROW: Final = 9
"""Where both wait, so many fresh keys go before one that was looked at before."""
OTHERS_BEFORE_LOW: Final = 9
AGED_SECONDS: Final = 10.0
"""A key of the low lane that has waited for so long goes after at most OTHERS_BEFORE_LOW others."""


class Lane(Enum):
    """How urgent a look at an object is; earlier members are more urgent."""

    FRESH = "fresh"
    """A person or a program wants something new of it."""
    NORMAL = "normal"
    """Something of it has changed in the cluster."""
    ASIDE = "aside"
    """It is of a sweep, itself or a trial: there may be hundreds of them for each job that somebody waits for."""
    LOW = "low"
    """Nobody waits for it: progress, time that has passed, a look to make sure."""

    @property
    def urgency(self) -> int:
        """A smaller number is more urgent."""
        return _URGENCY[self]


_URGENCY: Final = {lane: index for index, lane in enumerate(Lane)}


class _Turns:
    """Keys with the time since when they wait; one of each namespace in turn, so that no tenant holds another's up."""

    def __init__(self) -> None:
        self._namespaces: dict[str, dict[Key, float]] = {}
        self.count = 0

    def put(self, key: Key, since: float) -> None:
        self._namespaces.setdefault(key.namespace, {})[key] = since
        self.count += 1

    def remove(self, key: Key) -> float:
        keys = self._namespaces[key.namespace]
        since = keys.pop(key)
        self.count -= 1
        if not keys:
            del self._namespaces[key.namespace]
        return since

    def pop(self) -> tuple[Key, float]:
        """Return the oldest key of the namespace whose turn it is; that namespace is then the last."""
        namespace, keys = next(iter(self._namespaces.items()))
        key = next(iter(keys))
        since = self.remove(key)
        if keys:
            self._namespaces[namespace] = self._namespaces.pop(namespace)
        return key, since

    def oldest(self) -> float | None:
        """Return since when the oldest key waits, None where none does."""
        return min((next(iter(keys.values())) for keys in self._namespaces.values()), default=None)


class Lanes:
    """All keys that wait, each once, in the most urgent lane that it was ever put in."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turns = {lane: _Turns() for lane in Lane}
        self._lane_of: dict[Key, Lane] = {}
        self._fresh_in_a_row = 0
        self._since_low = 0
        self._was_aside = False
        """Whether of what is known an aside key went last."""

    def __len__(self) -> int:
        return len(self._lane_of)

    def put(self, key: Key, lane: Lane) -> None:
        """Let a key wait; one that waits already keeps its time, and moves up where `lane` is more urgent."""
        present = self._lane_of.get(key)
        if present is not None and present.urgency <= lane.urgency:
            return
        since = self._clock() if present is None else self._turns[present].remove(key)
        self._lane_of[key] = lane
        self._turns[lane].put(key, since)

    def has(self, *, aside: bool) -> bool:
        """Tell whether a key waits for its turn; `aside`: whether keys of that lane have one."""
        return len(self) > (0 if aside else self._turns[Lane.ASIDE].count)

    def pop(self, *, aside: bool = True) -> tuple[Key, Lane, float]:
        """Return the key whose turn it is, its lane, and since when it waited; there must be one, see `has`."""
        lane = self._next_lane(aside)
        self._fresh_in_a_row = self._fresh_in_a_row + 1 if lane is Lane.FRESH else 0
        self._since_low = 0 if lane is Lane.LOW else self._since_low + 1
        self._was_aside = lane is Lane.ASIDE or (self._was_aside and lane is not Lane.NORMAL)
        key, since = self._turns[lane].pop()
        del self._lane_of[key]
        return key, lane, since

    def _next_lane(self, aside: bool) -> Lane:
        fresh, known = self._turns[Lane.FRESH].count, self._known(aside)
        if (not fresh and known is None) or self._low_is_due():
            return Lane.LOW
        if known is not None and (not fresh or self._fresh_in_a_row >= FRESH_IN_A_ROW):
            return known
        return Lane.FRESH

    def _known(self, aside: bool) -> Lane | None:
        """Return the lane behind the fresh one whose oldest key has waited longer, None where none waits there.

        Hundreds of aside keys may all have waited longer: behind one of them goes a normal one.
        """
        if self._was_aside and self._turns[Lane.NORMAL].count:
            return Lane.NORMAL
        lanes = (Lane.NORMAL, Lane.ASIDE) if aside else (Lane.NORMAL,)
        since = {lane: oldest for lane in lanes if (oldest := self._turns[lane].oldest()) is not None}
        return min(since, key=lambda lane: since[lane], default=None)

    def _low_is_due(self) -> bool:
        if self._since_low < OTHERS_BEFORE_LOW:
            return False
        oldest = self._turns[Lane.LOW].oldest()
        return oldest is not None and self._clock() - oldest >= AGED_SECONDS

    def depths(self) -> dict[str, int]:
        """Return how many keys wait, by lane."""
        return {lane.value: turns.count for lane, turns in self._turns.items()}

    @property
    def fresh(self) -> int:
        """The number of keys that wait in the most urgent lane."""
        return self._turns[Lane.FRESH].count

    def oldest(self) -> float | None:
        """Return since when the oldest key waits, None where none does."""
        times = [since for turns in self._turns.values() if (since := turns.oldest()) is not None]
        return min(times, default=None)
