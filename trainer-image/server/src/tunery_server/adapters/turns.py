"""Questions to stores, so many at once: one that is silent gives its turn on, and after a while is given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, TypeVar

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_server.threads import in_thread

QUIET_SECONDS: Final = 3.0
"""How long a store may be silent before another gets its turn; what it says then is taken still."""
SILENT_SECONDS: Final = 20.0
"""How long it may be silent at all: shorter than a request waits, which is to be told why."""
MOST: Final = 64
"""Threads that are at stores, those that were given up and have not ended yet among them."""
_POLL_SECONDS: Final = 0.1

Result = TypeVar("Result")


class GivenUp(Exception):
    """Nobody waits for these bytes any more."""


class Heard:
    """When a store was last heard of; told by threads."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._over = False
        self.bytes = False
        """Some have come."""

    def begin(self) -> None:
        """The question is put now."""
        self._at = time.monotonic()

    def moved(self) -> None:
        """Bytes have come; raises GivenUp where they are too late, which ends the thread that brings them."""
        if self._over:
            raise GivenUp
        self._at, self.bytes = time.monotonic(), True

    def give_up(self) -> None:
        """Have what comes from now on be too late."""
        self._over = True

    def left(self, seconds: float) -> float:
        """Return how many seconds are left before it has been silent for so many."""
        return self._at + seconds - time.monotonic()


class Turns:
    """A thread for each question; all else of it runs on one event loop."""

    def __init__(self, many: int) -> None:
        self._turns = asyncio.Semaphore(many)
        self._threads: set[asyncio.Task[object]] = set()

    @property
    def under_way(self) -> int:
        """How many threads have not ended."""
        return len(self._threads)

    async def ask(self, question: Callable[[], Result], heard: Heard) -> Result:
        """Return what a store answers; raises what `question` raises, and StorageUnavailable where it is silent."""
        try:
            async with self._turns:
                heard.begin()
                thread = self._started(question)
                await _while_heard(thread, heard, min(QUIET_SECONDS, SILENT_SECONDS))
            await _while_heard(thread, heard, SILENT_SECONDS)
            if thread.done():
                return thread.result()
        finally:
            heard.give_up()
        raise silent(SILENT_SECONDS)

    def _started(self, question: Callable[[], Result]) -> asyncio.Task[Result]:
        if self.under_way >= MOST:
            message = f"{MOST} questions to storages that do not answer are under way: no more is put to any"
            raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, message)
        thread = asyncio.create_task(in_thread(question))
        self._threads.add(thread)
        thread.add_done_callback(self._ended)
        return thread

    def _ended(self, thread: asyncio.Task[object]) -> None:
        self._threads.discard(thread)
        if not thread.cancelled():
            thread.exception()  # whoever has given it up does not ask for it


def silent(seconds: float) -> TuneryError:
    """Return that a store has not answered for so long."""
    return TuneryError(FailureReason.STORAGE_UNAVAILABLE, f"the storage did not answer within {seconds:.0f} s")


async def over(under_way: Callable[[], bool]) -> bool:
    """Wait for something to end, for as long as a store may be silent; return whether it has."""
    waiting = Heard()
    while under_way():
        if waiting.left(SILENT_SECONDS) <= 0:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True


async def _while_heard(thread: asyncio.Task[Result], heard: Heard, seconds: float) -> None:
    """Wait until it has ended, or the store was silent for so long."""
    while not thread.done() and (left := heard.left(seconds)) > 0:
        await asyncio.wait({thread}, timeout=left)
