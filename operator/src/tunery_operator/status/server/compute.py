"""The status of an AdapterServer, what it tells by events, and when to look again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from tunery_api.scrub import scrub, shorten
from tunery_api.serverstatus import (
    ADAPTERS_SHOWN,
    REPLICAS_SHOWN,
    SKIPPED_SHOWN,
    ReplicaStatus,
    ServerCondition,
    SkippedSource,
)
from tunery_operator.observed.event import Event
from tunery_operator.observed.metadata import format_time, parse_time
from tunery_operator.planning.adapterserver import pod_selector, server_url
from tunery_operator.status.conditions import Conditions
from tunery_operator.status.server.access import old_rules, with_suffix
from tunery_operator.status.server.adapters import AdapterEntry, Life, count, entries, shown
from tunery_operator.status.server.conditions import PREDECESSOR, Seen, set_conditions
from tunery_operator.status.server.events import server_events
from tunery_operator.status.server.phase import server_phase, set_tools_words
from tunery_operator.status.server.replicas import Replica, find_replicas, room_in, seconds_frozen
from tunery_operator.status.server.snapshot import ServerSnapshot
from tunery_operator.status.server.verdict import failure_block, hindrance

LIST_BYTES: Final = 160 * 1024
"""Of status.adapters: with all the rest the status stays below 256 KiB."""
_SHORT: Final = 256
_PAUSE: Final = 15.0
"""Seconds between two looks where the cluster refuses something, or what waits ends without a word."""
_MARGIN: Final = 1.0


class Outcome(NamedTuple):
    """What follows from a snapshot."""

    status: dict[str, Any]
    events: tuple[Event, ...]
    """What has changed since `before` that deserves an event."""
    requeue_after: float | None
    """Seconds until time alone may change the status; None: never."""


def compute_server_status(snapshot: ServerSnapshot, before: Mapping[str, Any], now: datetime) -> Outcome:
    """Return the status that a server should have now; `before` is the one that the API server has.

    A report that says nothing new changes nothing in it.
    """
    frozen = seconds_frozen(snapshot, before, now)
    if frozen > 0:
        return Outcome(dict(before), (), frozen + _MARGIN)
    replicas = find_replicas(snapshot, now)
    stopped, life = snapshot.replicas == 0, Life(parse_time(snapshot.owner.created), now)
    adapters = entries(snapshot.resolution, replicas, before, stopped=stopped, life=life)
    rules = old_rules(snapshot, replicas)
    found = hindrance(snapshot, replicas)
    seen = Seen(snapshot, replicas, adapters, with_suffix(found, rules), rules)
    conditions = Conditions(before.get("conditions") or (), snapshot.owner.generation, now, ServerCondition)
    set_conditions(conditions, seen)
    failure = failure_block(snapshot, found, replicas, adapters, rules)
    phase = server_phase(conditions, seen, hindered=failure is not None)
    set_tools_words(conditions, phase)
    fields = {
        "observedGeneration": snapshot.owner.generation,
        "phase": phase.value,
        "conditions": conditions.to_list(),
        "failure": failure,
        **_of_replicas(seen),
        **_of_adapters(seen),
    }
    status = {name: value for name, value in fields.items() if value is not None}
    changed = _what_is_served(status) != _what_is_served(before)
    last = format_time(now) if changed else before.get("lastChangeTime")
    if last is not None:
        status["lastChangeTime"] = last
    return Outcome(status, server_events(before, status, now), min(_looks(snapshot, replicas, now), default=None))


def _of_replicas(seen: Seen) -> dict[str, Any]:
    owner = seen.snapshot.owner
    replicas = [_replica(replica) for replica in seen.replicas[:REPLICAS_SHOWN]]
    return {
        "url": server_url(owner.key),
        "selector": ",".join(f"{name}={value}" for name, value in sorted(pod_selector(owner).items())),
        "replicas": len(seen.replicas),
        "readyReplicas": seen.ready,
        "readyText": f"{seen.ready}/{seen.snapshot.replicas}",
        "replicaStatuses": replicas or None,
    }


def _replica(replica: Replica) -> dict[str, Any]:
    known = replica.state if not replica.silent else None
    obstacle = replica.obstacle
    reason, message = (None, None) if obstacle is None else (str(obstacle.reason), obstacle.message)
    if replica.silent:
        reason, message = "NotReporting", "it has not reported for more than 30 seconds"
    elif replica.waits is not None:
        reason, message = PREDECESSOR, replica.waits
    elif obstacle is None and known is not None and known.reason is not None:
        reason, message = known.reason, known.message
    elif obstacle is None and known is not None and known.remark is not None:
        reason, message = known.remark.reason, known.remark.message
    return ReplicaStatus(
        pod=replica.pod.name,
        ready=replica.ready,
        served=replica.served if known is not None else None,
        loaded=replica.loaded if known is not None else None,
        engine_version=known.engine_version if known is not None else None,
        reason=reason,
        message=shorten(scrub(message), _SHORT) if message else None,
    ).to_json_dict()


def _of_adapters(seen: Seen) -> dict[str, Any]:
    skipped = seen.snapshot.resolution.skipped if seen.snapshot.resolution is not None else ()
    counts = count(seen.adapters, len(skipped))
    left_out = [
        SkippedSource(source=item.source, reason=shorten(item.reason, _SHORT)).to_json_dict()
        for item in skipped[:SKIPPED_SHOWN]
    ]
    return {
        "adaptersText": f"{counts['served']}/{counts['desired']}",
        "adapterCounts": dict(counts),
        "adapters": list(_listed(seen.adapters)) or None,
        "skipped": left_out or None,
    }


def _listed(adapters: Sequence[AdapterEntry]) -> Iterator[dict[str, Any]]:
    """Yield the adapters that the status has room for; those with problems come first."""
    room = LIST_BYTES
    for item in adapters[:ADAPTERS_SHOWN]:
        entry = shown(item)
        room -= len(json.dumps(entry).encode())
        if room < 0:
            return
        yield entry


def _what_is_served(status: Mapping[str, Any]) -> Any:
    served = [(item.get("name"), item.get("manifestSha256")) for item in status.get("adapters") or ()]
    return sorted(item for item in served if item[1]), (status.get("adapterCounts") or {}).get("served", 0)


def _looks(snapshot: ServerSnapshot, replicas: Sequence[Replica], now: datetime) -> Iterator[float]:
    for replica in replicas:
        if replica.silent_in is not None:
            yield replica.silent_in + _MARGIN
        if replica.awaited is not None:
            yield room_in(replica.awaited, now) + _MARGIN
        if replica.pod.unstarted and not replica.ready:
            # Why only events tell, and no watch tells of those.
            yield _PAUSE
    if snapshot.rejection is not None or snapshot.waiting_for is not None or snapshot.conflict is not None:
        yield _PAUSE
