"""When each watch last showed a sign of life: events, or the API server's bookmarks, one a minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

WATCHED: Final = ("lorajobs", "adaptermerges", "jobs", "pods")
MAX_AGE: Final = 180.0
"""Seconds without any sign after which the process is better started anew."""


class WatchAges:
    """The time of the last sign of life, by resource."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._seen: dict[str, float] = {}

    def saw(self, path: str) -> None:
        """Take note that something arrived for a URL path such as /apis/batch/v1/jobs."""
        resource = path.rsplit("/", 1)[-1]
        if resource in WATCHED:
            self._seen[resource] = self._clock()

    @property
    def ready(self) -> bool:
        """Tell whether each watch has listed its objects."""
        return all(resource in self._seen for resource in WATCHED)

    def ages(self) -> dict[str, float]:
        """Return the seconds since the last sign of life, by resource."""
        now = self._clock()
        return {resource: now - self._seen.get(resource, self._started) for resource in WATCHED}

    def stalled(self) -> list[str]:
        """Return the resources whose watch has been silent for too long."""
        return [resource for resource, age in self.ages().items() if age > MAX_AGE]
