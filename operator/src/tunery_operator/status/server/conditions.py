"""Set the conditions of a server, and derive its phase from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from tunery_api.errors import FieldError
from tunery_api.failures import Failure
from tunery_api.reasons import FailureReason
from tunery_api.serverstatus import AdapterState, ServerCondition, ServerPhase
from tunery_operator.observed.event import SERVER_STOPPED
from tunery_operator.planning.resolution import Astray, NoModel, Resolution, Waiting
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
"""Not as it should be, and worked at: what stands in the way of a degraded one is tried again and again."""


class Seen(NamedTuple):
    """What was found out about a server."""

    snapshot: ServerSnapshot
    replicas: Sequence[Replica]
    adapters: Sequence[AdapterEntry]
    hindrance: Failure | None
    old_rules: str = ""
    """How many replicas still answer under other rules of access than the spec's; see old_rules."""

    @property
    def ready(self) -> int:
        """How many replicas get requests."""
        return sum(replica.ready for replica in self.replicas)

    @property
    def stopped(self) -> bool:
        """Tell whether no replica is wanted."""
        return self.snapshot.replicas == 0

    @property
    def waits(self) -> str | None:
        """Return what a replica waits for that comes by itself, in words."""
        return next((replica.waits for replica in self.replicas if replica.waits is not None), None)

    @property
    def moving(self) -> bool:
        """Tell whether replicas are made or replaced."""
        deployment = self.snapshot.deployment
        if deployment is None or not deployment.settled:
            return True
        return len(self.replicas) != self.snapshot.replicas or any(replica.starting for replica in self.replicas)


