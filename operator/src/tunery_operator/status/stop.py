"""Whether an object ends for good before its work is done: by its spec, or by a deadline that is a stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tunery_api.lorajob import OnStop
from tunery_api.reasons import FailureReason
from tunery_api.status import ConditionStatus, ConditionType
from tunery_operator.status.ledger import deadline_left
from tunery_operator.status.snapshot import Snapshot

REQUESTED: Final = "StopRequested"
"""Reason of Stopped where spec.stop is set."""


_TOO_LONG: Final = "its pods had run for as long as spec.activeDeadlineSeconds allowed"
"""Without the number, which may be another by now."""


@dataclass(frozen=True, slots=True)
class Stop:
    """An end on purpose."""

    reason: str
    """StopRequested or DeadlineExceeded."""
    why: str
    publishes: bool
    """What was trained becomes the adapter, if anything was."""


def stop_of(snapshot: Snapshot) -> Stop | None:
    """Return why an object that has not ended is to end for good; None: it goes on.

    Not where its work is done already, and not where it was deleted. A deadline that has stopped it stays a stop though
    it is raised meanwhile: its Job is gone.
    """
    if snapshot.kept_by or (snapshot.main is not None and snapshot.main.job.complete):
        return None
    if snapshot.stop is not None:
        publishes = snapshot.on_stop != OnStop.DISCARD.value and _has_trained(snapshot)
        return Stop(REQUESTED, snapshot.stop, publishes)
    if snapshot.on_stop != OnStop.PUBLISH.value:
        return None
    left = deadline_left(snapshot)
    if not _is_begun(snapshot) and (left is None or left > 0):
        return None
    return Stop(FailureReason.DEADLINE_EXCEEDED.value, _TOO_LONG, _has_trained(snapshot))


def _has_trained(snapshot: Snapshot) -> bool:
    """Tell whether a pod was ever started that may have stored a checkpoint."""
    status = snapshot.status
    pods = [*snapshot.leftovers, *(snapshot.main.pods if snapshot.main is not None else ())]
    started = any(pod.started_at for pod in pods) or any(pod.started_at for pod in snapshot.lost_pods)
    return started or bool(status.get("attempts") or status.get("checkpoint"))


def _is_begun(snapshot: Snapshot) -> bool:
    conditions = snapshot.status.get("conditions") or ()
    being = (ConditionType.STOPPED.value, ConditionStatus.FALSE.value)
    return any((condition["type"], condition["status"]) == being for condition in conditions)
