"""An event about a Tunery object, before its manifest is built, and the reasons of events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

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
    """One event."""

    reason: str
    note: str
    warning: bool
    time: str
    """When it happened, or a text that identifies it: part of the event's name, so that it is posted once."""
    ends: bool = False
    """It reports how the object ended, or its result: it may use the reserve of the event limit."""
