"""Provide what all reconciles share: the clients, the caches, the settings, the clock, and the backoffs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from tunery_operator.client.client import KubeClient
from tunery_operator.client.event_recorder import EventRecorder
from tunery_operator.controllers.sampler_pool import SamplerPool
from tunery_operator.controllers.warnings import Warnings
from tunery_operator.errors import FieldContested
from tunery_operator.observed.metadata import Key
from tunery_operator.planning.job import Platform
from tunery_operator.runtime.cache import Cache
from tunery_operator.runtime.workqueue import backoff

CONFLICT_WINDOW: Final = 60.0
CONFLICT_CHANGES: Final = 4
"""After so many changes of one child within the window, Tunery pauses: the first change, and three repeats."""
CONFLICT_PAUSE: Final = 300.0
_FORGET: Final = 2 * CONFLICT_PAUSE


class Backoff:
    """Returns the backoff of each blocked object: at most 30 s."""

    def __init__(self) -> None:
        self._failures: dict[Key, int] = {}
        self._lock = threading.Lock()

    def next(self, key: Key) -> float:
        """Return the seconds until the next try, about twice as many as last time."""
        with self._lock:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
        return backoff(failures)

    def reset(self, key: Key) -> None:
        """Forget the failed tries of an object that nothing blocks any more."""
        with self._lock:
            self._failures.pop(key, None)


class ConflictBackoff:
    """Stops changes that another controller keeps undoing, for some minutes."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._changes: dict[str, list[float]] = {}
        self._until: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def change(self, uid: str, field: str) -> Iterator[None]:
        """Change a field of a child inside this context. Raises FieldContested if another controller keeps undoing it.

        A change that the API server rejects does not count.
        """
        self._check(uid, field)
        yield
        with self._lock:
            now = self._monotonic()
            self._changes[uid] = [*self._lately(uid, now), now]

    def _check(self, uid: str, field: str) -> None:
        with self._lock:
            now = self._monotonic()
            self._forget(now)
            until = self._until.get(uid, now)
            if until <= now and len(self._lately(uid, now)) >= CONFLICT_CHANGES:
                until = self._until[uid] = now + CONFLICT_PAUSE
            if until > now:
                text = f"another controller keeps reverting {field}; Tunery retries in some minutes"
                raise FieldContested(text, until - now)

    def _lately(self, uid: str, now: float) -> list[float]:
        """Return the times of the changes inside the window."""
        return [time for time in self._changes.get(uid, ()) if now - time < CONFLICT_WINDOW]

    def _forget(self, now: float) -> None:
        self._until = {uid: time for uid, time in self._until.items() if now - time < _FORGET}
        self._changes = {uid: times for uid, times in self._changes.items() if now - times[-1] < _FORGET}


@dataclass(slots=True)
class ReconcileContext:
    """What all reconciles of the process share."""

    client: KubeClient
    cache: Cache
    platform: Platform
    events: EventRecorder
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    monotonic: Callable[[], float] = field(default=time.monotonic)
    backoff: Backoff = field(default_factory=Backoff)
    conflicts: ConflictBackoff = field(default_factory=lambda: ConflictBackoff(time.monotonic))
    warnings: Warnings = field(default_factory=lambda: Warnings(time.monotonic))
    sampler: SamplerPool = field(default_factory=SamplerPool)
    watched_before: datetime | None = None
    """Until when another operator led before this one, by the Lease; None: unknown."""
    acting_since: datetime | None = None
    """Since when this operator leads; None: it does not."""
    certificate_fault: Callable[[], str | None] = lambda: None
    """Return why pods can't trust the certificate of the progress endpoint; None: they can."""
    has_backlog: Callable[[], bool] = lambda: False
    """Return whether high-priority keys wait: their Jobs are created before the statuses of others are written."""
    preflights: threading.Lock = field(default_factory=threading.Lock)
    """Held while preflights are counted and one is created, if their number is bounded."""

    def use_ca(self, ca_pem: str) -> None:
        """Let the pods of new Jobs trust this certificate authority (CA) at the progress endpoint."""
        progress = self.platform.progress
        if progress is not None:
            self.platform = self.platform._replace(progress=replace(progress, ca_pem=ca_pem))
