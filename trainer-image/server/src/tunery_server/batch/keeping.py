"""The ends of lines, gathered into parts and stored while others are being asked."""

from __future__ import annotations

import asyncio
import logging
import time
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_server.batch.answers import Answer, Tally
from tunery_server.batch.lines import Line
from tunery_server.batch.parts import Mark, Parts
from tunery_server.threads import in_thread

_LOOK_SECONDS: Final = 0.2
_STORE_SECONDS: Final = 600.0
"""How long storing a part is tried while the storage does not answer."""
_PAUSE_SECONDS: Final = 5.0

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
        """Read which lines are asked again: those with errors of an earlier round."""
        again, tally = array("Q"), Tally()
        for mark in marks:
            tally.merge(mark.tally())
            if mark.errors and mark.round < parts.round:
                tally.errors -= mark.errors
                again.extend(mark.first + place for place, record in enumerate(parts.read(mark)) if not record.ok)
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


class Keeper:
    """Takes ends, most of them in the order of their lines, and stores them: those of consecutive lines in one part."""

    def __init__(self, parts: Parts, kept: Kept, size: PartSize) -> None:
        self._parts = parts
        self._size = size
        self._mends = [mark for mark in kept.marks if mark.errors and mark.round < parts.round]
        self._firsts = [mark.first for mark in self._mends]
        self._mended: dict[int, list[Answer]] = {}
        """Ends of the lines of a part to be mended, by its first line."""
        self._waiting: list[list[Answer]] = []
        """Complete in themselves: parts to be stored, or the lines of a part to be mended."""
        self._open: list[Answer] = []
        self._open_bytes = 0
        self._opened = 0.0
        self._ending = False
        self.tally = kept.tally
        self.marks = {mark.first: mark for mark in kept.marks}
        self.asked = 0
        """Lines that came to their end in this attempt."""

    def take(self, answer: Answer) -> None:
        """Take the end of a line."""
        self.tally.add(answer)
        self.asked += 1
        mend = self._mend_of(answer.index)
        if mend is not None:
            self._close()
            mended = self._mended.setdefault(mend.first, [])
            mended.append(answer)
            if len(mended) == mend.errors:
                self._waiting.append(sorted(self._mended.pop(mend.first), key=lambda each: each.index))
            return
        if self._open and self._open[-1].index + 1 != answer.index:
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
        return bool(self._waiting)

    def end(self) -> None:
        """Have everything stored that is left, a part that is half mended excepted."""
        self._ending = True

    async def keep(self, stored: Callable[[int], None]) -> None:
        """Store parts as they come until `end`; `stored` is told how many bytes need not be held any more.

        Raises TuneryError where the storage refuses.
        """
        while True:
            ending = self._ending
            if self._open and (ending or time.monotonic() - self._opened >= self._size.seconds):
                self._close()
            while self._waiting:
                await self._store(self._waiting[0])
                size = sum(len(answer.data) for answer in self._waiting.pop(0))
                stored(size)
            if ending:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def _close(self) -> None:
        if self._open:
            self._waiting.append(self._open)
        self._open, self._open_bytes = [], 0

    def _mend_of(self, index: int) -> Mark | None:
        place = bisect_right(self._firsts, index) - 1
        return self._mends[place] if place >= 0 and index < self._mends[place].end else None

    async def _store(self, answers: Sequence[Answer]) -> None:
        mend, began = self._mend_of(answers[0].index), time.monotonic()
        store = partial(self._parts.save, answers) if mend is None else partial(self._parts.mend, mend, answers)
        while True:
            try:
                mark = await in_thread(store)
            except TuneryError as error:
                patient = time.monotonic() - began < _STORE_SECONDS and not self._ending
                if error.reason is not FailureReason.STORAGE_UNAVAILABLE or not patient:
                    raise
                _log.warning("a part of the answers cannot be stored yet: %s", error.message)
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                self.marks[mark.first] = mark
                return
