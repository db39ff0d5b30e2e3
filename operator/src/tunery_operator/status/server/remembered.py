"""What a replica said to an operator before this one, as the status tells it: it holds until the replica reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from tunery_api.serverstatus import AdapterState, ServedAdapterStatus
from tunery_api.serving import ReplicaState, ReportedAdapter
from tunery_operator.plan.resolution import Resolution


def remembered(
    pod: str, before: Mapping[str, Any], resolution: Resolution | None, *, ready: bool
) -> ReplicaState | None:
    """Return what the status says of a replica; None where it does not know it.

    Of one that gets no requests only what it could not load: else that would be told again as it reports.
    """
    entry = _entry(pod, before)
    if not ready or not entry.get("ready") or entry.get("served") is None:
        failed = [item for item in _adapters(pod, before, resolution) if item.state is AdapterState.FAILED]
        return ReplicaState(engine_ready=False, adapters=failed) if entry and failed else None
    return ReplicaState(
        engine_ready=bool(entry.get("ready")),
        engine_version=entry.get("engineVersion"),
        reason=entry.get("reason"),
        message=entry.get("message"),
        adapters=list(_adapters(pod, before, resolution)),
    )


def loaded_before(pod: str, before: Mapping[str, Any]) -> int | None:
    """Return how many adapters the engine of a replica held, as the status says; None where it does not know it."""
    loaded: int | None = _entry(pod, before).get("loaded")
    return loaded


def _entry(pod: str, before: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((item for item in before.get("replicaStatuses") or () if item.get("pod") == pod), {})


def _adapters(pod: str, before: Mapping[str, Any], resolution: Resolution | None) -> Iterator[ReportedAdapter]:
    shown = {item.name: item for item in _shown(before)}
    yield from (_standing(pod, item) for item in shown.values())
    counts = before.get("adapterCounts") or {}
    if resolution is None or counts.get("desired", 0) <= len(shown):
        return
    # The list is cut, and those with problems come first, then those that are cold, by name.
    cold_shown = [name for name, item in shown.items() if item.state == AdapterState.COLD.value]
    last, cold = max(cold_shown, default=""), counts.get("cold", 0) - len(cold_shown)
    for item in resolution.desired.adapters:
        if item.name not in shown:
            state = AdapterState.COLD if cold > 0 and item.name > last else AdapterState.SERVED
            cold -= state is AdapterState.COLD
            yield ReportedAdapter(name=item.name, state=state, manifest_sha256=item.manifest_sha256 or None)


def _shown(before: Mapping[str, Any]) -> Iterator[ServedAdapterStatus]:
    for item in before.get("adapters") or ():
        try:
            yield ServedAdapterStatus.model_validate(item)
        except ValidationError:
            continue


def _standing(pod: str, item: ServedAdapterStatus) -> ReportedAdapter:
    """Return how an adapter stood on a replica."""
    there = next((entry for entry in item.not_served_on or () if entry.pod == pod), None)
    state = AdapterState.LOADING
    if there is None and item.state == AdapterState.COLD.value:
        state = AdapterState.COLD
    elif there is None and item.manifest_sha256:
        state = AdapterState.SERVED
    told = item if there is None else there
    if there is not None and there.state in {known.value for known in AdapterState}:
        state = AdapterState(there.state)
    return ReportedAdapter(
        name=item.name,
        state=state,
        manifest_sha256=item.manifest_sha256 if state in (AdapterState.SERVED, AdapterState.COLD) else None,
        wanted_sha256=item.wanted_sha256,
        rank=item.rank,
        size_bytes=item.size_bytes,
        reason=told.reason or item.reason,
        message=told.message or item.message,
        hint=item.hint,
    )
