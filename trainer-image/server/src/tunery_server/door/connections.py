"""How many connections the door holds, and for how long one may hold what it has not asked for yet.

aiohttp has no deadline for a request's head and no limit of connections: who sends half a head, with or without a key,
could hold every file that the process may open. So each connection has its place in a room with limits. Where the room
is full, who waits without a request makes way; who waits for an answer stays.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

BACKLOG: Final = 1024
"""Connections that the system holds until they are taken; asyncio takes as many at a time, before any is counted."""
MOST: Final = 6000
_OTHER_FILES: Final = 512
"""Of the loader, of Python, and of whoever asks for metrics."""
_TAKEN_AT_A_TIME: Final = 4
"""Backlogs of connections that are open uncounted, or closed and not given back yet, at the worst moment."""
_FEW: Final = 8
"""Connections that an address has at least, as long as there is any: of the kubelet, of a client that asks now."""
_LOG_SECONDS: Final = 60.0

SLOW: Final = "slow"
CROWDED: Final = "crowded"
REFUSED: Final = "refused"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How many connections there may be, and how many seconds they may take."""

    connections: int = MOST
    per_address: int = MOST // 2
    """So that no client takes all; clients behind one proxy share an address, and the half is plenty for them."""
    kept: int = 256
    """Beyond `connections`, for addresses that have few."""
    backlog: int = BACKLOG
    head: float = 15.0
    """From the connection, or the first byte of a further request, to the end of its head."""
    idle: float = 620.0
    """Between two requests: longer than the 600 seconds after which the most patient of common proxies closes."""
    half_closed: float = 1.0
    """For an answer to who says at once that no more comes, as `nc -N` does: who leaves says the same."""

    @classmethod
    def within(cls, files: int) -> Limits:
        """Return those of a process that may open so many files: a connection and its way to the engine take two."""
        backlog = min(BACKLOG, files // 16)
        other = _TAKEN_AT_A_TIME * backlog + min(_OTHER_FILES, files // 4)
        connections = max(1, min(MOST, (files - other) // 2))
        kept = min(cls.kept, connections // 8)
        return cls(connections=connections - kept, per_address=max(1, connections // 2), kept=kept, backlog=backlog)


def raise_files() -> None:
    """Let this process open as many files as it needs, where the system allows it: often it gives 1,024 at first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MOST + _TAKEN_AT_A_TIME * BACKLOG + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limits_here() -> Limits:
    """Return the limits of this process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Limits() if soft == resource.RLIM_INFINITY else Limits.within(soft)


class Member(Protocol):
    """What has a place in the room."""

    @property
    def address(self) -> str:
        """Whose it is."""

    def make_way(self) -> None:
        """End at once."""


@dataclass
class _Crowd:
    """The connections of one address."""

    members: set[Member] = field(default_factory=set)
    waiting: dict[Member, None] = field(default_factory=dict)
    """Those without a request, the oldest first."""


class Room:
    """The connections that are open."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or limits_here()
        self.open = 0
        self.closed: Counter[str] = Counter({SLOW: 0, CROWDED: 0, REFUSED: 0})
        """Connections that the door closed, by cause."""
        self._crowds: dict[str, _Crowd] = {}
        self._told: float | None = None

    def enter(self, one: Member) -> bool:
        """Give a new connection its place; False: there is none, even where others make way."""
        crowd = self._crowds.get(one.address) or _Crowd()
        if not self._has_place(crowd):
            self._note(REFUSED, one.address)
            return False
        # Once more: whoever has made way may have been the last of this address.
        crowd = self._crowds.setdefault(one.address, crowd)
        crowd.members.add(one)
        crowd.waiting[one] = None
        self.open += 1
        return True

    def works(self, one: Member) -> None:
        """Take note that a connection has a request."""
        if (crowd := self._crowds.get(one.address)) is not None:
            crowd.waiting.pop(one, None)

    def waits(self, one: Member) -> None:
        """Take note that it waits for the next one."""
        crowd = self._crowds.get(one.address)
        if crowd is not None and one in crowd.members:
            crowd.waiting[one] = None

    def leave(self, one: Member) -> None:
        """Forget a connection that has ended."""
        crowd = self._crowds.get(one.address)
        if crowd is None or one not in crowd.members:
            return
        crowd.members.remove(one)
        crowd.waiting.pop(one, None)
        self.open -= 1
        if not crowd.members:
            del self._crowds[one.address]

    def _has_place(self, crowd: _Crowd) -> bool:
        if len(crowd.members) >= self.limits.per_address:
            return self._displaced(crowd)
        if self.open < self.limits.connections:
            return True
        if self._displaced(max(self._crowds.values(), key=lambda each: len(each.waiting))):
            return True
        return len(crowd.members) < _FEW and self.open < self.limits.connections + self.limits.kept

    def _displaced(self, crowd: _Crowd) -> bool:
        """Close the oldest connection of an address that has no request; False: all have one."""
        oldest = next(iter(crowd.waiting), None)
        if oldest is None:
            return False
        self._note(CROWDED, oldest.address)
        self.leave(oldest)
        oldest.make_way()
        return True

    def _note(self, cause: str, address: str) -> None:
        """Count what was closed; the log says so once in a while."""
        self.closed[cause] += 1
        now = time.monotonic()
        if self._told is not None and now - self._told < _LOG_SECONDS:
            return
        self._told = now
        crowd = self._crowds.get(address)
        logger.warning(
            "too many connections: %d are open, %d of them from %s; until now %d were closed that had no request, and "
            "%d were not let in",
            *(self.open, len(crowd.members) if crowd else 0, address, self.closed[CROWDED], self.closed[REFUSED]),
        )


class Connection(RequestHandler):
    """One client's connection, with its place in the room and a time for each head."""

    __slots__ = ("_asked", "_deadline", "_half_closed", "_room", "_wire", "address")

    def __init__(self, server: web.Server, room: Room, loop: asyncio.AbstractEventLoop, **kwargs: Any) -> None:
        super().__init__(server, loop=loop, **kwargs)
        self.address = ""
        self._room = room
        self._wire: asyncio.Transport | None = None
        """aiohttp forgets it while what it has written last is still on its way to the client."""
        self._asked = self._loop.time()
        """When the last byte of a head came."""
        self._deadline: asyncio.TimerHandle | None = None
        self._half_closed: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place; without one the connection ends."""
        self.address = str((transport.get_extra_info("peername") or ("",))[0])
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a stream always is, for the type checker
        self._wire = transport
        if not self._room.enter(self):
            transport.abort()
            return
        super().connection_made(transport)
        self._time_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give the place back."""
        for timer in (self._deadline, self._half_closed):
            if timer is not None:
                timer.cancel()
        self._room.leave(self)
        self._wire = None
        super().connection_lost(exc)

    def make_way(self) -> None:
        """End without any further word."""
        if self._wire is not None:
            self._wire.abort()

    def data_received(self, data: bytes) -> None:
        """Hand bytes on; the first of a further request start the time for its head."""
        if self._is_idle():
            self._asked = self._loop.time()
            if self._deadline is None:
                self._time_head()
        super().data_received(data)

    def eof_received(self) -> bool | None:  # type: ignore[override] # asyncio's own; aiohttp's says less
        """Answer what was asked just now, though no more is to come; else nobody is there any more."""
        left = self._asked + self._room.limits.half_closed - self._loop.time()
        request = self._current_request
        incomplete = request is not None and not request.content.is_eof()
        if self._is_idle() or incomplete or left <= 0:
            return None
        if self._half_closed is None:
            self._half_closed = self._loop.call_later(left, self.make_way)
        return True

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        """Answer a request; meanwhile nothing ends the connection but its client."""
        self._room.works(self)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        try:
            return await super()._handle_request(request, start_time, request_handler)
        finally:
            self._room.waits(self)
            if self._half_closed is not None and not self._messages:
                self._close = True

    def _is_idle(self) -> bool:
        """Tell whether no request is here."""
        return self._waiter is not None and not self._waiter.done()

    def _time_head(self) -> None:
        self._deadline = self._loop.call_later(self._room.limits.head, self._too_late)

    def _too_late(self) -> None:
        if self._is_idle():
            self._room.closed[SLOW] += 1
            self.make_way()
