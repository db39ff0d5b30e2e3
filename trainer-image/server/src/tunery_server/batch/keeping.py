"""The ends of lines, gathered into parts and stored while others are being asked."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from array import array
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, takewhile
from typing import Final

from tunery_api.names import BATCH_GRACE_SECONDS
from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_server.batch.answers import Answer, Tally
from tunery_server.batch.lines import Line
from tunery_server.batch.parts import DamagedPart, Mark, Parts
from tunery_server.threads import in_thread_until

_LOOK_SECONDS: Final = 0.2
_STORE_SECONDS: Final = 600.0
"""How long storing a part is tried while the storage does not answer, also once all is asked: answers are paid for."""
STOPPED_SECONDS: Final = BATCH_GRACE_SECONDS - 20.0
"""How long after a SIGTERM it is tried: the last try is to end before the pod's time is up, be it without an answer."""
_PAUSE_SECONDS: Final = 5.0
_MOST_TASKS: Final = 64
"""Parts that are to be stored."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartSize:
    """When a part is stored: whichever comes first."""

    lines: int = 1000
    seconds: float = 30.0
    bytes: int = 32 << 20


@dataclass(frozen=True)
class Kept:
    """What earlier attempts have left."""

    marks: Sequence[Mark]
    """The complete parts, by their first line."""
    again: array[int]
    """Indices of the lines in them that are asked again, rising."""
    tally: Tally
    """The sums over all lines that are not asked again."""

    @classmethod
    def of(cls, parts: Parts, marks: Sequence[Mark]) -> Kept:
        """Read which lines are asked again: those without an end, and those with errors of an earlier round."""
        again, tally = array("Q"), Tally()
        for mark in marks:
            tally.merge(mark.tally())
            if parts.asked_again(mark):
                tally.errors -= mark.errors if mark.round < parts.round else 0
                again.extend(parts.places_asked_again(mark))
        return cls(marks, again, tally)

    def left(self, lines: Iterable[Line]) -> Iterator[Line]:
        """Yield the lines that are to be asked; every line is looked at, so that the input's digest is taken."""
        part = place = 0
        for line in lines:
            while part < len(self.marks) and self.marks[part].end <= line.index:
                part += 1
            if part == len(self.marks) or line.index < self.marks[part].first:
                yield line
            elif place < len(self.again) and self.again[place] == line.index:
                place += 1
                yield line


@dataclass
class _Mend:
    """A part of which lines are to get their ends, and those that came and are not stored."""

    first: int
    end: int
    left: int
    got: list[Answer] = field(default_factory=list)
    since: float = 0.0
    """When the first of them came."""


@dataclass(frozen=True)
class _Task:
    """Answers to be stored."""

    answers: list[Answer]
    mends: int | None = None
    """The first line of the part that they belong to; None: they are a part."""


