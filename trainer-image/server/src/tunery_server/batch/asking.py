"""Lines go out to the server, so many at a time; their ends come back in order, but for those that have to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Protocol

from tunery_server.batch.answers import Answer
from tunery_server.batch.lines import Line
from tunery_server.batch.server import Stopped

WINDOW: Final = 2000
"""Lines that may have been begun and whose end is not handed on: so many of them are lost with a pod at most."""
MOST_BYTES: Final = 64 << 20
"""Of lines and of answers that are held."""
_SPACE: Final = 3
"""A line is held as it is, taken apart, and as what is sent."""
_LOOK_SECONDS: Final = 0.5
Ask = Callable[[Line], Awaitable[Answer]]
Late = Callable[[Line], bool]
"""Tells of a line that is being asked whether it waits for what is not served, and has for long."""


class Ends(Protocol):
    """Takes what the lines came to."""

    def take(self, answer: Answer) -> None:
        """Take the end of a line."""

    @property
    def storing(self) -> bool:
        """Tell whether room will come without another end: some of what was taken is about to be stored."""


class Conveyor:
    """Asks `lines`, `concurrency` at a time; hands each end on in the order of the lines.

    A line that is late is passed over, so that it holds back none of those behind it; its own end comes when it comes.
    """

    def __init__(
        self, ask: Ask, lines: Iterator[Line], ends: Ends, stop: asyncio.Event, late: Late = lambda _: False
    ) -> None:
        self._ask = ask
        self._late = late
        self._lines = lines
        self._ends = ends
        self._stop = stop
        self._begun = self._ended = 0
        self._turn = 0
        """The place whose end is handed on next."""
        self._asked: dict[int, Line] = {}
        """Lines without an end, by their place."""
        self._waiting: dict[int, Answer] = {}
        """Ends whose turn has not come, by the place of their line."""
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
            for place in sorted(self._waiting):
                self._take(self._waiting.pop(place))

    def stored(self, size: int) -> None:
        """Take note that ends of so many bytes are not held any more."""
        self._bytes -= size
        self._room.set()

    async def _work(self) -> None:
        while (begun := await self._next()) is not None:
            place, line = begun
            try:
                answer = await self._ask(line)
            except Stopped:
                return
            self._bytes += len(answer.data) - _SPACE * len(line.raw)
            del self._asked[place]
            if place < self._turn:  # it was passed over
                self._take(answer)
            else:
                self._waiting[place] = answer
            self._hand_on()

    def _hand_on(self) -> None:
        """Hand on each end whose turn has come."""
        while self._waiting:
            if (ended := self._waiting.pop(self._turn, None)) is not None:
                self._take(ended)
            elif not self._late(self._asked[self._turn]):
                break
            self._turn += 1
        self._room.set()

    def _take(self, answer: Answer) -> None:
        self._ended += 1
        self._ends.take(answer)

    async def _look(self) -> None:
        """Pass over what has become late, also while nothing else ends."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._hand_on()

    async def _next(self) -> tuple[int, Line] | None:
        while not self._stop.is_set():
            if self._begun - self._ended < WINDOW and (self._bytes < MOST_BYTES or self._stuck):
                line = next(self._lines, None)
                if line is None:
                    self._all_begun = True
                    return None
                place, self._begun = self._begun, self._begun + 1
                self._bytes += _SPACE * len(line.raw)
                self._asked[place] = line
                return place, line
            self._room.clear()
            await self._room.wait()
        return None

    @property
    def _stuck(self) -> bool:
        """Tell whether no room will come by waiting: one line is larger than all of it, or a part is mended."""
        return self._begun == self._ended and not self._ends.storing

    async def _end_late(self, workers: list[asyncio.Task[None]], grace_seconds: float) -> None:
        await self._stop.wait()
        self._room.set()  # whoever waits for room ends
        await asyncio.sleep(grace_seconds)
        for worker in workers:
            worker.cancel()
