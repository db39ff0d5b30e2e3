"""Compute the state of each adapter of a server over all replicas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from tunery_api.reasons import FailureReason, is_retryable
from tunery_api.redact import redact, shorten
from tunery_api.serverstatus import NOT_SERVED_SHOWN, AdapterState, NotServedOn, ServedAdapterStatus
from tunery_api.serving import LAST_USED_SECONDS, SILENT_SECONDS, DesiredAdapter, ReportedAdapter
from tunery_operator.observed.metadata import format_time, parse_time
from tunery_operator.planning.resolution import (
    AdapterNote,
    PendingAdapter,
    RejectedAdapter,
    Resolution,
    RetainedAdapter,
)
from tunery_operator.status.server.pod_failures import hint_of
from tunery_operator.status.server.snapshot import Replica

_S = AdapterState
_WORST_FIRST: Final = (_S.FAILED, _S.UNKNOWN, _S.LOADING, _S.WAITING, _S.COLD, _S.SERVED)
"""The state of an adapter is its worst one over the replicas."""
ANSWERED: Final = frozenset({_S.SERVED, _S.COLD})
"""The states in which a request is answered: a cold adapter is loaded for it."""
_SHORT: Final = 256
_HINT: Final = 512
"""Bytes of a message, and of a hint, in the list of adapters."""
_ABSENT_HINT: Final = (
    "Create that object: its adapter is then served automatically. If the name is wrong, correct it in spec.adapters."
)
_SILENT: Final = "its replica has not reported for more than 30 seconds"
_NEW: Final = "its replica has not reported it yet"


@dataclass(frozen=True, slots=True)
class AdapterEntry:
    """One adapter."""

    name: str
    state: AdapterState
    fields: dict[str, Any]
    """The fields of its status, named as in Python; texts are not shortened yet."""
    reason: str | None
    needs_action: bool
    """It needs a fix: waiting does not help."""

    @property
    def message(self) -> str | None:
        """Why it is not served."""
        message: str | None = self.fields.get("message")
        return message

    @property
    def has_problem(self) -> bool:
        """Return whether something blocks it."""
        return self.reason is not None or self.state is AdapterState.FAILED


class ServerTimes(NamedTuple):
    """When a server was created, and now."""

    created: datetime | None
    now: datetime


@dataclass(frozen=True, slots=True)
class _AdapterInputs:
    """The inputs of the state of an adapter, except the reports."""

    name: str
    source: str
    desired: DesiredAdapter | None = None
    pending: PendingAdapter | None = None
    rejected: RejectedAdapter | None = None
    retained: RetainedAdapter | None = None
    note: AdapterNote | None = None


def entries(
    resolution: Resolution | None,
    replicas: Sequence[Replica],
    before: Mapping[str, Any],
    *,
    stopped: bool,
    times: ServerTimes,
) -> list[AdapterEntry]:
    """Return the state of each adapter, problems first, then by name.

    `before` is the status that the API server has, with the last requests to replicas that are gone. Without a
    resolution, as for an invalid spec, the adapters of the replicas are the desired ones.
    """
    answering = [replica for replica in replicas if replica.ready] or [replica for replica in replicas if replica.runs]
    used = {str(item.get("name")): item.get("lastUsedTime") for item in before.get("adapters") or ()}
    found = [_entry(item, answering, stopped) for item in _adapter_inputs(resolution, replicas)]
    for item in found:
        _set_last_used(item, replicas, parse_time(used.get(item.name)), times)
    return sorted(found, key=_order)


def _set_last_used(
    item: AdapterEntry, replicas: Sequence[Replica], before: datetime | None, times: ServerTimes
) -> None:
    """Set when an adapter was last requested, on any replica.

    Replicas round the time down to ten minutes. The first report of each ten minutes sets the time of the report; if
    that is later than those ten minutes, as after a restart of the operator, their beginning is set.
    """
    known = before.timestamp() if before is not None else 0.0
    reported = (replica.adapters[item.name].last_used for replica in replicas if item.name in replica.adapters)
    newest = max(((time or 0.0) for time in reported), default=0.0) // LAST_USED_SECONDS * LAST_USED_SECONDS
    if newest > known:
        now = times.now.timestamp()
        known = max(newest, now) if now - newest < LAST_USED_SECONDS + SILENT_SECONDS else newest
    if known > 0:
        used = datetime.fromtimestamp(known, UTC)
        item.fields["last_used_time"] = format_time(used if times.created is None else max(used, times.created))


def _order(item: AdapterEntry) -> tuple[int, int, str]:
    return (0 if item.needs_action else 1 if item.has_problem else 2, _WORST_FIRST.index(item.state), item.name)


def _adapter_inputs(resolution: Resolution | None, replicas: Sequence[Replica]) -> Iterator[_AdapterInputs]:
    if resolution is None:
        for name in sorted({name for replica in replicas for name in replica.adapters}):
            yield _AdapterInputs(name, "")
        return
    sources = {item.name: item.source for item in resolution.desired.adapters}
    sources |= {item.name: item.source for item in resolution.pending}
    sources |= {item.name: item.source for item in resolution.rejected}
    parts = (
        resolution.desired.adapters,
        resolution.pending,
        resolution.rejected,
        resolution.retained,
        resolution.notes,
    )
    known: list[dict[str, Any]] = [{item.name: item for item in part} for part in parts]
    for name in sorted(sources):
        yield _AdapterInputs(name, sources[name], *(part.get(name) for part in known))


def _entry(item: _AdapterInputs, answering: Sequence[Replica], stopped: bool) -> AdapterEntry:
    if item.rejected is not None and (item.desired is None or not answering):
        return _rejected(item, item.rejected)
    if item.desired is None and item.pending is not None:
        return _waiting(item, item.pending)
    if stopped:
        return _not_served(item, _S.WAITING, "the server is stopped: spec.replicas is 0")
    if not answering:
        return _not_served(item, _S.WAITING, "no replica runs yet")
    return _over_replicas(item, answering)


def _rejected(item: _AdapterInputs, why: RejectedAdapter) -> AdapterEntry:
    fields = {
        "name": item.name,
        "source": item.source,
        "uri": why.uri,
        "wanted_sha256": why.manifest_sha256,
        "rank": why.rank,
        "state": _S.FAILED.value,
        "reason": why.reason.value,
        "message": why.message,
        "hint": f"{why.remedy.text}.",
    }
    return AdapterEntry(item.name, _S.FAILED, fields, why.reason.value, needs_action=True)


def _waiting(item: _AdapterInputs, why: PendingAdapter) -> AdapterEntry:
    found = _not_served(item, _S.WAITING, why.message)
    if not why.absent:
        return found
    reason = FailureReason.ADAPTER_MISSING.value
    fields = {**found.fields, "reason": reason, "hint": _ABSENT_HINT}
    return replace(found, fields=fields, reason=reason, needs_action=True)


def _not_served(item: _AdapterInputs, state: AdapterState, message: str) -> AdapterEntry:
    desired = item.desired
    fields = {
        "name": item.name,
        "source": item.source,
        "uri": desired.uri if desired is not None else None,
        "wanted_sha256": desired.manifest_sha256 if desired is not None else None,
        "state": state.value,
        "message": message,
    }
    return AdapterEntry(item.name, state, fields, None, needs_action=False)


def _over_replicas(item: _AdapterInputs, answering: Sequence[Replica]) -> AdapterEntry:
    answers = [(replica, _answer(replica, item.name)) for replica in answering]
    state = min((answer.state for _, answer in answers), key=_WORST_FIRST.index)
    worst = next(answer for _, answer in answers if answer.state is state)
    primary = next((answer for _, answer in answers if answer.state is state and answer.reason), worst)
    reason, message, hint = primary.reason, primary.message, primary.hint
    if item.rejected is not None:
        reason, message, hint = item.rejected.reason.value, item.rejected.message, f"{item.rejected.remedy.text}."
    elif message is None:
        note = item.retained or item.note
        message = note.message if note is not None else None
    served, wanted = _digests(item, [answer for _, answer in answers])
    ready = [replica for replica in answering if replica.ready]
    on = sum(answer.state in ANSWERED for replica, answer in answers if replica.ready)
    fields = {
        "name": item.name,
        "source": item.source or None,
        "uri": item.desired.uri if item.desired is not None else None,
        "manifest_sha256": served,
        "wanted_sha256": wanted,
        "rank": _first(answers, "rank"),
        "size_bytes": _first(answers, "size_bytes"),
        "state": state.value,
        "replicas": f"{on}/{len(ready)}",
        "reason": reason,
        "message": message,
        "hint": hint_of(reason, hint) if reason else None,
        "not_served_on": _not_served_on(answers, message),
    }
    needs_action = state is _S.FAILED or (reason is not None and not is_retryable(reason))
    return AdapterEntry(item.name, state, fields, reason, needs_action=needs_action)


def _answer(replica: Replica, name: str) -> ReportedAdapter:
    """Return the state of an adapter on a replica; a replica that is not ready or silent serves none."""
    report = replica.adapters.get(name)
    if replica.silent:
        return ReportedAdapter(name=name, state=_S.UNKNOWN, message=_SILENT)
    if report is None:
        return ReportedAdapter(name=name, state=_S.LOADING, message=_NEW if replica.state is not None else None)
    if report.state in ANSWERED and not replica.ready:
        return report.model_copy(update={"state": _S.LOADING})
    return report


def _digests(item: _AdapterInputs, answers: Sequence[ReportedAdapter]) -> tuple[str | None, str | None]:
    """Return the served digest, the old one while both are served, and the desired digest if it differs."""
    wanted = item.rejected.manifest_sha256 if item.rejected is not None else None
    wanted = wanted or next((answer.wanted_sha256 for answer in answers if answer.wanted_sha256), None)
    wanted = wanted or (item.desired.manifest_sha256 if item.desired is not None else None)
    served = sorted({answer.manifest_sha256 for answer in answers if answer.manifest_sha256})
    old = [digest for digest in served if digest != wanted]
    shown = next(iter(old or served), None)
    return shown, wanted if wanted != shown else None


def _not_served_on(answers: Sequence[tuple[Replica, ReportedAdapter]], message: str | None) -> list[dict[str, Any]]:
    others = [(replica, answer) for replica, answer in answers if answer.state not in ANSWERED]
    return [
        {
            "pod": replica.pod.name,
            "state": answer.state.value,
            "reason": answer.reason,
            # The adapter itself has the common message.
            "message": answer.message if answer.message != message else None,
        }
        for replica, answer in others[:NOT_SERVED_SHOWN]
    ]


def shown(item: AdapterEntry) -> dict[str, Any]:
    """Return the status of an adapter, with short texts without credentials."""
    fields = {**item.fields, "message": _text(item.message), "hint": _text(item.fields.get("hint"), _HINT)}
    others = [NotServedOn(**{**each, "message": _text(each["message"])}) for each in fields.pop("not_served_on", ())]
    return ServedAdapterStatus(**fields, not_served_on=others or None).to_json_dict()


def _first(answers: Sequence[tuple[Replica, ReportedAdapter]], field: str) -> Any:
    values: Iterator[Any] = (getattr(answer, field) for _, answer in answers)
    return next((value for value in values if value is not None), None)


def _text(message: str | None, limit: int = _SHORT) -> str | None:
    return shorten(redact(message), limit) if message else None


def count(found: Sequence[AdapterEntry], skipped: int) -> Mapping[str, int]:
    """Return the counts, also of adapters that the list omits."""
    return {
        "desired": len(found),
        "served": sum(item.state in ANSWERED for item in found),
        "cold": sum(item.state is _S.COLD for item in found),
        "failed": sum(item.needs_action for item in found),
        "skipped": skipped,
    }


def first_problem(found: Sequence[AdapterEntry]) -> AdapterEntry | None:
    """Return the adapter with the most severe problem; None if no adapter has one."""
    return next((item for item in found if item.has_problem), None)
