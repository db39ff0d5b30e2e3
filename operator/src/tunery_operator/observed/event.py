"""Provide events: those that Tunery posts about its objects, and warnings of the cluster about Jobs and pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

RETRIED: Final = "Retried"
"""Reason of the event that a failed object is tried again."""
ADAPTER_REMOVED: Final = "AdapterRemoved"
"""Reason of AdapterUploaded=False where a sweep has removed what one of its trials had published; and of the
event that a server serves an adapter no more."""
ADAPTER_SERVED: Final = "AdapterServed"
ADAPTER_FAILED: Final = "AdapterFailed"
SERVER_READY: Final = "ServerReady"
SERVER_STOPPED: Final = "Stopped"
RESUMED: Final = "Resumed"
"""Reason of Suspended=False once spec.suspend is false again."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event about a Tunery object."""

    reason: str
    note: str
    warning: bool
    time: str
    """When it happened, or a text that identifies it: part of the event's name, so that it is posted once."""
    ends: bool = False
    """It reports how the object ended, or its result: it may use the reserve of the event limit."""


@dataclass(frozen=True, slots=True)
class ClusterWarning:
    """A warning event of the cluster about a Job or one of its pods."""

    reason: str
    message: str
    time: str
    """RFC 3339 in UTC, of its last occurrence."""
    about: Literal["Job", "Pod"]
    uid: str = ""
    """Of the Job or pod; empty: of whichever."""


def parse_warning(event: Mapping[str, Any], about: Literal["Job", "Pod"]) -> ClusterWarning:
    """Return the view of an event of core/v1, whose time is in one of four fields."""
    times = (
        (event.get("series") or {}).get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        event["metadata"].get("creationTimestamp"),
    )
    time = next((time for time in times if time), "")
    uid = (event.get("involvedObject") or {}).get("uid") or ""
    return ClusterWarning(event.get("reason") or "", event.get("message") or "", time, about, uid)
