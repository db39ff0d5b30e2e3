"""What stands in a server's way now, gravest first; each of it may pass by itself or be mended while it serves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from tunery_api.errors import FieldError
from tunery_api.reasons import FailureReason
from tunery_api.runspec import Failure
from tunery_api.scrub import MAX_MESSAGE_BYTES, shorten
from tunery_operator.plan.resolution import Astray
from tunery_operator.status.diagnosis import failure
from tunery_operator.status.server.access import NO_MODELS_HINT, besides, no_models_text, with_told
from tunery_operator.status.server.adapters import Standing, first_problem
from tunery_operator.status.server.hints import hint_for
from tunery_operator.status.server.obstacles import eviction, refused_pods
from tunery_operator.status.server.replicas import Replica, obstacles
from tunery_operator.status.server.snapshot import ServerSnapshot
from tunery_operator.status.whose import named

_ASTRAY_HINT: Final = (
    "Correct spec.aliases, name that adapter in spec.adapters, or give its object the labels that "
    "spec.adapterSelector looks for."
)

_HINT_BYTES: Final = 640
_HINT_BESIDES: Final = 380
"""Bytes of what to do first, where there is something to do besides, and of that; both and a space have room."""


def as_text(errors: Sequence[FieldError]) -> str:
    """Return what is wrong with a spec, as one text."""
    return "; ".join(str(error) for error in errors)


def astray_text(astray: Sequence[Astray]) -> str:
    """Return which aliases lead to what is no adapter of the server."""
    first = astray[0]
    others = len(astray) - 1
    more = f"; {others} more target{' of aliases is' if others == 1 else 's of aliases are'} none" if others else ""
    return f"alias {first.alias} leads to {first.adapter}, which is no adapter of this server{more}"


def hindrance(snapshot: ServerSnapshot, replicas: Sequence[Replica]) -> Failure | None:
    """Return what keeps the Deployment or a replica from getting on; None while nothing does."""
    return next(_hindrances(snapshot, replicas), None)


def _hindrances(snapshot: ServerSnapshot, replicas: Sequence[Replica]) -> Iterator[Failure]:
    if snapshot.conflict is not None:
        yield failure(FailureReason.NAME_CONFLICT, snapshot.conflict)
    if snapshot.unplannable:
        yield failure(FailureReason.PLATFORM_CHANGED, as_text(snapshot.unplannable))
    if snapshot.refusal is not None:
        yield failure(snapshot.refusal.reason, snapshot.refusal.message, snapshot.refusal.hint)
    if snapshot.deployment is not None and snapshot.deployment.failure is not None:
        yield named(refused_pods(snapshot.deployment.failure), snapshot.says)
    yield from obstacles(replicas)
    if sum(replica.ready for replica in replicas) < snapshot.replicas:
        yield from filter(None, [eviction(snapshot.pods)])
    for replica in replicas:
        state = replica.state
        if state is not None and state.reason is not None and not replica.silent:
            yield failure(state.reason, f"pod {replica.pod.name}: {state.message or state.reason}", state.hint)


def failure_block(
    snapshot: ServerSnapshot,
    found: Failure | None,
    replicas: Sequence[Replica],
    adapters: Sequence[Standing],
    rules: str = "",
) -> dict[str, Any] | None:
    """Return `status.failure`: of the spec, else of the server as a whole, else of an adapter; None: all is well.

    What a replica remarks on hinders nothing, so that no condition speaks of it: here it is told, also beside what is
    graver, as is what `old_rules` says.
    """
    if snapshot.errors:
        found, rules = failure(FailureReason.INVALID_SPEC, as_text(snapshot.errors)), ""
    remark = _remark(replicas)
    if found is None:
        found = remark
    elif remark is not None:
        hint = f"{shorten(hint_for(found), _HINT_BYTES)} {shorten(hint_for(remark), _HINT_BESIDES)}"
        found = with_told(failure(found.reason, found.message, hint), besides(remark) + rules)
    else:
        found = with_told(found, rules)
    if found is None and snapshot.resolution is not None and snapshot.resolution.astray:
        found = failure(FailureReason.ADAPTER_MISSING, astray_text(snapshot.resolution.astray), _ASTRAY_HINT)
    if found is None:
        found = _of_adapter(first_problem(adapters)) or _of_clients(snapshot)
    if found is None:
        return None
    hint = shorten(hint_for(found), MAX_MESSAGE_BYTES)
    return {"reason": str(found.reason), "message": found.message, "hint": hint}


def _remark(replicas: Sequence[Replica]) -> Failure | None:
    for replica in replicas:
        remark = replica.state.remark if replica.state is not None and not replica.silent else None
        if remark is not None:
            return failure(remark.reason, f"pod {replica.pod.name}: {remark.message}", remark.hint)
    return None


def _of_clients(snapshot: ServerSnapshot) -> Failure | None:
    """Return that a client may ask for what is not there; where a selector may find it yet that is but a remark."""
    missing = snapshot.resolution.no_models if snapshot.resolution is not None else ()
    if not missing or missing[0].may_come:
        return None
    return failure(FailureReason.ADAPTER_MISSING, no_models_text(missing), NO_MODELS_HINT)


def _of_adapter(problem: Standing | None) -> Failure | None:
    if problem is None:
        return None
    reason = problem.reason or FailureReason.INTERNAL_ERROR.value
    return failure(reason, f"adapter {problem.name}: {problem.message or reason}", problem.fields.get("hint"))
