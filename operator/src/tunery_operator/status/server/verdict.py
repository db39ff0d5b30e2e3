"""What stands in a server's way now, gravest first; each of it may pass by itself or be mended while it serves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from tunery_api.errors import FieldError
from tunery_api.failures import Failure, Subject
from tunery_api.reasons import FailureReason
from tunery_api.remedies import edit
from tunery_api.scrub import shorten
from tunery_operator.planning.platform_values import with_platform_values
from tunery_operator.planning.resolution import Astray
from tunery_operator.status.diagnosis import failure, failure_status
from tunery_operator.status.server.access import NO_MODELS, no_models_text, with_suffix
from tunery_operator.status.server.adapters import AdapterEntry, first_problem
from tunery_operator.status.server.obstacles import eviction, refused_pods
from tunery_operator.status.server.remedies import from_hint, of_server
from tunery_operator.status.server.replicas import Replica, obstacles
from tunery_operator.status.server.snapshot import ServerSnapshot

_ASTRAY: Final = edit("Correct aliases, or name that adapter in adapters", "aliases", "adapters")
_REMARK_BYTES: Final = 480


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
    if snapshot.rejection is not None:
        yield snapshot.rejection
    if snapshot.deployment is not None and snapshot.deployment.failure is not None:
        yield with_platform_values(refused_pods(snapshot.deployment.failure), snapshot.platform.work)
    yield from obstacles(replicas)
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
    """Return `status.failure`: of the spec, else of the server as a whole, else of an adapter; None: all is well.

    A remark of a replica blocks nothing, and no condition has it: it is shown here, also after a graver failure.
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
    if found is None and snapshot.resolution is not None and snapshot.resolution.astray:
        found = failure(FailureReason.ADAPTER_MISSING, astray_text(snapshot.resolution.astray), _ASTRAY)
    if found is None:
        found = _of_adapter(first_problem(adapters)) or _of_clients(snapshot)
    if found is None:
        return None
    key = snapshot.owner.key
    return failure_status(of_server(found), Subject(key.kind.value, key.name, key.namespace))


def _with_remark(found: Failure, remark: Failure) -> Failure:
    """Return a failure that also has the remark of a replica."""
    text = f"; also {remark.reason}: {shorten(remark.message, _REMARK_BYTES)}"
    remedies = [*of_server(found).remedies[:2], *of_server(remark).remedies[:1]]
    return (with_suffix(found, text) or found).model_copy(update={"remedies": remedies})


def _remark(replicas: Sequence[Replica]) -> Failure | None:
    for replica in replicas:
        remark = replica.state.remark if replica.state is not None and not replica.silent else None
        if remark is not None:
            return failure(remark.reason, f"pod {replica.pod.name}: {remark.message}", *from_hint(remark.hint))
    return None


def _of_clients(snapshot: ServerSnapshot) -> Failure | None:
    """Return that a client may ask for what is not there; where a selector may find it yet that is but a remark."""
    missing = snapshot.resolution.no_models if snapshot.resolution is not None else ()
    if not missing or missing[0].may_come:
        return None
    return failure(FailureReason.ADAPTER_MISSING, no_models_text(missing), NO_MODELS)


def _of_adapter(problem: AdapterEntry | None) -> Failure | None:
    if problem is None:
        return None
    reason = problem.reason or FailureReason.INTERNAL_ERROR.value
    found = failure(reason, f"adapter {problem.name}: {problem.message or reason}")
    remedies = list(from_hint(problem.fields.get("hint")))
    return found.model_copy(update={"remedies": remedies, "facts": {"adapter": problem.name}})