class Keeper:
    """Takes ends, most of them in the order of their lines, and stores them: those of consecutive lines in one part.

    A line that others pass has its place in the part, which is stored anew with the ends that came later.
    """

    def __init__(
        self,
        parts: Parts,
        kept: Kept,
        size: PartSize,
        lost: Callable[[], None] = lambda: None,
        told_at: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """`lost` is called where a part is not what was stored: `damaged` says which from then on.

        `told_at` says when the process was told to stop, by time.monotonic.
        """
        self._parts = parts
        self._lost = lost
        self._told_at = told_at
        self._size = size
        self._mends = [_Mend(mark.first, mark.end, left) for mark in kept.marks if (left := parts.asked_again(mark))]
        """By their first line."""
        self._unstored: dict[int, _Mend] = {}
        """Those with ends that are not stored, by their first line; in the order of `since`."""
        self._tasks: deque[_Task] = deque()
        """In the order in which they came: a part is stored before it is mended."""
        self._open: list[Answer] = []
        self._open_bytes = self._mended_bytes = 0
        self._opened = 0.0
        self._ending = False
        self.tally = kept.tally
        self.marks = {mark.first: mark for mark in kept.marks}
        self.asked = 0
        """Lines that came to their end in this attempt."""
        self.damaged: DamagedPart | None = None

    def take(self, answer: Answer) -> None:
        """Take the end of a line, or its place."""
        self.tally.add(answer)
        self.asked += not answer.waits
        mend = self._mend_of(answer.index)
        if mend is not None:
            if not answer.waits:
                self._mend(mend, answer)
            return
        place = answer.index - self._open[0].index if self._open else 0
        if 0 <= place < len(self._open):
            self._open[place] = answer
        else:
            if place != len(self._open):
                self._close()
            if not self._open:
                self._opened = time.monotonic()
            self._open.append(answer)
        self._open_bytes += len(answer.data)
        if len(self._open) >= self._size.lines or self._open_bytes >= self._size.bytes:
            self._close()

    @property
    def storing(self) -> bool:
        """Tell whether something is complete and not stored yet."""
        return bool(self._tasks)

    @property
    def behind(self) -> bool:
        """Tell whether so much is to be stored that nothing more should come."""
        return len(self._tasks) >= _MOST_TASKS

    def end(self) -> None:
        """Have everything stored that is left."""
        self._ending = True

    async def keep(self, stored: Callable[[int], None]) -> None:
        """Store parts as they come until `end`; `stored` is told how many bytes need not be held any more.

        Raises TuneryError where the storage refuses.
        """
        while True:
            ending = self._ending
            if self._open and (ending or time.monotonic() - self._opened >= self._size.seconds):
                self._close()
            if ending:
                self._store_mended()
            self._store_due()
            while self._tasks:
                await self._store(self._tasks[0])
                stored(sum(len(answer.data) for answer in self._tasks.popleft().answers))
            if ending:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def _close(self) -> None:
        if self._open:
            self._tasks.append(_Task(self._open))
            if left := sum(answer.waits for answer in self._open):
                insort(self._mends, _Mend(self._open[0].index, self._open[-1].index + 1, left), key=_first)
        self._open, self._open_bytes = [], 0

    def _mend_of(self, index: int) -> _Mend | None:
        place = bisect_right(self._mends, index, key=_first) - 1
        return self._mends[place] if place >= 0 and index < self._mends[place].end else None

    def _mend(self, mend: _Mend, answer: Answer) -> None:
        if not mend.got:
            mend.since, self._unstored[mend.first] = time.monotonic(), mend
        mend.got.append(answer)
        mend.left -= 1
        self._mended_bytes += len(answer.data)
        if not mend.left:
            self._store_mend(mend)
            del self._mends[bisect_left(self._mends, mend.first, key=_first)]
        elif self._mended_bytes >= self._size.bytes:
            self._store_mended()

    def _store_mended(self) -> None:
        """Have all parts stored of which some lines have got their ends."""
        for mend in list(self._unstored.values()):
            self._store_mend(mend)

    def _store_due(self) -> None:
        """Have stored what the clock says, the oldest first; so few at a time that nobody waits until they are."""
        due = takewhile(lambda mend: time.monotonic() - mend.since >= self._size.seconds, self._unstored.values())
        for mend in list(islice(due, max(0, _MOST_TASKS // 2 - len(self._tasks)))):
            self._store_mend(mend)

    def _store_mend(self, mend: _Mend) -> None:
        self._tasks.append(_Task(mend.got, mend.first))
        self._mended_bytes -= sum(len(answer.data) for answer in mend.got)
        mend.got = []
        del self._unstored[mend.first]

    async def _store(self, task: _Task) -> None:
        began = time.monotonic()
        store = partial(self._parts.save, task.answers)
        if task.mends is not None:
            if task.mends not in self.marks:  # damaged: all of its lines are asked again
                return
            store = partial(self._parts.mend, self.marks[task.mends], task.answers)

        def until() -> float:
            return min(began + _STORE_SECONDS, self._told_at() + STOPPED_SECONDS)

        while True:
            try:
                mark = await in_thread_until(store, until)
            except TimeoutError as error:
                waited = f"the storage did not answer within {time.monotonic() - began:.0f} s"
                message = f"a part of the answers cannot be stored: {waited}"
                raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, message) from error
            except DamagedPart as damaged:
                self._drop(damaged)
                return
            except TuneryError as error:
                if error.reason is not FailureReason.STORAGE_UNAVAILABLE or time.monotonic() >= until():
                    raise
                _log.warning("a part of the answers cannot be stored yet: %s", error.message)
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                self.marks[mark.first] = mark
                return

    def _drop(self, damaged: DamagedPart) -> None:
        """Count a part no more that was to be mended; trying again would find it as it is."""
        self.damaged = damaged
        del self.marks[damaged.mark.first]
        self._lost()


def _first(mend: _Mend) -> int:
    return mend.first
