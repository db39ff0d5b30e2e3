"""How the gateway reaches the engine."""

from __future__ import annotations

from typing import Protocol

import aiohttp


class HasSession(Protocol):
    """A way to the engine."""

    @property
    def session(self) -> aiohttp.ClientSession:
        """The session on its socket."""


class EngineAsked(HasSession, Protocol):
    """What the gateway asks of the engine's client beside."""

    async def health(self) -> bool:
        """Say whether the engine answers and works; raises EngineGone where nobody says."""


def url(path: str) -> str:
    """Return the address of a path of the engine; the host is a word only, the session leads to the socket."""
    return f"http://engine{path}"
