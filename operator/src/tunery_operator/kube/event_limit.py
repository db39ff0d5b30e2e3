"""How much of what happens to an object becomes an event: nothing twice within minutes, and never a flood."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from typing import Final

from tunery_operator.kube.event_body import MAX_NOTE
from tunery_operator.views.event import (
    ADAPTER_FAILED,
    ADAPTER_REMOVED,
    ADAPTER_SERVED,
    RESUMED,
    RETRIED,
    SERVER_READY,
    SERVER_STOPPED,
    Event,
)

REPEAT_SECONDS: Final = 600.0
"""The same thing is told again only after so long: until then the first event stands where a reader looks."""
TIMES: Final = 5
"""How often the same thing is told in that time where it is undone and comes again: an adapter that flaps."""
BURST: Final = 25
"""Events about one object that may come at once."""
RESERVE: Final = 5
"""How many more those may be that tell how it ended, as people and programs wait for these; made up for later."""
REFILL_SECONDS: Final = 60.0
"""Time after which one more may come."""
MAX_OBJECTS: Final = 10_000
_BEGINS_ANEW: Final = frozenset({RETRIED, RESUMED})
"""Events of what a person did; the limit at once holds for these, too."""
_UNDOES: Final[Mapping[str, Set[str]]] = {
    ADAPTER_REMOVED: {ADAPTER_SERVED, ADAPTER_FAILED},
    ADAPTER_SERVED: {ADAPTER_REMOVED, ADAPTER_FAILED},
    SERVER_STOPPED: {SERVER_READY},
    SERVER_READY: {SERVER_STOPPED},
}
"""What is news again, if it comes again, once this was told."""


class _Allowance:
    """What one object may still tell, and what it told lately."""

    def __init__(self, now: float) -> None:
        self.tokens = float(BURST)
        self.refilled = now
        self.told: dict[tuple[str, str], tuple[float, bool]] = {}
        """When each reason and note was told, and whether it was a warning."""
        self.times: dict[tuple[str, str], list[float]] = {}
        """When each was told, also what was undone since."""

    def begin_anew(self, event: Event) -> None:
        """Forget of what was told what this event makes news again."""
        undone = _UNDOES.get(event.reason, frozenset())
        # What went well before a warning, and does so again, is news: else the warning would be the last word.
        self.told = {
            what: known
            for what, known in self.told.items()
            if what[0] not in undone and (known[1] or not event.warning)
        }


class EventLimit:
    """Decides about each event before it is queued; safe to share between threads.

    A job that evaluates every 50 steps goes from Training to Evaluating and back hundreds of times, in the same words.
    What is told in other ones is another thing to know; and so is what was undone meanwhile, and has come again, a few
    times: what comes and goes all the time is told with how often it did.
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
                allowance.times.clear()
            known = event.reason, event.note
            if known in allowance.told or len(allowance.times.get(known, ())) >= TIMES:
                return "repeated"
            if allowance.tokens < (1 - RESERVE if event.ends else 1):
                return "limit"
            allowance.tokens -= 1
            allowance.begin_anew(event)
            allowance.told[known] = now, event.warning
            allowance.times.setdefault(known, []).append(now)
            return None

    def counted(self, uid: str, event: Event) -> Event:
        """Return an event that is not refused, with how often it was told lately where that was more than once."""
        with self._lock:
            allowance = self._objects.get(uid)
            times = len(allowance.times.get((event.reason, event.note), ())) if allowance is not None else 0
        if times < 2:
            return event
        last = "; it is not told again before they are over" if times == TIMES else ""
        more = f" ({times} times in {REPEAT_SECONDS / 60:.0f} minutes{last})"
        return replace(event, note=event.note[: MAX_NOTE - len(more)] + more)

    def _allowance(self, uid: str, now: float) -> _Allowance:
        """Return an object's allowance as it is now; the objects that were quiet for longest are forgotten first."""
        allowance = self._objects.setdefault(uid, _Allowance(now))
        self._objects.move_to_end(uid)
        if len(self._objects) > MAX_OBJECTS:
            self._objects.popitem(last=False)
        allowance.tokens = min(float(BURST), allowance.tokens + (now - allowance.refilled) / REFILL_SECONDS)
        allowance.refilled = now
        allowance.told = {what: known for what, known in allowance.told.items() if now - known[0] < REPEAT_SECONDS}
        recent = ((what, [at for at in times if now - at < REPEAT_SECONDS]) for what, times in allowance.times.items())
        allowance.times = {what: times for what, times in recent if times}
        return allowance
