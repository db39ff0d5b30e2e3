"""Lines whose models are not served now: out of the way of all others, until one of a model's lines is answered."""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from array import array
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from tunery_server.batch.answers import Answer, Trouble
from tunery_server.batch.lines import InputLines, Line, LinesAgain, Place
from tunery_server.batch.requests import Request
from tunery_server.batch.server import Absent
from tunery_server.threads import in_thread

MOST: Final = 1_000_000
"""Lines that are put aside, of 32 bytes each: then no more of the input is read until some are answered."""
MOST_HELD: Final = 8 << 20
"""Bytes of lines that are held as they are, so that the input is not read again to ask whether a model is served."""
TOLD_SECONDS: Final = 2.0
"""What is waited for less is not told."""
_FIELDS: Final = len(Place._fields)
_SHORTEST: Final = 0.05


class Asker(Protocol):
    """The server, as far as lines are asked and given up."""

    async def ask(self, line: Line, request: Request) -> Answer:
        """Return the end of a line; raises Absent where its model is not served now."""

    def seconds_left(self, model: str, waited: float) -> float:
        """Return for how long a model is waited for that was waited for so long."""

    def give_up(self, model: str, trouble: Trouble) -> None:
        """Take note that a model was waited for in vain; raises TuneryError where nothing answers at all."""

    def failed(self, line: Line, request: Request, trouble: Trouble) -> Answer:
        """Return the end of a line that is not asked again."""


@dataclass
class _Away:
    """A model that is not served now."""

    model: str
    said: Trouble
    since: float
    pause: float
    due: float = 0.0
    """When it is asked for again, by one of its lines."""
    probe: int | None = None
    """The index of the line that asks for it at the moment."""
    back: bool = False
    """It is served again: each of its lines is due."""
    given_up: bool = False
    """Each of its lines is due, to end in an error."""
    first: list[tuple[int, Line | Place]] = field(default_factory=list)
    """Those that were asked, a heap by their index."""
    places: array[int] = field(default_factory=lambda: array("Q"))
    """Of all others, in their order; those up to `begin` have been taken."""
    begin: int = 0

    def __len__(self) -> int:
        return len(self.first) + (len(self.places) - self.begin) // _FIELDS

    def is_due(self, now: float) -> bool:
        """Tell whether one of its lines can be taken."""
        return bool(len(self)) and (self.back or self.given_up or (self.probe is None and now >= self.due))

    def next(self) -> Line | Place:
        """Return the line that is taken next."""
        return self.first[0][1] if self.first else Place(*self.places[self.begin : self.begin + _FIELDS])

    def take(self) -> Line | Place:
        """Take a line out of those that wait."""
        if self.first:
            return heapq.heappop(self.first)[1]
        taken = self.next()
        self.begin += _FIELDS
        if self.begin * 2 > len(self.places):
            del self.places[: self.begin]
            self.begin = 0
        return taken


