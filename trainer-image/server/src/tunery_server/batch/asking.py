"""Lines go out to the server, so many at a time; their ends come back in order, but for those that have to wait."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from tunery_server.batch.answers import Answer, waiting
from tunery_server.batch.lines import Line
from tunery_server.batch.server import Stopped

WINDOW: Final = 2000
"""Lines that may have been begun and whose end is not handed on: so many of them are lost with a pod at most."""
MOST_BYTES: Final = 64 << 20
"""Of lines and of answers that are held."""
_SPACE: Final = 3
"""A line is held as it is, taken apart, and as what is sent."""
_LOOK_SECONDS: Final = 0.2
Ask = Callable[[Line], Awaitable[Answer | None]]
"""Returns the end of a line; None: it was put aside."""
Late = Callable[[Line], bool]
"""Tells of a line that is being asked whether it is asked again and again, and has been for long."""


class Ends(Protocol):
    """Takes what the lines came to."""

    def take(self, answer: Answer) -> None:
        """Take the end of a line, or its place: its end comes later."""

    @property
    def storing(self) -> bool:
        """Tell whether room will come without another end: some of what was taken is about to be stored."""

    @property
    def behind(self) -> bool:
        """Tell whether so much is about to be stored that nothing more should come."""


class Waits(Protocol):
    """Lines that were put aside."""

    async def next(self) -> Line | None:
        """Return one that is to be asked now."""

    @property
    def empty(self) -> bool:
        """Tell whether there are none."""

    @property
    def full(self) -> bool:
        """Tell whether there are as many as may be."""


@dataclass(frozen=True)
class Source:
    """What is asked: each line in turn, and those again that were put aside."""

    lines: Iterator[Line]
    aside: Waits | None = None


class Conveyor:
    """Asks lines, `concurrency` at a time; hands each end on in the order of the lines.

    A line that is put aside, or is late, is passed over, so that it holds back none of those behind it: its place is
    handed on, and its own end comes when it comes.
    """

    def __init__(self, ask: Ask, source: Source, ends: Ends, stop: asyncio.Event, late: Late = lambda _: False) -> None:
        self._ask = ask
        self._late = late
        self._lines = source.lines
        self._aside = source.aside
        self._ends = ends
        self._stop = stop
        self._begun = self._ended = 0
        self._turns: deque[int] = deque()
        """Lines whose end, or place, is not handed on, by their index."""
        self._asked: dict[int, Line] = {}
        self._waiting: dict[int, Answer] = {}
        """Ends, and places, whose turn has not come."""
        self._bytes = 0
        self._room = asyncio.Event()
        self._all_begun = False

    @property
    def whole(self) -> bool:
        """Tell whether every line has its end."""
        return self._all_begun and self._begun == self._ended

    async def run(self, concurrency: int, grace_seconds: float) -> None:
        """Return once every line has its end, or after a stop: what is in flight is then waited for so long.

        Raises what `ask` raises, but Stopped. Whatever ends it, each end that came is handed on.
        """
        try:
            async with asyncio.TaskGroup() as group:
                workers = [group.create_task(self._work()) for _ in range(concurrency)]
                guards = [group.create_task(self._end_late(workers, grace_seconds)), group.create_task(self._look())]
                await asyncio.wait(workers)
                for guard in guards:
                    guard.cancel()
        finally:
            for index in sorted(self._waiting):
                self._take(self._waiting.pop(index))

    def stored(self, size: int) -> None:
        """Take note that ends of so many bytes are not held any more."""
        self._bytes -= size
        self._room.set()

    async def _work(self) -> None:
        while (line := await self._next()) is not None:
            try:
                answer = await self._ask(line)
            except Stopped:
                return
            del self._asked[line.index]
            self._bytes += (len(answer.data) if answer is not None else 0) - _SPACE * len(line.raw)
            if self._turns and line.index >= self._turns[0]:
                self._waiting[line.index] = answer or waiting(line)
            elif answer is not None:  # it was passed over
                self._take(answer)
            self._hand_on()

    def _hand_on(self) -> None:
        """Hand on each end whose turn has come."""
        while self._turns and self._waiting:
            index = self._turns[0]
            if (ended := self._waiting.pop(index, None)) is None:
                line = self._asked.get(index)
                if line is None or not self._late(line):
                    break
                ended = waiting(line)
            self._turns.popleft()
            self._take(ended)
        self._room.set()

    def _take(self, answer: Answer) -> None:
        self._ended += not answer.waits
        self._ends.take(answer)

    async def _look(self) -> None:
        """Pass over what has become late, and have asked what is due, also while nothing else ends."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._hand_on()

    async def _next(self) -> Line | None:
        while not self._stop.is_set():
            if (self._bytes < MOST_BYTES and not self._ends.behind) or self._stuck:
                line = await self._aside.next() if self._aside is not None else None
                if line is None and not self._all_begun:
                    line = self._next_new()
                if line is not None:
                    self._bytes += _SPACE * len(line.raw)
                    self._asked[line.index] = line
                    return line
                if self._all_begun and (self._aside is None or self._aside.empty):
                    return None
            self._room.clear()
            await self._room.wait()
        return None

    def _next_new(self) -> Line | None:
        if len(self._turns) >= WINDOW or (self._aside is not None and self._aside.full):
            return None
        line = next(self._lines, None)
        if line is None:
            self._all_begun = True
        else:
            self._begun += 1
            self._turns.append(line.index)
        return line

    @property
    def _stuck(self) -> bool:
        """Tell whether no room will come by waiting: one line is larger than all of it, or a part is mended."""
        return not self._asked and not self._ends.storing

    async def _end_late(self, workers: list[asyncio.Task[None]], grace_seconds: float) -> None:
        await self._stop.wait()
        self._room.set()  # whoever waits for room ends
        await asyncio.sleep(grace_seconds)
        for worker in workers:
            worker.cancel()
