"""Whose turn it is at a few places: who finds none keeps its place in a line, and is told when to come again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tunery_operator.errors import SamplerBusy

SHORTEST_SECONDS: Final = 0.5
"""The first in line look so often."""
LONGEST_SECONDS: Final = 30.0
PUNCTUAL_SECONDS: Final = 1.0
"""So far from when it is to come a place is held for who is first; then it goes to the next, and the line stays."""
_FIRST_GUESS: Final = 2.0
"""How long a turn takes, before one was measured."""
_EARLY: Final = 0.75
"""Of the time that a turn may take: who comes too early is told again, who comes too late leaves a place empty."""


@dataclass(slots=True)
class _Waiting:
    """One in line."""

    large: bool
    due: float = 0.0
    """When it is to come again."""


class Turns:
    """A line before some places, of which large work holds all but one at most; safe for threads."""

    def __init__(self, places: int, clock: Callable[[], float]) -> None:
        self._places = places
        self._clock = clock
        self._lock = threading.Lock()
        self._held: list[bool] = []
        """Of each place that is held: whether for large work."""
        self._line: dict[str, _Waiting] = {}
        self._usual = _FIRST_GUESS

    def take(self, who: str, *, large: bool) -> None:
        """Take a place; raises SamplerBusy, which says when to come, where it is not this one's turn."""
        with self._lock:
            now = self._clock()
            self._forget(now)
            mine = self._line.setdefault(who, _Waiting(large))
            mine.large = large
            if self._is_turn(who, now):
                del self._line[who]
                self._held.append(large)
                return
            seconds = self._seconds(list(self._line).index(who))
            mine.due = now + seconds
            raise SamplerBusy(seconds)

    def give(self, *, large: bool, seconds: float) -> None:
        """Give a place back that was held for so long."""
        with self._lock:
            self._held.remove(large)
            self._usual += 0.2 * (seconds - self._usual)

    def _is_turn(self, who: str, now: float) -> bool:
        """Tell whether a place is left beside those who are before in line and may come at any moment."""
        free, large_free = self._places - len(self._held), self._places - 1 - sum(self._held)
        for name, each in self._line.items():
            fits = free > 0 and (large_free > 0 or not each.large)
            if name == who:
                return fits
            if fits and abs(each.due - now) <= PUNCTUAL_SECONDS:
                free -= 1
                large_free -= each.large
        return False

    def _seconds(self, position: int) -> float:
        ahead = position // self._places * self._usual * _EARLY
        return min(max(SHORTEST_SECONDS, ahead), LONGEST_SECONDS)

    def _forget(self, now: float) -> None:
        """Strike out who has not come for long: a sweep that is gone, suspended or over."""
        gone = [name for name, each in self._line.items() if now > each.due + LONGEST_SECONDS]
        for name in gone:
            del self._line[name]