class Aside:
    """Asks lines; of a model that is not served now one at a time, at growing distances, while all others wait here.

    They are kept as places in the input, and due at once when the model answers again.
    """

    def __init__(self, asker: Asker, lines: InputLines, first_pause: float, longest_pause: float) -> None:
        self._asker = asker
        self._again = LinesAgain(lines)
        self._reading = asyncio.Lock()
        self._pauses = first_pause, longest_pause
        self._away: dict[str, _Away] = {}
        self._taken: dict[int, _Away] = {}
        """What lines were taken from that are being asked, by their index."""
        self._count = self._held = 0

    async def ask(self, line: Line, request: Request) -> Answer | None:
        """Return the end of a line, or None: it waits here, and is not held elsewhere. Raises what a server raises."""
        taken = self._taken.pop(line.index, None)
        if taken is None and self._waited_for(request.model) is not None:
            # Many in a row are put aside: others get their turn first, as who waits here may be taken by any worker at
            # once, and two would ask the same line. Meanwhile the model may have come back.
            await asyncio.sleep(0)
            if (away := self._waited_for(request.model)) is not None:
                self._count += 1
                away.places.extend(Place.of(line))
                return None
        if taken is not None and taken.given_up:
            return self._asker.failed(line, request, taken.said)
        try:
            answer = await self._asker.ask(line, request)
        except Absent as absent:
            self._put(line, request.model, absent.trouble)
            return None
        if (away := self._away.get(request.model)) is not None:
            away.back, away.given_up = True, False
            self._forget(away)
        return answer

    async def next(self) -> Line | None:
        """Return a line that is due, to be asked here; None where none is."""
        now = time.monotonic()
        due = [away for away in self._away.values() if away.is_due(now)]
        if not due:
            return None
        away = min(due, key=self._distance)
        found = away.take()
        self._count -= 1
        index = found.index if isinstance(found, Line) else found.line
        self._taken[index] = away
        if not (away.back or away.given_up):
            away.probe = index
        self._forget(away)
        if isinstance(found, Line):
            self._held -= len(found.raw)
            return found
        if not self._reading.locked() and self._again.is_near(found):
            return self._again.read(found)
        async with self._reading:  # far away in what is packed: it may take seconds
            return await in_thread(partial(self._again.read, found))

    @property
    def empty(self) -> bool:
        """Tell whether no line waits."""
        return not self._count

    @property
    def full(self) -> bool:
        """Tell whether as many lines wait as may."""
        return self._count >= MOST

    def words(self) -> tuple[str, str] | None:
        """Return what is waited for, and the same with how many lines and why; None: nothing."""
        now = time.monotonic()
        away = [each for each in self._away.values() if not each.back and now - each.since >= TOLD_SECONDS]
        if not away:
            return None
        lines, first = sum(map(len, away)), max(away, key=len)
        lines += sum(each.probe is not None for each in away)
        more = f" and {len(away) - 1} more" if len(away) > 1 else ""
        what = f"waits for the model {first.model}{more}"
        many = "1 line" if lines == 1 else f"{lines:,} lines"
        whose = f" of {first.model}" if more else ""
        return what, f"{what}, {many} so far{whose and ' of them'}: {first.said.code}: {first.said.message}"

    def close(self) -> None:
        """Read nothing more."""
        self._again.close()

    def _waited_for(self, model: str) -> _Away | None:
        away = self._away.get(model)
        return away if away is not None and not away.back else None

    def _put(self, line: Line, model: str, trouble: Trouble) -> None:
        """Put a line aside that was asked; whoever finds out that the model is not served begins to wait for it."""
        now, away = time.monotonic(), self._away.get(model)
        if away is None or away.back:
            kept, (pause, _) = away, self._pauses
            away = self._away[model] = _Away(model, trouble, now, pause)
            if kept is not None:
                away.first, away.places, away.begin = kept.first, kept.places, kept.begin
            self._wait(away, trouble, now)
        elif away.probe == line.index:
            away.probe, away.pause = None, min(away.pause * 2, self._pauses[1])
            self._wait(away, trouble, now)
        self._count += 1
        held: Line | Place = Place.of(line)
        if self._held + len(line.raw) <= MOST_HELD:
            held, self._held = line, self._held + len(line.raw)
        heapq.heappush(away.first, (line.index, held))

    def _wait(self, away: _Away, trouble: Trouble, now: float) -> None:
        """Set when it is asked for again, or give it up."""
        away.said = trouble
        left = self._asker.seconds_left(away.model, now - away.since)
        if left <= 0:
            self._asker.give_up(away.model, trouble)
            away.given_up = True
            return
        pause = max(trouble.retry_after or 0.0, away.pause)
        away.due = now + min(pause, max(left, _SHORTEST)) * random.uniform(1.0, 1.3)  # noqa: S311 (no secret)

    def _forget(self, away: _Away) -> None:
        if not len(away) and (away.back or away.given_up) and self._away.get(away.model) is away:
            del self._away[away.model]

    def _distance(self, away: _Away) -> tuple[bool, int]:
        """Return how far the input has to be read for its next line."""
        found = away.next()
        return not isinstance(found, Line) and found.offset < self._again.position, found.offset
