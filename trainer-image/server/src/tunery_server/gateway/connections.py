"""How many connections the gateway holds, and for how long one may hold what it has not asked for yet.

aiohttp has no deadline for a request's head and no limit of connections: who sends half a head, with or without a key,
could hold every file that the process may open. So each connection has its place in a room with limits. Where the room
is full, who waits without a request makes way, and first who has shown no key; who was let in and waits for an answer
stays. An answer that its client does not take ends.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import resource
import struct
import termios
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from tunery_server.gateway.further import Further

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
UNREAD: Final = "unread"

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
    """From the connection, or the first byte of a further request, or the answer before, to the end of its head."""
    idle: float = 620.0
    """Between two requests: longer than the 600 seconds after which the most patient of common proxies closes."""
    stranger: float = 5.0
    """To show a key; longer than a probe takes. Who has shown none by then makes way first in a full room."""
    unread: float = 30.0
    """In so many of them the client must take something of what waits for it: it may read as slowly as it likes."""
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
    strangers: dict[Member, float] = field(default_factory=dict)
    """Those that have shown no key, with a request or without, and since when they are here; the oldest first."""
    waiting: dict[Member, None] = field(default_factory=dict)
    """Of the others those that have no request that a key was shown for, the oldest first."""

    @property
    def loose(self) -> int:
        """How many may have to make way."""
        return len(self.strangers) + len(self.waiting)

    def first(self, strange_since: float) -> Member | None:
        """Return who makes way first: a stranger who came so early, else the oldest without a request."""
        stranger = next(iter(self.strangers), None)
        if stranger is not None and (self.strangers[stranger] <= strange_since or not self.waiting):
            return stranger
        return next(iter(self.waiting), None)


class Room:
    """The connections that are open."""

    def __init__(self, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits or limits_here()
        self._clock = clock
        self.open = 0
        self.closed: Counter[str] = Counter({SLOW: 0, CROWDED: 0, REFUSED: 0, UNREAD: 0})
        """Connections that the gateway closed, by cause."""
        self._crowds: dict[str, _Crowd] = {}
        self._strangers: dict[Member, float] = {}
        """Those of all addresses."""
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
        crowd.strangers[one] = self._strangers[one] = self._clock()
        self.open += 1
        return True

    def let_in(self, one: Member) -> None:
        """Take note that a connection has a request of somebody who may ask."""
        self._strangers.pop(one, None)
        if (crowd := self._crowds.get(one.address)) is not None:
            crowd.strangers.pop(one, None)
            crowd.waiting.pop(one, None)

    def waits(self, one: Member) -> None:
        """Take note that its request has its answer."""
        crowd = self._crowds.get(one.address)
        if crowd is not None and one in crowd.members and one not in crowd.strangers:
            crowd.waiting.setdefault(one)

    def leave(self, one: Member) -> None:
        """Forget a connection that has ended."""
        crowd = self._crowds.get(one.address)
        if crowd is None or one not in crowd.members:
            return
        self.let_in(one)  # so it is in no list of those who may have to make way
        crowd.members.remove(one)
        self.open -= 1
        if not crowd.members:
            del self._crowds[one.address]

    def _has_place(self, crowd: _Crowd) -> bool:
        if len(crowd.members) >= self.limits.per_address:
            return self._displaced(crowd.first(self._strange_since))
        if self.open < self.limits.connections:
            return True
        stranger = next(iter(self._strangers), None)
        if stranger is not None and self._strangers[stranger] <= self._strange_since:
            return self._displaced(stranger)
        most = max(self._crowds.values(), key=lambda each: each.loose)
        few = len(crowd.members) < _FEW and self.open < self.limits.connections + self.limits.kept
        if few and most is crowd:
            return True  # not for another of its own, of which perhaps no byte was read yet
        return self._displaced(most.first(self._strange_since)) or few

    @property
    def _strange_since(self) -> float:
        return self._clock() - self.limits.stranger

    def _displaced(self, one: Member | None) -> bool:
        """Close a connection; False: there is none that has to make way."""
        if one is None:
            return False
        self._note(CROWDED, one.address)
        self.leave(one)
        one.make_way()
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
            "too many connections: %d are open, %d of them from %s; until now %d were closed that had no request, or "
            "none with a key, and %d were not let in",
            *(self.open, len(crowd.members) if crowd else 0, address, self.closed[CROWDED], self.closed[REFUSED]),
        )


class Connection(RequestHandler):
    """One client's connection, with its place in the room and a time for each head."""

    __slots__ = ("_came", "_deadline", "_further", "_half_closed", "_left", "_room", "_unread", "_wire", "address")

    def __init__(self, server: web.Server, room: Room, loop: asyncio.AbstractEventLoop, **kwargs: Any) -> None:
        super().__init__(server, loop=loop, **kwargs)
        self.address = ""
        self._room = room
        self._wire: asyncio.Transport | None = None
        """aiohttp forgets it while what it has written last is still on its way to the client."""
        self._came = self._loop.time()
        """When its client's last bytes came."""
        self._deadline: asyncio.TimerHandle | None = None
        self._further = Further()
        self._half_closed: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._left = 0
        """Bytes that its client had not taken when it was last looked."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place; without one the connection ends."""
        self.address = str((transport.get_extra_info("peername") or ("",))[0])
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a stream always is, for the type checker
        self._wire = transport
        if not self._room.enter(self):
            transport.abort()
            return
        # An answer has its end only once the system has all of it: who makes way before would cut it short.
        transport.set_write_buffer_limits(high=0)
        super().connection_made(transport)
        self._time_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give the place back."""
        for timer in (self._deadline, self._half_closed, self._unread):
            if timer is not None:
                timer.cancel()
        self._room.leave(self)
        self._wire = None
        super().connection_lost(exc)

    def make_way(self) -> None:
        """End without any further word."""
        if self._wire is not None:
            self._wire.abort()

    def let_in(self) -> None:
        """Take note that its request is of somebody who may ask."""
        self._room.let_in(self)

    def pause_writing(self) -> None:
        """Wait for the client to take what is there, and not for ever."""
        super().pause_writing()
        self._left = self._untaken()
        self._time_reading()

    def resume_writing(self) -> None:
        """Go on: the system has all of it."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Hand bytes on; the first of a further request start the time for its head, or the end of the one before."""
        self._came = self._loop.time()
        count = self._request_count
        super().data_received(data)
        self._further.came(data, *(self._messages[-1] if self._request_count > count else ()))
        self._time_further()

    def eof_received(self) -> bool | None:  # type: ignore[override] # asyncio's own; aiohttp's says less
        """Answer what was asked just now, though no more is to come; else nobody is there any more."""
        left = self._came + self._room.limits.half_closed - self._loop.time()
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
        """Answer a request; once its client is let in nothing ends the connection but the client."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        try:
            done = await super()._handle_request(request, start_time, request_handler)
            if self.transport is not None:  # aiohttp itself does not wait for the end of every kind of answer
                await self._drain_helper()
            return done
        finally:
            self._room.waits(self)
            self._time_further()
            if self._half_closed is not None and not self._messages:
                self._close = True

    def _is_idle(self) -> bool:
        """Tell whether no request is here."""
        return self._waiter is not None and not self._waiter.done()

    def _time_reading(self) -> None:
        self._unread = self._loop.call_later(self._room.limits.unread, self._look_whether_read)

    def _look_whether_read(self) -> None:
        before, self._left = self._left, self._untaken()
        if self._left < before:
            self._time_reading()
            return
        self._room.closed[UNREAD] += 1
        self.make_way()

    def _untaken(self) -> int:
        """Return how many bytes the client's system has not taken.

        Ours holds megabytes for a slow client, and takes nothing from us for long while that goes on reading.
        """
        if self._wire is None:
            return 0
        queued = fcntl.ioctl(self._wire.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        return self._wire.get_write_buffer_size() + int(struct.unpack("i", queued)[0])

    def _time_further(self) -> None:
        """Start the time for a head that has begun, once no other request is here."""
        if self._further.begun and self._current_request is None and not self._messages and self._deadline is None:
            self._time_head()

    def _time_head(self) -> None:
        self._deadline = self._loop.call_later(self._room.limits.head, self._too_late)

    def _too_late(self) -> None:
        self._deadline = None
        if self._is_idle():
            self._room.closed[SLOW] += 1
            self.make_way()


def let_in(request: web.Request) -> None:
    """Take note that a request is of somebody who may ask: its connection keeps its place until it is answered."""
    if isinstance(request.protocol, Connection):
        request.protocol.let_in()
