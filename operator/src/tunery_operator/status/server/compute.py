"""The status of an AdapterServer, what it tells by events, and when to look again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from tunery_operator.status.server.snapshot import ServerSnapshot
from tunery_operator.views.event import Event


class Outcome(NamedTuple):
    """What follows from a snapshot."""

    status: dict[str, Any]
    events: tuple[Event, ...]
    """What has changed since `before` that deserves an event."""
    next_look: float | None
    """Seconds until time alone may change the status; None: never."""


def compute_server_status(snapshot: ServerSnapshot, before: Mapping[str, Any], now: datetime) -> Outcome:
    """Return the status that a server should have now; `before` is the one that the API server has."""
    raise NotImplementedError
