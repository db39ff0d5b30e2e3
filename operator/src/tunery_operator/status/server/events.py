"""Return the events of a change of a server's status; changes of several adapters share one event."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from tunery_api.reasons import is_retryable
from tunery_api.redact import redact
from tunery_api.serverstatus import AdapterState, ServerCondition
from tunery_operator.observed.event import ADAPTER_FAILED, ADAPTER_REMOVED, ADAPTER_SERVED, SERVER_READY, Event
from tunery_operator.observed.metadata import format_time
from tunery_operator.status.server.conditions import NOT_REPORTING, STOPPED, names

_ANSWERED: Final = (AdapterState.SERVED.value, AdapterState.COLD.value)

Entries = Mapping[str, Mapping[str, Any]]


def server_events(old: Mapping[str, Any], new: Mapping[str, Any], now: datetime) -> tuple[Event, ...]:
    """Return the events of the change from the old to the new status."""
    time = format_time(now)
    found = (*_of_adapters(old, new), *_of_conditions(old, new), *_of_failure(old, new))
    return tuple(Event(reason, redact(note), warning, time) for reason, note, warning in found)


EventParts = tuple[str, str, bool]
"""Reason, note, and whether it is a warning."""


def _of_adapters(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[EventParts]:
    before, after = _entries(old), _entries(new)
    # If the list was cut, new and removed adapters are unknown.
    complete_before, complete_after = _is_complete(old, before), _is_complete(new, after)
    known = [name for name in after if complete_before or name in before]
    served = [name for name in known if _is_news(before.get(name), after[name])]
    if served:
        yield ADAPTER_SERVED, f"served by every ready replica: {names([_titled(after[n]) for n in served])}", False
    yield from _failures(before, after, known)
    # An adapter that was never served is not reported as removed.
    answered = {name for name, entry in before.items() if entry.get("manifestSha256")}
    removed = sorted(answered - after.keys()) if complete_after else []
    if removed:
        yield ADAPTER_REMOVED, f"no longer served: {names(removed)}", False


def _failures(before: Entries, after: Entries, known: Sequence[str]) -> Iterator[EventParts]:
    """Yield one event for each new reason of adapters, or with a new cause."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name in known:
        reason = _problem(after[name])
        if reason is not None and _cause(after[name]) != _cause(before.get(name, {})):
            by_reason[reason].append(name)
    for reason, affected in sorted(by_reason.items()):
        first = after[affected[0]]
        all_of_them = f"{names(affected)}; " if len(affected) > 1 else ""
        yield ADAPTER_FAILED, f"{reason}: {all_of_them}{affected[0]}: {first.get('message') or reason}", True


def _of_conditions(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[EventParts]:
    available = ServerCondition.AVAILABLE
    if _status(new, available) == "True" and _status(old, available) != "True":
        yield SERVER_READY, f"{new.get('readyText')} replicas are ready at {new.get('url')}", False
    if _reason(new, available) == STOPPED and _reason(old, available) not in (None, STOPPED):
        yield STOPPED, "spec.replicas is 0", False
    served = ServerCondition.ADAPTERS_SERVED
    if _reason(new, served) == NOT_REPORTING != _reason(old, served):
        yield NOT_REPORTING, str(_condition(new, served).get("message")), True


def _of_failure(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[EventParts]:
    """Yield the failure of the server; `_failures` yields those of adapters."""
    failure, before = new.get("failure") or {}, old.get("failure") or {}
    of_adapter = "adapter" in (failure.get("facts") or {})
    if failure and failure["reason"] != before.get("reason") and not of_adapter:
        yield failure["reason"], str(failure.get("message")), True


def _entries(status: Mapping[str, Any]) -> Entries:
    return {item["name"]: item for item in status.get("adapters") or ()}


def _is_complete(status: Mapping[str, Any], entries: Entries) -> bool:
    return int((status.get("adapterCounts") or {}).get("desired", 0)) <= len(entries)


def _serves(entry: Mapping[str, Any]) -> bool:
    return entry.get("state") in _ANSWERED


def _version(entry: Mapping[str, Any] | None) -> Any:
    """Return the digest that every replica serves; None: none."""
    return entry.get("manifestSha256") or "" if entry is not None and _serves(entry) else None


def _problem(entry: Mapping[str, Any]) -> str | None:
    reason: str | None = entry.get("reason")
    return reason


def _cause(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the cause of an adapter's failure: for a retryable one the reason only, as its message changes."""
    reason = _problem(entry)
    return (reason,) if reason is None or is_retryable(reason) else (reason, entry.get("message"))


def _is_news(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> bool:
    """Return whether a version is newly served, or served again after a problem."""
    if not _serves(after):
        return False
    fixed = _problem(before or {}) is not None and _problem(after) is None and not after.get("wantedSha256")
    return fixed or _version(after) != _version(before)


def _titled(entry: Mapping[str, Any]) -> str:
    digest = entry.get("manifestSha256")
    return f"{entry['name']}@{digest[:12]}" if digest else str(entry["name"])


def _condition(status: Mapping[str, Any], type_: ServerCondition) -> Mapping[str, Any]:
    conditions = status.get("conditions") or ()
    return next((item for item in conditions if item["type"] == type_.value), {})


def _status(status: Mapping[str, Any], type_: ServerCondition) -> Any:
    return _condition(status, type_).get("status")


def _reason(status: Mapping[str, Any], type_: ServerCondition) -> Any:
    return _condition(status, type_).get("reason")