def names(items: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(items[:_NAMED])
    return shown if len(items) <= _NAMED else f"{shown} and {len(items) - _NAMED} more"


def set_conditions(conditions: Conditions, seen: Seen) -> None:
    """Set all conditions of a server."""
    _validated(conditions, seen.snapshot)
    if seen.snapshot.resolution is not None:
        _resolved(conditions, seen.snapshot.resolution)
    elif seen.snapshot.errors:
        text = "the spec is not valid; what was served before stays as it is"
        conditions.set(ServerCondition.ADAPTERS_RESOLVED, None, FailureReason.INVALID_SPEC.value, text)
    _available(conditions, seen)
    _served(conditions, seen)
    _progressing(conditions, seen)


def _validated(conditions: Conditions, snapshot: ServerSnapshot) -> None:
    if snapshot.errors:
        text = as_text(snapshot.errors)
        conditions.set(ServerCondition.VALIDATED, False, FailureReason.INVALID_SPEC.value, text)
    else:
        conditions.set(ServerCondition.VALIDATED, True, "SpecValid")


def _resolved(conditions: Conditions, resolution: Resolution) -> None:
    type_ = ServerCondition.ADAPTERS_RESOLVED
    if resolution.astray:
        conditions.set(type_, False, FailureReason.ADAPTER_MISSING.value, astray_text(resolution.astray))
    elif resolution.refused:
        first = resolution.refused[0]
        others = names([item.name for item in resolution.refused])
        conditions.set(type_, False, first.reason.value, f"not to be served: {others}; {first.name}: {first.message}")
    elif resolution.waiting:
        also = f"; {no_models_text(resolution.no_models)}" if resolution.no_models else ""
        conditions.set(type_, False, WAITING, _waits_for(resolution.waiting) + also)
    elif resolution.kept:
        conditions.set(type_, True, "AdaptersKept", "; ".join(item.message for item in resolution.kept[:_NAMED]))
    elif resolution.no_models:
        certain = not resolution.no_models[0].may_come
        reason = FailureReason.ADAPTER_MISSING.value if certain else "ModelsMissing"
        conditions.set(type_, not certain, reason, no_models_text(resolution.no_models))
    else:
        conditions.set(type_, True, "AdaptersResolved")


def _waits_for(waiting: Sequence[Waiting]) -> str:
    more = len(waiting) - _NAMED
    text = "; ".join(item.message for item in waiting[:_NAMED])
    return text + (f"; and {more} more" if more > 0 else "")


def _available(conditions: Conditions, seen: Seen) -> None:
    type_ = ServerCondition.AVAILABLE
    if seen.ready:
        conditions.set(type_, True, "Available", f"{seen.ready} of {seen.snapshot.replicas} replicas answer")
    elif seen.stopped:
        conditions.set(type_, False, STOPPED, "spec.replicas is 0")
    elif seen.hindrance is not None:
        conditions.set(type_, False, str(seen.hindrance.reason), seen.hindrance.message)
    else:
        conditions.set(type_, False, "Starting", "no replica answers yet")


def _served(conditions: Conditions, seen: Seen) -> None:
    type_ = ServerCondition.ADAPTERS_SERVED
    silent = [replica.pod.name for replica in seen.replicas if replica.silent]
    problem = first_problem(seen.adapters)
    others = [item for item in seen.adapters if item.state not in ANSWERED]
    waiting = seen.snapshot.resolution.waiting if seen.snapshot.resolution is not None else ()
    if seen.stopped:
        conditions.set(type_, None, STOPPED, "spec.replicas is 0")
    elif silent:
        text = f"for more than 30 seconds nothing was heard of {names(silent)}"
        if (distrust := seen.snapshot.distrust) is not None:
            text += (
                f": no pod can trust the certificate of the operator's endpoint: {distrust}. Ask whoever runs Tunery "
                "to correct it (progress.certificate in the chart's values)"
            )
        conditions.set(type_, None, NOT_REPORTING, text)
    elif not seen.adapters:
        conditions.set(type_, True, "NoAdapters", "no adapter is wanted")
    elif problem is not None:
        reason = problem.reason or FailureReason.INTERNAL_ERROR.value
        conditions.set(type_, False, reason, f"adapter {problem.name}: {problem.message or reason}")
    elif not seen.ready:
        conditions.set(type_, False, "NotAvailable", "no replica answers yet")
    elif others and all(item.state is AdapterState.WAITING for item in others):
        conditions.set(type_, False, WAITING, _waits_for(waiting))
    elif others:
        conditions.set(type_, False, "Loading", f"not served on every replica yet: {names([o.name for o in others])}")
    else:
        conditions.set(type_, True, "AdaptersServed")


def _progressing(conditions: Conditions, seen: Seen) -> None:
    """Set whether replicas are made or replaced, and what that waits for."""
    type_, snapshot = ServerCondition.PROGRESSING, seen.snapshot
    stalled = snapshot.deployment.stalled if snapshot.deployment is not None else None
    if snapshot.errors:
        conditions.set(type_, False, FailureReason.INVALID_SPEC.value, "the replicas are left as they are")
    elif seen.hindrance is not None:
        conditions.set(type_, seen.moving, str(seen.hindrance.reason), seen.hindrance.message)
    elif snapshot.waiting_for is not None:
        conditions.set(type_, True, PREDECESSOR, snapshot.waiting_for)
    elif seen.waits is not None:
        conditions.set(type_, True, PREDECESSOR, seen.waits)
    elif seen.moving and seen.stopped:
        conditions.set(type_, True, "Stopping", "the last replicas finish their requests")
    elif seen.moving:
        conditions.set(type_, True, ROLLING_OUT, (stalled or "replicas are made or replaced") + seen.old_rules)
    else:
        conditions.set(type_, False, "RolledOut", "all replicas are as the spec wants them")


def set_tools_words(conditions: Conditions, phase: ServerPhase) -> None:
    """Set what kstatus reads of a server: Reconciling and Stalled, each only while it is True."""
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


def server_phase(conditions: Conditions, seen: Seen, *, hindered: bool) -> ServerPhase:
    """Return the phase; the first line that holds wins. `hindered`: something stands in the way."""
    available = conditions.is_true(ServerCondition.AVAILABLE)
    rolling = conditions.reason(ServerCondition.PROGRESSING) == ROLLING_OUT or seen.waits is not None
    checks = (
        (conditions.is_false(ServerCondition.VALIDATED), ServerPhase.INVALID),
        (seen.stopped, ServerPhase.STOPPED),
        (not available and seen.snapshot.deployment is None, ServerPhase.PENDING),
        (not available, ServerPhase.STARTING),
        (hindered, ServerPhase.DEGRADED),
        (conditions.reason(ServerCondition.ADAPTERS_SERVED) == NOT_REPORTING, ServerPhase.DEGRADED),
        (rolling, ServerPhase.UPDATING),
        (seen.ready < seen.snapshot.replicas, ServerPhase.DEGRADED),
        # Nothing is wrong, and what is asked for is not served yet: an adapter is loaded, or its object still works.
        (conditions.is_false(ServerCondition.ADAPTERS_SERVED), ServerPhase.UPDATING),
    )
    return next((phase for holds, phase in checks if holds), ServerPhase.READY)


def as_text(errors: Sequence[FieldError]) -> str:
    """Return what is wrong with a spec, as one text."""
    return "; ".join(str(error) for error in errors)


def astray_text(astray: Sequence[Astray]) -> str:
    """Return which aliases lead to what is no adapter of the server."""
    first = astray[0]
    others = len(astray) - 1
    more = f"; {others} more target{' of aliases is' if others == 1 else 's of aliases are'} none" if others else ""
    return f"alias {first.alias} leads to {first.adapter}, which is no adapter of this server{more}"


def no_models_text(found: Sequence[NoModel]) -> str:
    """Return which models clients may ask for that are none of the server's."""
    first, more = found[0], len(found) - 1
    what = "no model of this server now" if first.may_come else "neither base, adapter nor alias of this server"
    text = f"spec.access.clients lets {first.client} ask for {first.model}, which is {what}{first.near}"
    leads = "1 more name leads" if more == 1 else f"{more} more names lead"
    return text if not more else f"{text}{'' if first.near else ';'} {leads} nowhere"
