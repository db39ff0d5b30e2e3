"""The phase of a server: one word for people, derived from what its conditions say."""

from __future__ import annotations

from tunery_api.serverstatus import ServerCondition, ServerPhase
from tunery_operator.status.conditions import Conditions
from tunery_operator.status.server.conditions import NOT_REPORTING, ROLLING_OUT, Seen


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
