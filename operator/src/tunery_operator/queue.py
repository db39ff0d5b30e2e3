"""The work queue: one reconcile per object at a time, a global limit, backoff with jitter."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from prometheus_client import Counter, Histogram

from tunery_operator.errors import OperatorError, OwnerGone
from tunery_operator.plan.model import Key
from tunery_operator.reconcile.outcome import Outcome

logger = logging.getLogger(__name__)

MAX_BACKOFF: Final = 300.0
FIRST_BACKOFF: Final = 0.5
MAX_QUICK_RETRIES: Final = 30
"""After so many errors that asked for a quick retry, the backoff decides."""

SECONDS: Final = Histogram("tunery_reconcile_seconds", "Time of one reconcile.", ["kind"])
ERRORS: Final = Counter("tunery_reconcile_errors", "Reconciles that ended with an error.", ["kind"])


Reconcile = Callable[[Key], Outcome]


class WorkQueue:
    """Keys that wait for their reconcile; all methods belong to the event loop's thread."""

    def __init__(self, reconcile: Reconcile, workers: int) -> None:
        self._reconcile = reconcile
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="reconcile")
        self._ready: dict[Key, float] = {}
        """Keys to reconcile now, oldest first, with the time since when."""
        self._fresh: dict[Key, float] = {}
        """Keys of objects that nobody has looked at yet: they go first."""
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._dirty: set[Key] = set()
        """Keys that were added again while their reconcile ran."""
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._open = False

    @property
    def depth(self) -> int:
        """The number of keys that wait."""
        return len(self._fresh) + len(self._ready) + len(self._dirty)

    @property
    def oldest_age(self) -> float:
        """Seconds that the oldest key has waited."""
        firsts = [next(iter(keys.values())) for keys in (self._fresh, self._ready) if keys]
        return time.monotonic() - min(firsts) if firsts else 0.0

    def open(self) -> None:
        """Start to work: what was added before has waited for this."""
        self._open = True
        self._start()

    def add(self, keys: Iterable[Key], *, fresh: bool = False) -> None:
        """Reconcile these keys as soon as a worker is free; `fresh`: before those that were looked at before."""
        for key in keys:
            if key in self._running:
                self._dirty.add(key)
            elif key not in self._fresh and key not in self._ready:
                (self._fresh if fresh else self._ready)[key] = time.monotonic()
        self._start()

    def add_after(self, key: Key, seconds: float) -> None:
        """Reconcile a key in so many seconds, or earlier if it was to be looked at earlier."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        when = loop.time() + max(0.0, seconds)
        if timer is not None and timer.when() <= when:
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_at(when, self._fire, key)

    def _fire(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add([key])

    def _start(self) -> None:
        while (waiting := self._fresh or self._ready) and len(self._running) < self._workers and self._open:
            key = next(iter(waiting))
            del waiting[key]
            self._running[key] = asyncio.create_task(self._process(key))

    async def _process(self, key: Key) -> None:
        loop = asyncio.get_running_loop()
        try:
            with SECONDS.labels(key.kind.value).time():
                outcome = await loop.run_in_executor(self._pool, self._reconcile, key)
            self._failures.pop(key, None)
            self.add(outcome.wake)
            if outcome.after is not None:
                self.add_after(key, outcome.after)
        except OwnerGone as gone:
            logger.debug("%s: %s", key, gone)
            self._failures.pop(key, None)
        except Exception as error:  # noqa: BLE001 - one broken object must not stop the others
            self._retry(key, error)
        finally:
            del self._running[key]
            if key in self._dirty:
                self._dirty.discard(key)
                self._ready.setdefault(key, time.monotonic())
            self._start()

    def _retry(self, key: Key, error: Exception) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        ERRORS.labels(key.kind.value).inc()
        if isinstance(error, OperatorError):
            logger.warning("%s: %s (failure %d in a row)", key, error, failures)
        else:
            logger.error("%s: a defect of the operator (failure %d in a row)", key, failures, exc_info=error)
        delay = error.retry_after if isinstance(error, OperatorError) else None
        if delay is None or failures > MAX_QUICK_RETRIES:
            delay = min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** min(failures, 16)) * random.uniform(0.5, 1.0)  # noqa: S311
        self.add_after(key, delay)

    async def close(self, seconds: float) -> None:
        """Start nothing more, and wait at most so many seconds for what runs."""
        self._open = False
        for timer in self._timers.values():
            timer.cancel()
        if self._running:
            await asyncio.wait(list(self._running.values()), timeout=seconds)
        self._pool.shutdown(wait=False, cancel_futures=True)
