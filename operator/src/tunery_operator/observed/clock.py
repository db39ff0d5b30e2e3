"""Times as the API writes them, and durations as people read them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def parse_time(value: Any) -> datetime | None:
    """Return the time that an RFC 3339 string stands for; None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def format_time(value: datetime) -> str:
    """Return the time as metav1.Time is written: UTC, whole seconds."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_duration(seconds: int) -> str:
    """Return a duration as kubectl writes it: 45s, 3m20s, 2h5m, 4d3h."""
    for size, unit, rest, rest_unit in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            left = seconds % size // rest
            return f"{seconds // size}{unit}" + (f"{left}{rest_unit}" if left else "")
    return f"{seconds}s"
