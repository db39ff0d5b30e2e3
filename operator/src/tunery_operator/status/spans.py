"""From when until when pods ran: what ran at a time, as pods that work together do, counts once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from tunery_operator.observed.metadata import parse_time

Span = tuple[datetime, datetime]


def spans(history: Iterable[Mapping[str, Any]]) -> Iterator[Span]:
    """Yield from when until when the pods ran that have ended, as status.attemptHistory has them."""
    for entry in history:
        started = parse_time(entry["startTime"]) if "endTime" in entry else None
        if started is not None:
            yield started, started + timedelta(seconds=int(entry.get("seconds") or 0))


def alone(start: datetime, end: datetime, others: Iterable[Span]) -> float:
    """Return how many seconds of a span none of the others was under way."""
    seconds = 0.0
    for begin, stop in sorted(others):
        if begin >= end:
            break
        seconds += max(0.0, (begin - start).total_seconds())
        start = max(start, stop)
    return seconds + max(0.0, (end - start).total_seconds())
