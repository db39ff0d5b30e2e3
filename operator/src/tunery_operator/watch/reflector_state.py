"""How a reflector stands: what the probes, the metrics and the log tell of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from tunery_operator.metrics import WATCH_ERRORS, WATCH_RELISTS
from tunery_operator.watch.failure import WatchFailure
from tunery_operator.watch.target import Target

logger = logging.getLogger(__name__)

MAX_SILENCE: Final = 180.0
"""Seconds without a sign of life from an open watch, after which the process is better started anew."""


class Standing:
    """Written by one reflector, read by whoever asks; all in the event loop's thread."""

    def __init__(self, target: Target, clock: Callable[[], float] = time.monotonic) -> None:
        self.target = target
        self.synced = False
        """A complete list has been applied to the cache, once at least."""
        self._clock = clock
        self._sign = clock()
        self.astray = False
        """The cluster went back in time: its etcd was restored from a backup, and nothing known can be compared."""
        self._open = False
        self._failure: WatchFailure | None = None
        self._failing_since = 0.0

    @property
    def age(self) -> float:
        """Seconds since the last sign of life: a line of a watch, or a page of a list."""
        return self._clock() - self._sign

    @property
    def defect(self) -> str | None:
        """What only a new process can mend; an API server that is away or refuses is nothing of the kind."""
        if self.astray:
            return f"{self.target}: the cluster is older than what is known of it"
        if self._open and self.age > MAX_SILENCE:
            return f"{self.target}: an open watch has been silent for {self.age:.0f} s"
        return None

    @property
    def trouble(self) -> str | None:
        """What keeps the cache from being up to date, such as `jobs: 403 … for 42 s`; None: nothing."""
        if self._failure is not None:
            return f"{self.target}: {self._failure} for {self._clock() - self._failing_since:.0f} s"
        return None if self.synced else f"{self.target}: not listed yet"

    def opens(self) -> None:
        """Take note that a watch is asked for."""
        self._open, self._sign = True, self._clock()

    def alive(self) -> None:
        """Take note of a sign of life: what failed before works again."""
        self._sign = self._clock()
        if self._failure is not None:
            logger.info("%s: works again after %.0f s", self.target, self._sign - self._failing_since)
            self._failure = None

    def ended(self) -> None:
        """Take note that a watch is over."""
        self._open = False

    def counts(self, failure: WatchFailure) -> None:
        """Count a failure that is no state yet: the next try may work."""
        self.ended()
        WATCH_ERRORS.labels(self.target.resource, failure.code).inc()
        logger.debug("%s: %s", self.target, failure)

    def fails(self, failure: WatchFailure) -> None:
        """Count a failure, and tell it once for each change of state."""
        self.counts(failure)
        if self._failure is None:
            self._failing_since = self._clock()
        if self._failure is None or self._failure.code != failure.code:
            logger.warning("%s: cannot be watched: %s", self.target, failure)
        self._failure = failure

    def lists(self) -> None:
        """Count a list after the first."""
        if self.synced:
            WATCH_RELISTS.labels(self.target.resource).inc()
