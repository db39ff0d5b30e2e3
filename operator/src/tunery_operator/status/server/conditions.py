"""Set the conditions of a server, and derive its phase from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from tunery_api.errors import FieldError
from tunery_api.failures import Failure
from tunery_api.reasons import FailureReason
from tunery_api.serverstatus import AdapterState, ServerCondition, ServerPhase
from tunery_operator.observed.event import SERVER_STOPPED
from tunery_operator.planning.resolution import DanglingAlias, PendingAdapter, Resolution, UnknownModel
from tunery_operator.status.conditions import Conditions
from tunery_operator.status.server.adapters import ANSWERED, AdapterEntry, first_problem
from tunery_operator.status.server.snapshot import Replica, ServerSnapshot

NOT_REPORTING: Final = "NotReporting"
STOPPED: Final = SERVER_STOPPED
ROLLING_OUT: Final = "RollingOut"
WAITING: Final = "WaitingForAdapters"
PREDECESSOR: Final = "WaitingForPredecessor"
_NAMED: Final = 5
"""Names in a message; the others are counted."""
_UNDER_WAY: Final = (ServerPhase.PENDING, ServerPhase.STARTING, ServerPhase.UPDATING, ServerPhase.DEGRADED)
"""The phases with Reconciling=True: the operator retries what blocks a degraded server."""


class ServerState(NamedTuple):
    """The state of a server that its conditions follow from."""

    snapshot: ServerSnapshot
    replicas: Sequence[Replica]
    adapters: Sequence[AdapterEntry]
    server_blocker: Failure | None
    previous_rules_text: str = ""
    """How many replicas still answer under previous rules, as the end of a message."""

    @property
    def ready(self) -> int:
        """The number of replicas that get requests."""
        return sum(replica.ready for replica in self.replicas)

    @property
    def stopped(self) -> bool:
        """Return whether spec.replicas is 0."""
        return self.snapshot.replicas == 0

    @property
    def waiting_message(self) -> str | None:
        """Return a message about what a replica waits for; None if none waits."""
        return next((replica.waiting_message for replica in self.replicas if replica.waiting_message is not None), None)

    @property
    def rolling_out(self) -> bool:
        """Return whether replicas are created or replaced."""
        deployment = self.snapshot.deployment
        if deployment is None or not deployment.settled:
            return True
        return len(self.replicas) != self.snapshot.replicas or any(replica.starting for replica in self.replicas)


def names(items: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(items[:_NAMED])
    return shown if len(items) <= _NAMED else f"{shown} and {len(items) - _NAMED} more"


def set_conditions(conditions: Conditions, server: ServerState) -> None:
    """Set all conditions of a server."""
    _validated(conditions, server.snapshot)
    if server.snapshot.resolution is not None:
        _resolved(conditions, server.snapshot.resolution)
    elif server.snapshot.errors:
        text = "the spec is not valid; what was served before is still served"
        conditions.set(ServerCondition.ADAPTERS_RESOLVED, None, FailureReason.INVALID_SPEC.value, text)
    _available(conditions, server)
    _served(conditions, server)
    _progressing(conditions, server)


def _validated(conditions: Conditions, snapshot: ServerSnapshot) -> None:
    if snapshot.errors:
        text = as_text(snapshot.errors)
        conditions.set(ServerCondition.VALIDATED, False, FailureReason.INVALID_SPEC.value, text)
    else:
        conditions.set(ServerCondition.VALIDATED, True, "SpecValid")


def _resolved(conditions: Conditions, resolution: Resolution) -> None:
    type_ = ServerCondition.ADAPTERS_RESOLVED
    if resolution.dangling_aliases:
        conditions.set(
            type_, False, FailureReason.ADAPTER_MISSING.value, dangling_aliases_text(resolution.dangling_aliases)
        )
    elif resolution.rejected:
        first = resolution.rejected[0]
        others = names([item.name for item in resolution.rejected])
        conditions.set(type_, False, first.reason.value, f"cannot be served: {others}; {first.name}: {first.message}")
    elif resolution.pending:
        also = f"; {unknown_models_text(resolution.unknown_models)}" if resolution.unknown_models else ""
        conditions.set(type_, False, WAITING, _waits_for(resolution.pending) + also)
    elif resolution.retained:
        conditions.set(type_, True, "AdaptersKept", "; ".join(item.message for item in resolution.retained[:_NAMED]))
    elif resolution.unknown_models:
        certain = not resolution.unknown_models[0].may_appear
        reason = FailureReason.ADAPTER_MISSING.value if certain else "ModelsMissing"
        conditions.set(type_, not certain, reason, unknown_models_text(resolution.unknown_models))
    else:
        conditions.set(type_, True, "AdaptersResolved")


def _waits_for(pending: Sequence[PendingAdapter]) -> str:
    more = len(pending) - _NAMED
    text = "; ".join(item.message for item in pending[:_NAMED])
    return text + (f"; and {more} more" if more > 0 else "")


def _available(conditions: Conditions, server: ServerState) -> None:
    type_ = ServerCondition.AVAILABLE
    if server.ready:
        conditions.set(type_, True, "Available", f"{server.ready} of {server.snapshot.replicas} replicas are ready")
    elif server.stopped:
        conditions.set(type_, False, STOPPED, "spec.replicas is 0")
    elif server.server_blocker is not None:
        conditions.set(type_, False, str(server.server_blocker.reason), server.server_blocker.message)
    else:
        conditions.set(type_, False, "Starting", "no replica is ready yet")


def _served(conditions: Conditions, server: ServerState) -> None:
    type_ = ServerCondition.ADAPTERS_SERVED
    silent = [replica.pod.name for replica in server.replicas if replica.silent]
    problem = first_problem(server.adapters)
    others = [item for item in server.adapters if item.state not in ANSWERED]
    pending = server.snapshot.resolution.pending if server.snapshot.resolution is not None else ()
    if server.stopped:
        conditions.set(type_, None, STOPPED, "spec.replicas is 0")
    elif silent:
        text = f"no report for more than 30 seconds: {names(silent)}"
        if (fault := server.snapshot.certificate_fault) is not None:
            text += (
                f". No pod can trust the certificate of the operator's endpoint: {fault}. Ask a cluster admin "
                "to correct progress.certificate in the chart's values"
            )
        conditions.set(type_, None, NOT_REPORTING, text)
    elif not server.adapters:
        conditions.set(type_, True, "NoAdapters", "the spec names no adapter")
    elif problem is not None:
        reason = problem.reason or FailureReason.INTERNAL_ERROR.value
        conditions.set(type_, False, reason, f"adapter {problem.name}: {problem.message or reason}")
    elif not server.ready:
        conditions.set(type_, False, "NotAvailable", "no replica is ready yet")
    elif others and all(item.state is AdapterState.WAITING for item in others):
        conditions.set(type_, False, WAITING, _waits_for(pending))
    elif others:
        conditions.set(type_, False, "Loading", f"not yet served by every replica: {names([o.name for o in others])}")
    else:
        conditions.set(type_, True, "AdaptersServed")


def _progressing(conditions: Conditions, server: ServerState) -> None:
    """Set whether replicas are created or replaced, and what that waits for."""
    type_, snapshot = ServerCondition.PROGRESSING, server.snapshot
    stalled = snapshot.deployment.stalled if snapshot.deployment is not None else None
    if snapshot.errors:
        conditions.set(type_, False, FailureReason.INVALID_SPEC.value, "the replicas are not changed")
    elif server.server_blocker is not None:
        conditions.set(type_, server.rolling_out, str(server.server_blocker.reason), server.server_blocker.message)
    elif snapshot.waiting_for is not None:
        conditions.set(type_, True, PREDECESSOR, snapshot.waiting_for)
    elif server.waiting_message is not None:
        conditions.set(type_, True, PREDECESSOR, server.waiting_message)
    elif server.rolling_out and server.stopped:
        conditions.set(type_, True, "Stopping", "the last replicas are draining")
    elif server.rolling_out:
        conditions.set(
            type_, True, ROLLING_OUT, (stalled or "replicas are created or replaced") + server.previous_rules_text
        )
    else:
        conditions.set(type_, False, "RolledOut", "all replicas match the spec")


def set_kstatus_conditions(conditions: Conditions, phase: ServerPhase) -> None:
    """Set the conditions that kstatus reads: Reconciling and Stalled, each only while it is True."""
    reconciling, stalled = ServerCondition.RECONCILING, ServerCondition.STALLED
    if phase in _UNDER_WAY:
        conditions.set(reconciling, True, phase.value)
    else:
        conditions.drop(reconciling)
    if phase is ServerPhase.INVALID:
        text = conditions.message(ServerCondition.VALIDATED)
        conditions.set(stalled, True, conditions.reason(ServerCondition.VALIDATED) or phase.value, text)
    else:
        conditions.drop(stalled)


def server_phase(conditions: Conditions, server: ServerState, *, blocked: bool) -> ServerPhase:
    """Return the phase; the first check that holds wins. `blocked`: something blocks the server."""
    available = conditions.is_true(ServerCondition.AVAILABLE)
    rolling = conditions.reason(ServerCondition.PROGRESSING) == ROLLING_OUT or server.waiting_message is not None
    checks = (
        (conditions.is_false(ServerCondition.VALIDATED), ServerPhase.INVALID),
        (server.stopped, ServerPhase.STOPPED),
        (not available and server.snapshot.deployment is None, ServerPhase.PENDING),
        (not available, ServerPhase.STARTING),
        (blocked, ServerPhase.DEGRADED),
        (conditions.reason(ServerCondition.ADAPTERS_SERVED) == NOT_REPORTING, ServerPhase.DEGRADED),
        (rolling, ServerPhase.UPDATING),
        (server.ready < server.snapshot.replicas, ServerPhase.DEGRADED),
        # No problem, but not all adapters are served: one is being loaded, or its object is not finished.
        (conditions.is_false(ServerCondition.ADAPTERS_SERVED), ServerPhase.UPDATING),
    )
    return next((phase for holds, phase in checks if holds), ServerPhase.READY)


def as_text(errors: Sequence[FieldError]) -> str:
    """Return the errors of a spec as one text."""
    return "; ".join(str(error) for error in errors)


def dangling_aliases_text(dangling_aliases: Sequence[DanglingAlias]) -> str:
    """Return a message about the aliases whose target is no adapter of the server."""
    first = dangling_aliases[0]
    others = len(dangling_aliases) - 1
    more = f"; {others} more target{' is' if others == 1 else 's are'} missing" if others else ""
    return f"alias {first.alias} points to {first.adapter}, which is not an adapter of this server{more}"


def unknown_models_text(found: Sequence[UnknownModel]) -> str:
    """Return a message about the models of spec.access.clients that the server does not have."""
    first, more = found[0], len(found) - 1
    what = "not a model of this server now" if first.may_appear else "no base model, adapter or alias of this server"
    text = f"spec.access.clients lets {first.client} request {first.model}, which is {what}{first.suggestion}"
    others = "1 more name is" if more == 1 else f"{more} more names are"
    return text if not more else f"{text}{'' if first.suggestion else ';'} {others} unknown"
