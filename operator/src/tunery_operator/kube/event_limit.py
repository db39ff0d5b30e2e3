"""How much of what happens to an object becomes an event: nothing twice within minutes, and never a flood."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

from tunery_operator.views.event import RESUMED, RETRIED, Event

REPEAT_SECONDS: Final = 600.0
"""The same thing is told again only after so long: until then the first event stands where a reader looks."""
BURST: Final = 25
"""Events about one object that may come at once."""
REFILL_SECONDS: Final = 60.0
"""Time after which one more may come."""
MAX_OBJECTS: Final = 10_000
_BEGINS_ANEW: Final = frozenset({RETRIED, RESUMED})
"""Events of what a person did; the limit at once holds for these, too."""


class _Allowance:
    """What one object may still tell, and what it told lately."""

    def __init__(self, now: float) -> None:
        self.tokens = float(BURST)
        self.refilled = now
        self.told: dict[Hashable, float] = {}


class EventLimit:
    """Decides about each event before it is queued; safe to share between threads.

    A job that evaluates every 50 steps goes from Training to Evaluating and back hundreds of times. Such a Normal event
    is known by its reason; a Warning by its words, too, since two failures of one reason are two things to know.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._objects: OrderedDict[str, _Allowance] = OrderedDict()

    def refused(self, uid: str, event: Event) -> str | None:
        """Return why an event about the object `uid` is not to be posted, or None where it is."""
        now = self._clock()
        with self._lock:
            allowance = self._allowance(uid, now)
            if event.reason in _BEGINS_ANEW:
                # A person wants to see all of it once more.
                allowance.told.clear()
            known: Hashable = (event.reason, event.note) if event.warning else event.reason
            if known in allowance.told:
                return "repeated"
            if allowance.tokens < 1:
                return "limit"
            allowance.tokens -= 1
            allowance.told[known] = now
            return None

    def _allowance(self, uid: str, now: float) -> _Allowance:
        """Return an object's allowance as it is now; the objects that were quiet for longest are forgotten first."""
        allowance = self._objects.setdefault(uid, _Allowance(now))
        self._objects.move_to_end(uid)
        if len(self._objects) > MAX_OBJECTS:
            self._objects.popitem(last=False)
        allowance.tokens = min(float(BURST), allowance.tokens + (now - allowance.refilled) / REFILL_SECONDS)
        allowance.refilled = now
        allowance.told = {what: when for what, when in allowance.told.items() if now - when < REPEAT_SECONDS}
        return allowance
