"""The work queue: one reconcile per object at a time, a global limit, fair lanes, backoff with jitter."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from tunery_operator.errors import ApiFailure, OperatorEnds, OperatorError, OwnerGone, StaleObject
from tunery_operator.logs import about, new_request
from tunery_operator.metrics import QUEUE_WAIT, RECONCILE_CONFLICTS, RECONCILE_ERRORS, RECONCILE_SECONDS
from tunery_operator.runtime.priority_queue import Lane, Lanes
from tunery_operator.views.owner import Key

logger = logging.getLogger(__name__)

FIRST_BACKOFF: Final = 0.5
MAX_BACKOFF: Final = 300.0
MAX_REFUSAL_BACKOFF: Final = 30.0
"""Backoff where the API server is away, overloaded or refuses: once that is over, nobody should wait for minutes more.

Only what is wrong with the operator itself is tried more seldom.
"""
GONE_SECONDS: Final = 5.0
"""Time after which it is looked again whether an object is gone that the API server said was gone."""
MAX_QUICK_RETRIES: Final = 30
"""After so many errors that asked for a quick retry, the backoff decides."""
ASIDE_SHARE: Final = 4
"""One in so many workers looks at keys of sweeps, so that fifty sweeps at once leave the others to LoRAJobs."""
LEAST_ASIDE: Final = 3
"""Workers for them nevertheless, of more than so many: two of these may wait for a sampler's process."""


@dataclass(frozen=True, slots=True)
class Requeue:
    """Nothing, or another look after so many seconds; and the objects that waited for what was written."""

    after: float | None = None
    wake: frozenset[Key] = frozenset()


DONE: Final = Requeue()


def earliest(*times: float | None) -> float | None:
    """Return the least of some numbers of seconds, leaving out what is None."""
    return min((time for time in times if time is not None), default=None)


Reconcile = Callable[[Key], Requeue]


