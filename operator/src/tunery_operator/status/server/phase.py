"""The phase of a server: one word for people, derived from what its conditions say."""

from __future__ import annotations

from typing import Final

from tunery_api.serverstatus import ServerCondition, ServerPhase
from tunery_operator.status.conditions import Conditions
from tunery_operator.status.server.conditions import NOT_REPORTING, ROLLING_OUT, Seen

_UNDER_WAY: Final = (ServerPhase.PENDING, ServerPhase.STARTING, ServerPhase.UPDATING, ServerPhase.DEGRADED)
"""Not as it should be, and worked at: what stands in the way of a degraded one is tried again and again."""


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
