"""Threads for the parts of downloads. The process waits for none of them when it ends, and none is idle."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


class Streams:
    """So many at a time over all who share it; a ThreadPoolExecutor's threads would hold the process at its end."""

    def __init__(self, many: int) -> None:
        self._many = many
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()
        self._threads = 0

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Have `work` be done in a thread, as soon as one is free and in the context of whoever calls."""
        future: Future[Result] = Future()
        context = contextvars.copy_context()
        with self._lock:
            self._waiting.append(lambda: context.run(_settle, future, work))
            if self._threads < self._many:
                threading.Thread(target=self._run, daemon=True, name="download").start()
                self._threads += 1
        return future

    def _run(self) -> None:
        while (do := self._next()) is not None:
            do()

    def _next(self) -> Callable[[], None] | None:
        """Return what is to be done next; None where nothing is, and this thread ends."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._threads -= 1
            return None


def _settle(future: Future[Result], work: Callable[[], Result]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 (whoever waits must learn of it)
        future.set_exception(error)
