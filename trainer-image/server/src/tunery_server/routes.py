"""Which model leads to what in the engine: the one table that the loader writes and the door reads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tunery_api.serving import VERSION_DIGITS

RETRY_SECONDS: Final = 5
"""After which a client may ask again for what is not served now."""


class UnknownModel(Exception):
    """There is no such model here, nor is one wanted."""


class NotServed(Exception):
    """The model is wanted, and cannot answer now."""

    def __init__(self, name: str, reason: str, message: str, retry_after: int = RETRY_SECONDS) -> None:
        super().__init__(message)
        self.name = name
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


@dataclass(frozen=True)
class Target:
    """What answers a request."""

    name: str
    """The public name."""
    engine_name: str
    """What the engine knows it by: name@version, for the base its served name."""
    version: str | None
    """The first digits of the manifest's digest; None for the base."""
    sha256: str | None = None
    """All of that digest."""


@dataclass(frozen=True)
class _Held:
    reason: str
    message: str
    engine_name: str | None
    """Under which it was served before."""


class Routes:
    """The models of a replica. All of it runs on one event loop; nothing in it waits but `drained`."""

    def __init__(self, base: str) -> None:
        self._base = Target(base, base, None)
        self._served: dict[str, Target] = {}
        self._held: dict[str, _Held] = {}
        self._in_flight: dict[str, int] = {}
        self._idle: dict[str, asyncio.Event] = {}

    def resolve(self, model: str) -> Target:
        """Return what answers for `model`, a name or name@version; raises UnknownModel or NotServed.

        A version is found only while it is the one that its name leads to. Between `resolve` and `using` nothing may
        be waited for: the target might be drained meanwhile.
        """
        if model == self._base.name:
            return self._base
        name = model.partition("@")[0]
        served = self._served.get(name)
        if served is not None and (model == name or model == served.engine_name):
            return served
        held = self._held.get(name)
        if held is not None and (model == name or model == held.engine_name):
            raise NotServed(name, held.reason, held.message)
        raise UnknownModel

    def names(self) -> list[str]:
        """Return the public names of what can be asked for, the base first."""
        return [self._base.name, *sorted(self._served)]

    def knows(self, name: str) -> bool:
        """Say whether `name` is the base, or is served or wanted."""
        return name == self._base.name or name in self._served or name in self._held

    def serve(self, name: str, engine_name: str, sha256: str) -> None:
        """From now on `name` leads to this version, and to no other."""
        self._held.pop(name, None)
        self._served[name] = Target(name, engine_name, sha256[:VERSION_DIGITS], sha256)

    def hold(self, name: str, reason: str, message: str) -> None:
        """From now on whoever asks for `name` is told why it cannot answer."""
        before, held = self._served.pop(name, None), self._held.get(name)
        engine_name = before.engine_name if before else held.engine_name if held else None
        self._held[name] = _Held(reason, message, engine_name)

    def drop(self, name: str) -> None:
        """From now on `name` is unknown; what is being answered goes on."""
        self._served.pop(name, None)
        self._held.pop(name, None)

    @contextmanager
    def using(self, target: Target) -> Iterator[None]:
        """Count a request to `target` for as long as it lasts."""
        key = target.engine_name
        self._in_flight[key] = self._in_flight.get(key, 0) + 1
        try:
            yield
        finally:
            self._in_flight[key] -= 1
            if not self._in_flight[key]:
                del self._in_flight[key]
                if (idle := self._idle.pop(key, None)) is not None:
                    idle.set()

    def in_flight(self) -> int:
        """Return how many requests are being answered."""
        return sum(self._in_flight.values())

    async def drained(self, engine_name: str, timeout: float) -> bool:
        """Wait until no request uses `engine_name`, at most `timeout` seconds; return whether none does."""
        if engine_name in self._in_flight:
            idle = self._idle.setdefault(engine_name, asyncio.Event())
            try:
                await asyncio.wait_for(idle.wait(), timeout)
            except TimeoutError:
                return False
        return engine_name not in self._in_flight
