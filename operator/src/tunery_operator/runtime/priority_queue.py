"""Provide the order of the work queue: two priorities, and round-robin by namespace within each."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import Final

from tunery_operator.observed.metadata import Key

MOST_HIGH_IN_A_ROW: Final = 9
AGED_SECONDS: Final = 10.0
"""A low-priority key that waited this long goes next, after at most MOST_HIGH_IN_A_ROW high-priority keys."""


class Priority(Enum):
    """The priority of a key in the work queue."""

    HIGH = "high"
    """The object or a child of it changed, or its manifest is newer than its status."""
    LOW = "low"
    """Time has passed, a pod reported progress, or the object is a sweep or a trial."""


class _RoundRobin:
    """Keys and the times since they wait, one of each namespace in turn, so that no tenant delays another."""

    def __init__(self) -> None:
        self._namespaces: dict[str, dict[Key, float]] = {}
        self.count = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._namespaces.get(key.namespace, ())

    def add(self, key: Key, since: float) -> None:
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
        """Return the oldest key of the first namespace, which then becomes the last."""
        namespace, keys = next(iter(self._namespaces.items()))
        key = next(iter(keys))
        since = self.remove(key)
        if keys:
            self._namespaces[namespace] = self._namespaces.pop(namespace)
        return key, since

    def oldest(self) -> float | None:
        return min((next(iter(keys.values())) for keys in self._namespaces.values()), default=None)


class PriorityQueue:
    """The waiting keys, each once, at the highest priority that it was added with."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._high, self._low = _RoundRobin(), _RoundRobin()
        self._high_in_a_row = 0

    def __len__(self) -> int:
        return self._high.count + self._low.count

    def add(self, key: Key, priority: Priority) -> None:
        """Add a key; one that already waits keeps its time, and may only move up."""
        if key in self._high or (key in self._low and priority is Priority.LOW):
            return
        since = self._low.remove(key) if key in self._low else self._clock()
        (self._high if priority is Priority.HIGH else self._low).add(key, since)

    def pop(self) -> tuple[Key, Priority, float]:
        """Return the next key, its priority, and the time since it waits. Raises StopIteration if none waits."""
        if self._high.count and not self._is_low_due():
            self._high_in_a_row += 1
            key, since = self._high.pop()
            return key, Priority.HIGH, since
        self._high_in_a_row = 0
        key, since = self._low.pop()
        return key, Priority.LOW, since

    def _is_low_due(self) -> bool:
        oldest = self._low.oldest() if self._high_in_a_row >= MOST_HIGH_IN_A_ROW else None
        return oldest is not None and self._clock() - oldest >= AGED_SECONDS

    def has_high(self) -> bool:
        """Return whether a high-priority key waits."""
        return self._high.count > 0

    def depths(self) -> dict[str, int]:
        """Return the number of waiting keys by priority."""
        return {Priority.HIGH.value: self._high.count, Priority.LOW.value: self._low.count}

    def oldest(self) -> float | None:
        """Return the time since the oldest key waits, None if none waits."""
        return min((time for each in (self._high, self._low) if (time := each.oldest()) is not None), default=None)
