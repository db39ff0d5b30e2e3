"""Questions to stores, so many at once to each: a silent one gives its turn on, and is given up after a while.

One store has nothing to do with another: neither turns nor threads nor silence are shared but for a bound over all.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, TypeVar

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage.asker import Asker, GivenUp, asked_by
from tunery_common.storage.streams import Streams
from tunery_server.threads import in_thread

QUIET_SECONDS: Final = 3.0
"""How long a store may be silent before another gets its turn; what it says then is taken still."""
SILENT_SECONDS: Final = 20.0
"""How long it may be silent at all: shorter than a request waits, which is to be told why."""
MOST_OF_ONE: Final = 32
"""Threads that are at one store, those that were given up and have not ended yet among them."""
MOST: Final = 128
"""The same over all stores."""
STREAMS: Final = 8
"""Requests at a time of one download."""
WORTH_BYTES: Final = 64 << 10
"""As good as silent is a store that does not bring so many while it would be taken for silent."""
_POLL_SECONDS: Final = 0.1

Result = TypeVar("Result")


class Heard:
    """When a store was last heard of; told by threads.

    What this machine takes for itself does not count: its disk may be slow, and a store says nothing meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = 0
        """Threads that are at their own work."""
        self._since = 0.0
        self._taken = 0.0
        """Seconds that such work has taken before the last began."""
        self._at = time.monotonic()
        self._last = -math.inf
        self._came = 0
        self.over = threading.Event()
        """Nobody waits for its answer any more."""
        self.begun = False
        """The question was put: what it waits for from then on is the store."""
        self.bytes = False
        """Some have come."""

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Have the time of what is done within not count."""
        with self._lock:
            self._busy += 1
            if self._busy == 1:
                self._since = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
                if not self._busy:
                    self._taken += time.monotonic() - self._since

    @property
    def taken(self) -> float:
        """Seconds that do not count."""
        with self._lock:
            return self._taken + (time.monotonic() - self._since if self._busy else 0.0)

    @property
    def last(self) -> float:
        """When bytes worth the name have come last, later by what does not count since."""
        return self._last + self.taken

    def begin(self) -> None:
        """The question is put now, or the next one of several."""
        self._at, self.begun = time.monotonic() - self.taken, True

    def moved(self, count: int) -> None:
        """So many bytes have come; raises GivenUp where they are too late, which ends the thread that brings them."""
        if self.over.is_set():
            raise GivenUp
        self.bytes = True
        self._came += count
        if self._came >= WORTH_BYTES:
            self._came = 0
            self._at = self._last = time.monotonic() - self.taken

    def give_up(self) -> None:
        """Have what comes from now on be too late, and nothing more be asked."""
        self.over.set()

    def left(self, seconds: float) -> float:
        """Return how many seconds are left before it has been silent for so many."""
        return self._at + seconds + self.taken - time.monotonic()

    def quiet(self) -> bool:
        """Tell whether others go before it now."""
        return self.left(QUIET_SECONDS) <= 0


class Turns:
    """A thread for each question; all else of it runs on one event loop."""

    def __init__(self, many: int) -> None:
        """At most `many` at a time are put to each store, apart from those that it is silent at."""
        self._lines: defaultdict[str, _Line] = defaultdict(lambda: _Line(many))

    @property
    def under_way(self) -> int:
        """How many threads have not ended."""
        return sum(len(line.threads) for line in self._lines.values())

    async def ask(self, question: Callable[[], Result], heard: Heard, store: str = "") -> Result:
        """Return what a store answers; raises what `question` raises, and StorageUnavailable where it is silent."""
        line, asked = self._lines[store], time.monotonic()
        line.heards.add(heard)
        try:
            async with line.turn(asked):
                heard.begin()
                self._check_most(store)
                thread = line.start(question, heard)
                await _while_heard(thread, lambda: heard.left(min(QUIET_SECONDS, SILENT_SECONDS)))
            await _while_heard(thread, lambda: min(heard.left(SILENT_SECONDS), line.left(asked + heard.taken)))
            if thread.done():
                return _answer(thread, heard)
        except GivenUp as error:
            message = f"the storage was silent for {QUIET_SECONDS:.0f} s, and another needed the room on the disk"
            raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, message) from error
        finally:
            heard.give_up()
            line.heards.discard(heard)
        raise silent(SILENT_SECONDS)

    def _check_most(self, store: str) -> None:
        """Raise StorageUnavailable where too many threads are at stores that do not answer."""
        if (count := len(self._lines[store].threads)) >= MOST_OF_ONE:
            who = store or "this storage"
            message = f"{count} questions to {who} that it does not answer are under way: no more is put to it"
        elif (count := self.under_way) >= MOST:
            message = f"{count} questions to storages that do not answer are under way: no more is put to any"
        else:
            return
        raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, message)


class _Line:
    """What is asked of one store."""

    def __init__(self, many: int) -> None:
        self._turns = asyncio.Semaphore(many)
        self._answered = -math.inf
        self.threads: set[asyncio.Task[object]] = set()
        self.heards: set[Heard] = set()

    def left(self, asked: float) -> float:
        """Return how many seconds are left to a question before the store has said nothing to anybody since then."""
        last = max((heard.last for heard in self.heards), default=-math.inf)
        return max(asked, self._answered, last) + SILENT_SECONDS - time.monotonic()

    @asynccontextmanager
    async def turn(self, asked: float) -> AsyncIterator[None]:
        """Wait for a turn and have it meanwhile; raises StorageUnavailable where the store is silent until then."""
        turn = asyncio.ensure_future(self._turns.acquire())
        try:
            while not turn.done():
                if (left := self.left(asked)) <= 0:
                    raise silent(SILENT_SECONDS)
                await asyncio.wait({turn}, timeout=left)
            yield
        finally:
            if turn.done():
                self._turns.release()
            else:
                turn.cancel()

    def start(self, question: Callable[[], Result], heard: Heard) -> asyncio.Task[Result]:
        """Put a question in a thread of its own."""

        def put() -> Result:
            with asked_by(Asker(heard.over, Streams(STREAMS), heard.busy)):
                return question()

        thread = asyncio.create_task(in_thread(put))
        self.threads.add(thread)
        thread.add_done_callback(self._ended)
        return thread

    def _ended(self, thread: asyncio.Task[object]) -> None:
        self.threads.discard(thread)
        if thread.cancelled():
            return
        error = thread.exception()  # whoever has given it up does not ask for it
        refused = isinstance(error, TuneryError) and error.reason is not FailureReason.STORAGE_UNAVAILABLE
        if error is None or refused:
            self._answered = time.monotonic()


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


def _answer(thread: asyncio.Task[Result], heard: Heard) -> Result:
    """Return what was answered; raises GivenUp for whatever a thread has met whose files were taken away."""
    if heard.over.is_set() and (error := thread.exception()) is not None:
        raise GivenUp from error
    return thread.result()


async def _while_heard(thread: asyncio.Task[Result], left: Callable[[], float]) -> None:
    """Wait until it has ended, or no time is left to it."""
    while not thread.done() and (seconds := left()) > 0:
        await asyncio.wait({thread}, timeout=max(seconds, _POLL_SECONDS))  # time may stand still