class WorkQueue:
    """Keys that wait for their reconcile; all methods but `is_pressed` belong to the event loop's thread."""

    def __init__(self, reconcile: Reconcile, workers: int, is_aside: Callable[[Key], bool] = lambda key: False) -> None:
        self._reconcile = reconcile
        self._workers = workers
        self._is_aside = is_aside
        # One of a few is left to the others; a single one takes turns.
        self._most_aside = max(1, min(workers - 1, max(LEAST_ASIDE, workers // ASIDE_SHARE)))
        self._running_aside: set[Key] = set()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="reconcile")
        self._waiting = Lanes()
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._dirty: dict[Key, Lane] = {}
        """Keys that were added again while their reconcile ran."""
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._opened: float | None = None
        """Since when the queue is open; None: it is closed."""

    @property
    def depth(self) -> int:
        """The number of keys that wait."""
        return len(self._waiting) + len(self._dirty)

    def depths(self) -> dict[str, int]:
        """Return how many keys wait, by lane."""
        return self._waiting.depths()

    def is_pressed(self) -> bool:
        """Tell whether fresh keys wait; also other threads may ask."""
        return self._waiting.fresh > 0

    @property
    def oldest_age(self) -> float:
        """Seconds that the oldest key has waited for a worker; 0 while the queue is closed."""
        oldest = self._waiting.oldest()
        if oldest is None or self._opened is None:
            return 0.0
        return time.monotonic() - max(oldest, self._opened)

    def open(self) -> None:
        """Start to work, for the first time or again: what was added before has waited for this."""
        self._opened = time.monotonic()
        self._start()

    def add(self, keys: Iterable[Key], *, lane: Lane = Lane.NORMAL) -> None:
        """Reconcile these keys as soon as it is their turn."""
        for key in keys:
            own = Lane.ASIDE if self._is_aside(key) else lane
            if key in self._running:
                self._dirty[key] = min(own, self._dirty.get(key, own), key=lambda each: each.urgency)
            else:
                self._waiting.put(key, own)
        self._start()

    def add_after(self, key: Key, seconds: float, *, lane: Lane = Lane.LOW) -> None:
        """Reconcile a key in so many seconds, or earlier if it was to be looked at earlier."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        when = loop.time() + max(0.0, seconds)
        if timer is not None and timer.when() <= when:
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_at(when, self._fire, key, lane)

    def _fire(self, key: Key, lane: Lane) -> None:
        self._timers.pop(key, None)
        self.add([key], lane=lane)

    def _start(self) -> None:
        while self._opened is not None and len(self._running) < self._workers:
            aside = len(self._running_aside) < self._most_aside
            if not self._waiting.has(aside=aside):
                return
            key, lane, since = self._waiting.pop(aside=aside)
            if lane is Lane.ASIDE:
                self._running_aside.add(key)
            QUEUE_WAIT.labels(lane.value).observe(time.monotonic() - max(since, self._opened))
            self._running[key] = asyncio.create_task(self._process(key))

    async def _process(self, key: Key) -> None:
        loop, request = asyncio.get_running_loop(), new_request()
        try:
            with RECONCILE_SECONDS.labels(key.kind.value).time():
                requeue = await loop.run_in_executor(self._pool, self._look, key, request)
            self._failures.pop(key, None)
            self._follow(key, requeue)
        except OwnerGone as gone:
            logger.debug("%s: %s", key, gone)
            self._failures.pop(key, None)
            # One wrong 404 must not leave an object alone for ever; what is gone costs one look.
            self.add_after(key, GONE_SECONDS, lane=Lane.LOW)
        except OperatorEnds as end:
            logger.debug("%s: %s", key, end)
        except Exception as error:  # noqa: BLE001 - one broken object must not stop the others
            with about(key.kind.value, key.namespace, key.name, request):
                self._retry(key, error)
        finally:
            del self._running[key]
            self._running_aside.discard(key)
            lane = self._dirty.pop(key, None)
            if lane is not None:
                self._waiting.put(key, lane)
            self._start()

    def _look(self, key: Key, request: str) -> Requeue:
        """Reconcile one key, in a worker's thread; what is logged there tells for which object it was."""
        with about(key.kind.value, key.namespace, key.name, request):
            return self._reconcile(key)

    def _follow(self, key: Key, requeue: Requeue) -> None:
        self.add(requeue.wake)
        if requeue.after is not None and requeue.after <= 0:
            self.add([key])
        elif requeue.after is not None:
            self.add_after(key, requeue.after)

    def _retry(self, key: Key, error: Exception) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        if isinstance(error, StaleObject):
            RECONCILE_CONFLICTS.labels(key.kind.value).inc()
            logger.debug("%s: %s", key, error)
        else:
            RECONCILE_ERRORS.labels(key.kind.value).inc()
            _tell(key, error, failures)
        self.add_after(key, delay(error, failures), lane=Lane.NORMAL)

    async def close(self, seconds: float) -> None:
        """Start nothing more until the queue is opened again, and wait at most so many seconds for what runs."""
        self._opened = None
        if self._running:
            await asyncio.wait(list(self._running.values()), timeout=seconds)


def delay(error: Exception, failures: int) -> float:
    """Return the seconds until the next try after so many failures in a row."""
    asked = error.retry_after if isinstance(error, OperatorError) else None
    longest = MAX_REFUSAL_BACKOFF if isinstance(error, ApiFailure) else MAX_BACKOFF
    backoff = min(longest, FIRST_BACKOFF * 2.0 ** min(failures, 16)) * _jitter(0.5, 1.0)
    if asked is None or failures > MAX_QUICK_RETRIES:
        return backoff
    # What a server that is overloaded asks for is the least; the others know better than the backoff.
    return max(asked * _jitter(1.0, 1.2), backoff) if isinstance(error, ApiFailure) else asked


def _jitter(low: float, high: float) -> float:
    return random.uniform(low, high)  # noqa: S311 - it spreads load, it guards nothing


def _tell(key: Key, error: Exception, failures: int) -> None:
    """Log the first failure in a row, the second, the fourth, the eighth …: an outage must not fill the log."""
    if failures & (failures - 1):
        return
    if isinstance(error, OperatorError):
        logger.warning("%s: %s (failure %d in a row)", key, error, failures)
    else:
        logger.error("%s: a defect of the operator (failure %d in a row)", key, failures, exc_info=error)
