"""Provide the work queue: one reconcile per object at a time, two priorities, exponential backoff with jitter."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from tunery_operator.errors import ApiFailure, OperatorError, OwnerGone, StaleObject
from tunery_operator.logs import about, new_request
from tunery_operator.metrics import QUEUE_WAIT, RECONCILE_CONFLICTS, RECONCILE_ERRORS, RECONCILE_SECONDS
from tunery_operator.observed.metadata import Key
from tunery_operator.runtime.priority_queue import Priority, PriorityQueue

logger = logging.getLogger(__name__)

FIRST_BACKOFF: Final = 0.5
MAX_BACKOFF: Final = 30.0
"""The longest pause while the API server is away, overloaded, or rejects a request."""
MAX_BUG_BACKOFF: Final = 300.0
GONE_SECONDS: Final = 5.0
"""Seconds after which an object is read again after a 404, which may be wrong."""
MAX_QUICK_RETRIES: Final = 30
"""After so many errors in a row, the backoff overrides the delay that the error asks for."""


@dataclass(frozen=True, slots=True)
class Requeue:
    """The result of a reconcile: when to reconcile the object again, and which others now."""

    after: float | None = None
    """Seconds; 0: at once, at the priority it had. None: not before something happens."""
    wake: frozenset[Key] = frozenset()
    """The objects that waited for what was written."""
    priority: Priority | None = None
    """Of another reconcile at once; None: as before."""


DONE: Final = Requeue()


def earliest(*times: float | None) -> float | None:
    """Return the least of some numbers of seconds, ignoring None."""
    return min((time for time in times if time is not None), default=None)


Reconcile = Callable[[Key], Requeue]


class WorkQueue:
    """The keys that wait for a reconcile. All methods but `has_backlog` belong to the event loop's thread.

    Keys for which `is_low` is true never have high priority.
    """

    def __init__(self, reconcile: Reconcile, workers: int, is_low: Callable[[Key], bool] = lambda key: False) -> None:
        self._reconcile = reconcile
        self._workers = workers
        self._is_low = is_low
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="reconcile")
        self._waiting = PriorityQueue()
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._dirty: dict[Key, Priority] = {}
        """Keys that were added while their reconcile ran."""
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._opened: float | None = None
        """The time since when the queue is open; None: it is closed."""

    @property
    def depth(self) -> int:
        """The number of keys that wait."""
        return len(self._waiting) + len(self._dirty)

    def depths(self) -> dict[str, int]:
        """Return the number of waiting keys by priority."""
        return self._waiting.depths()

    def has_backlog(self) -> bool:
        """Return whether high-priority keys wait; safe for threads."""
        return self._waiting.has_high()

    @property
    def oldest_age(self) -> float:
        """Seconds that the oldest key has waited for a worker; 0 while the queue is closed."""
        oldest = self._waiting.oldest()
        if oldest is None or self._opened is None:
            return 0.0
        return time.monotonic() - max(oldest, self._opened)

    def open(self) -> None:
        """Start to reconcile, for the first time or again, beginning with the keys added before."""
        self._opened = time.monotonic()
        self._start()

    def add(self, keys: Iterable[Key], priority: Priority = Priority.HIGH) -> None:
        """Reconcile these keys as soon as a worker is free."""
        for key in keys:
            own = Priority.LOW if self._is_low(key) else priority
            if key not in self._running:
                self._waiting.add(key, own)
            elif self._dirty.get(key) is not Priority.HIGH:
                self._dirty[key] = own
        self._start()

    def add_after(self, key: Key, seconds: float, priority: Priority = Priority.LOW) -> None:
        """Reconcile a key in so many seconds, or at the time set before if that is earlier."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        when = loop.time() + max(0.0, seconds)
        if timer is not None and timer.when() <= when:
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_at(when, self._fire, key, priority)

    def _fire(self, key: Key, priority: Priority) -> None:
        self._timers.pop(key, None)
        self.add([key], priority)

    def _start(self) -> None:
        while self._opened is not None and self._waiting and len(self._running) < self._workers:
            key, priority, since = self._waiting.pop()
            QUEUE_WAIT.labels(priority.value).observe(time.monotonic() - max(since, self._opened))
            self._running[key] = asyncio.create_task(self._process(key, priority))

    async def _process(self, key: Key, priority: Priority) -> None:
        loop, request = asyncio.get_running_loop(), new_request()
        try:
            with RECONCILE_SECONDS.labels(key.kind.value).time():
                requeue = await loop.run_in_executor(self._pool, self._run, key, request)
            self._failures.pop(key, None)
            self._follow(key, requeue, priority)
        except OwnerGone as gone:
            logger.debug('Object is gone: object="%s" reason="%s"', key, gone)
            self._failures.pop(key, None)
            self.add_after(key, GONE_SECONDS)
        except Exception as error:  # noqa: BLE001 - one broken object must not stop the others
            with about(key.kind.value, key.namespace, key.name, request):
                self._retry(key, error, priority)
        finally:
            del self._running[key]
            again = self._dirty.pop(key, None)
            if again is not None:
                self._waiting.add(key, again)
            self._start()

    def _run(self, key: Key, request: str) -> Requeue:
        """Reconcile one key in a worker's thread; its log lines name the object."""
        with about(key.kind.value, key.namespace, key.name, request):
            return self._reconcile(key)

    def _follow(self, key: Key, requeue: Requeue, priority: Priority) -> None:
        self.add(requeue.wake)
        if requeue.after is not None and requeue.after <= 0:
            self.add([key], requeue.priority or priority)
        elif requeue.after is not None:
            self.add_after(key, requeue.after)

    def _retry(self, key: Key, error: Exception, priority: Priority) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        if isinstance(error, StaleObject):
            RECONCILE_CONFLICTS.labels(key.kind.value).inc()
            logger.debug('Conflict: object="%s" error="%s"', key, error)
        else:
            RECONCILE_ERRORS.labels(key.kind.value).inc()
            _log(key, error, failures)
        self.add_after(key, delay(error, failures), priority)

    async def close(self, seconds: float) -> None:
        """Start no reconcile until the queue is opened again; wait at most so many seconds for those that run."""
        self._opened = None
        if self._running:
            await asyncio.wait(list(self._running.values()), timeout=seconds)


def delay(error: Exception, failures: int) -> float:
    """Return the seconds until the next try after so many failures in a row."""
    asked = error.retry_after if isinstance(error, OperatorError) else None
    pause = backoff(failures, MAX_BACKOFF if isinstance(error, OperatorError) else MAX_BUG_BACKOFF)
    if asked is None or failures > MAX_QUICK_RETRIES:
        return pause
    # An overloaded API server states the least pause; other errors know the right one.
    return max(asked * _jitter(1.0, 1.2), pause) if isinstance(error, ApiFailure) else asked


def backoff(failures: int, longest: float = MAX_BACKOFF) -> float:
    """Return the seconds until the next try: 0.5 to 1 after the first failure, then twice as long each time."""
    return min(longest, FIRST_BACKOFF * 2.0 ** min(failures, 16)) * _jitter(0.5, 1.0)


def _jitter(low: float, high: float) -> float:
    return random.uniform(low, high)  # noqa: S311 - it spreads load, it guards nothing


def _log(key: Key, error: Exception, failures: int) -> None:
    """Log the first, second, fourth, eighth … failure in a row, so that an outage does not fill the log."""
    if failures & (failures - 1):
        return
    if isinstance(error, OperatorError):
        logger.warning('Reconcile failed: object="%s" failures=%d error="%s"', key, failures, error)
    else:
        logger.error('Bug in Tunery: object="%s" failures=%d', key, failures, exc_info=error)
