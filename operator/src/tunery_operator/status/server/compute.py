"""Compute the status of an AdapterServer, its events, and when to compute it again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from tunery_api.failures import Failure, Subject
from tunery_api.reasons import FailureReason
from tunery_api.redact import MAX_MESSAGE_BYTES, redact, shorten
from tunery_api.remedies import edit
from tunery_api.serverstatus import (
    ADAPTERS_SHOWN,
    REPLICAS_SHOWN,
    SKIPPED_SHOWN,
    ReplicaStatus,
    ServerCondition,
    SkippedSource,
)
from tunery_api.serving import NO_KEYS
from tunery_operator.observed.event import Event
from tunery_operator.observed.metadata import format_time, parse_time
from tunery_operator.planning.adapterserver import pod_selector, server_url
from tunery_operator.planning.platform_values import with_platform_values
from tunery_operator.status.conditions import Conditions
from tunery_operator.status.diagnosis import failure, failure_status
from tunery_operator.status.server.adapters import AdapterEntry, ServerTimes, count, entries, first_problem, shown
from tunery_operator.status.server.conditions import (
    PREDECESSOR,
    ServerState,
    as_text,
    dangling_aliases_text,
    server_phase,
    set_conditions,
    set_kstatus_conditions,
    unknown_models_text,
)
from tunery_operator.status.server.events import server_events
from tunery_operator.status.server.pod_failures import eviction, from_hint, refused_pods, with_server_remedies
from tunery_operator.status.server.snapshot import (
    Replica,
    ServerSnapshot,
    find_replicas,
    replica_blockers,
    seconds_frozen,
    seconds_until_gone,
)

LIST_BYTES: Final = 160 * 1024
"""Bytes of status.adapters: the complete status stays below 256 KiB."""
_SHORT: Final = 256
_PAUSE: Final = 15.0
"""Seconds until the next reconcile if the cluster rejects a child, or a wait ends without an event."""
_MARGIN: Final = 1.0
_DANGLING: Final = edit("Correct aliases, or name that adapter in adapters", "aliases", "adapters")
_REMARK_BYTES: Final = 480
UNKNOWN_MODELS: Final = edit(
    "Correct access.clients, or name that adapter in adapters; that client gets 404 for it",
    "access.clients",
    "adapters",
)


class Outcome(NamedTuple):
    """The result of a computation."""

    status: dict[str, Any]
    events: tuple[Event, ...]
    """The events of the change from `before`."""
    requeue_after: float | None
    """Seconds until time alone may change the status; None: never."""


def compute_server_status(snapshot: ServerSnapshot, before: Mapping[str, Any], now: datetime) -> Outcome:
    """Return the status that a server should have now; `before` is the one that the API server has.

    A report without news does not change it.
    """
    frozen = seconds_frozen(snapshot, before, now)
    if frozen > 0:
        return Outcome(dict(before), (), frozen + _MARGIN)
    replicas = find_replicas(snapshot, now)
    stopped, times = snapshot.replicas == 0, ServerTimes(parse_time(snapshot.owner.created), now)
    adapters = entries(snapshot.resolution, replicas, before, stopped=stopped, times=times)
    rules = previous_rules_text(snapshot, replicas)
    found = server_blocker(snapshot, replicas)
    server = ServerState(snapshot, replicas, adapters, with_suffix(found, rules), rules)
    conditions = Conditions(before.get("conditions") or (), snapshot.owner.generation, now, ServerCondition)
    set_conditions(conditions, server)
    failure = failure_block(snapshot, found, replicas, adapters, rules)
    phase = server_phase(conditions, server, blocked=failure is not None)
    set_kstatus_conditions(conditions, phase)
    fields = {
        "observedGeneration": snapshot.owner.generation,
        "phase": phase.value,
        "conditions": conditions.to_list(),
        "failure": failure,
        **_of_replicas(server),
        **_of_adapters(server),
    }
    status = {name: value for name, value in fields.items() if value is not None}
    changed = _served_content(status) != _served_content(before)
    last = format_time(now) if changed else before.get("lastChangeTime")
    if last is not None:
        status["lastChangeTime"] = last
    return Outcome(status, server_events(before, status, now), min(_delays(snapshot, replicas, now), default=None))


def _of_replicas(server: ServerState) -> dict[str, Any]:
    owner = server.snapshot.owner
    replicas = [_replica(replica) for replica in server.replicas[:REPLICAS_SHOWN]]
    return {
        "url": server_url(owner.key),
        "selector": ",".join(f"{name}={value}" for name, value in sorted(pod_selector(owner).items())),
        "replicas": len(server.replicas),
        "readyReplicas": server.ready,
        "readyText": f"{server.ready}/{server.snapshot.replicas}",
        "replicaStatuses": replicas or None,
    }


def _replica(replica: Replica) -> dict[str, Any]:
    known = replica.state if not replica.silent else None
    blocker = replica.blocker
    reason, message = (None, None) if blocker is None else (str(blocker.reason), blocker.message)
    if replica.silent:
        reason, message = "NotReporting", "it has not reported for more than 30 seconds"
    elif replica.waiting_message is not None:
        reason, message = PREDECESSOR, replica.waiting_message
    elif blocker is None and known is not None and known.reason is not None:
        reason, message = known.reason, known.message
    elif blocker is None and known is not None and known.remark is not None:
        reason, message = known.remark.reason, known.remark.message
    return ReplicaStatus(
        pod=replica.pod.name,
        ready=replica.ready,
        served=replica.served if known is not None else None,
        loaded=replica.loaded if known is not None else None,
        engine_version=known.engine_version if known is not None else None,
        reason=reason,
        message=shorten(redact(message), _SHORT) if message else None,
    ).to_json_dict()


def _of_adapters(server: ServerState) -> dict[str, Any]:
    skipped = server.snapshot.resolution.skipped if server.snapshot.resolution is not None else ()
    counts = count(server.adapters, len(skipped))
    left_out = [
        SkippedSource(source=item.source, reason=shorten(item.reason, _SHORT)).to_json_dict()
        for item in skipped[:SKIPPED_SHOWN]
    ]
    return {
        "adaptersText": f"{counts['served']}/{counts['desired']}",
        "adapterCounts": dict(counts),
        "adapters": list(_listed(server.adapters)) or None,
        "skipped": left_out or None,
    }


def _listed(adapters: Sequence[AdapterEntry]) -> Iterator[dict[str, Any]]:
    """Yield the adapters that fit into the status; those with problems come first."""
    room = LIST_BYTES
    for item in adapters[:ADAPTERS_SHOWN]:
        entry = shown(item)
        room -= len(json.dumps(entry).encode())
        if room < 0:
            return
        yield entry


def _served_content(status: Mapping[str, Any]) -> Any:
    served = [(item.get("name"), item.get("manifestSha256")) for item in status.get("adapters") or ()]
    return sorted(item for item in served if item[1]), (status.get("adapterCounts") or {}).get("served", 0)


def _delays(snapshot: ServerSnapshot, replicas: Sequence[Replica], now: datetime) -> Iterator[float]:
    for replica in replicas:
        if replica.silent_in is not None:
            yield replica.silent_in + _MARGIN
        if replica.predecessor is not None:
            yield seconds_until_gone(replica.predecessor, now) + _MARGIN
        if replica.pod.unstarted and not replica.ready:
            # Only events have the cause, and they are not watched.
            yield _PAUSE
    if snapshot.rejection is not None or snapshot.waiting_for is not None or snapshot.conflict is not None:
        yield _PAUSE


def server_blocker(snapshot: ServerSnapshot, replicas: Sequence[Replica]) -> Failure | None:
    """Return what blocks the Deployment or a replica; None if nothing does."""
    return next(_blockers(snapshot, replicas), None)


def _blockers(snapshot: ServerSnapshot, replicas: Sequence[Replica]) -> Iterator[Failure]:
    if snapshot.conflict is not None:
        yield failure(FailureReason.NAME_CONFLICT, snapshot.conflict)
    if snapshot.planning_errors:
        yield failure(FailureReason.PLATFORM_CHANGED, as_text(snapshot.planning_errors))
    if snapshot.rejection is not None:
        yield snapshot.rejection
    if snapshot.deployment is not None and snapshot.deployment.failure is not None:
        yield with_platform_values(refused_pods(snapshot.deployment.failure), snapshot.platform.work)
    yield from replica_blockers(replicas)
    if sum(replica.ready for replica in replicas) < snapshot.replicas:
        yield from filter(None, [eviction(snapshot.pods)])
    for replica in replicas:
        state = replica.state
        if state is not None and state.reason is not None and not replica.silent:
            yield failure(
                state.reason, f"pod {replica.pod.name}: {state.message or state.reason}", *from_hint(state.hint)
            )


def failure_block(
    snapshot: ServerSnapshot,
    found: Failure | None,
    replicas: Sequence[Replica],
    adapters: Sequence[AdapterEntry],
    rules: str = "",
) -> dict[str, Any] | None:
    """Return `status.failure`: of the spec, else of the server, else of an adapter; None: no failure.

    A remark of a replica blocks nothing and is in no condition: it is shown here, also after a more severe failure.
    """
    if snapshot.errors:
        found, rules = failure(FailureReason.INVALID_SPEC, as_text(snapshot.errors)), ""
    remark = _remark(replicas)
    if found is None:
        found = remark
    elif remark is not None:
        found = with_suffix(_with_remark(found, remark), rules)
    else:
        found = with_suffix(found, rules)
    if found is None and snapshot.resolution is not None and snapshot.resolution.dangling_aliases:
        found = failure(
            FailureReason.ADAPTER_MISSING, dangling_aliases_text(snapshot.resolution.dangling_aliases), _DANGLING
        )
    if found is None:
        found = _of_adapter(first_problem(adapters)) or _of_clients(snapshot)
    if found is None:
        return None
    key = snapshot.owner.key
    return failure_status(with_server_remedies(found), Subject(key.kind.value, key.name, key.namespace))


def _with_remark(found: Failure, remark: Failure) -> Failure:
    """Return a failure that also has the remark of a replica."""
    text = f"; also {remark.reason}: {shorten(remark.message, _REMARK_BYTES)}"
    remedies = [*with_server_remedies(found).remedies[:2], *with_server_remedies(remark).remedies[:1]]
    return (with_suffix(found, text) or found).model_copy(update={"remedies": remedies})


def _remark(replicas: Sequence[Replica]) -> Failure | None:
    for replica in replicas:
        remark = replica.state.remark if replica.state is not None and not replica.silent else None
        if remark is not None:
            return failure(remark.reason, f"pod {replica.pod.name}: {remark.message}", *from_hint(remark.hint))
    return None


def _of_clients(snapshot: ServerSnapshot) -> Failure | None:
    """Return the failure of a client that may request an unknown model; None if the selector may still find it."""
    missing = snapshot.resolution.unknown_models if snapshot.resolution is not None else ()
    if not missing or missing[0].may_appear:
        return None
    return failure(FailureReason.ADAPTER_MISSING, unknown_models_text(missing), UNKNOWN_MODELS)


def _of_adapter(problem: AdapterEntry | None) -> Failure | None:
    if problem is None:
        return None
    reason = problem.reason or FailureReason.INTERNAL_ERROR.value
    found = failure(reason, f"adapter {problem.name}: {problem.message or reason}")
    remedies = list(from_hint(problem.fields.get("hint")))
    return found.model_copy(update={"remedies": remedies, "facts": {"adapter": problem.name}})


def previous_rules_text(snapshot: ServerSnapshot, replicas: Sequence[Replica]) -> str:
    """Return how many replicas still answer under previous rules, as the end of a message; empty if none does.

    A pod has the same API keys for its life: for other keys it is replaced, and answers until then.
    """
    if snapshot.spec is None:
        return ""
    wanted = snapshot.spec.access.api_keys_secret_ref
    rules = wanted.name if wanted is not None else NO_KEYS
    known = [replica.state.api_keys for replica in replicas if replica.ready and replica.state is not None]
    old = [each for each in known if each is not None and each != rules]
    if not old:
        return ""
    count_text = "1 replica still answers" if len(old) == 1 else f"{len(old)} replicas still answer"
    how = "without a key" if old[0] == NO_KEYS else f"with the keys of Secret {old[0]}"
    return redact(f"; until replicas with the new spec.access are ready, {count_text} under the previous rules: {how}")


def with_suffix(found: Failure | None, text: str) -> Failure | None:
    """Return a failure with more text at the end of its message."""
    if found is None or not text:
        return found
    return found.model_copy(update={"message": shorten(found.message, MAX_MESSAGE_BYTES - len(text.encode())) + text})
