"""The deadline of an object: the seconds in which its pods ran, and no others."""

from __future__ import annotations

from tunery_api.reasons import FailureReason
from tunery_api.remedies import edit
from tunery_api.status import ConditionType
from tunery_operator.observed.pod import PodView
from tunery_operator.status.builder import StatusBuilder
from tunery_operator.status.diagnosis import failure, is_node_lost
from tunery_operator.status.ledger import deadline_left
from tunery_operator.status.main_job import SAVES
from tunery_operator.status.phase import OUT_OF_TIME
from tunery_operator.status.snapshot import Snapshot


def check_deadline(draft: StatusBuilder) -> bool:
    """End the object once its pods have run for longer than they may, and none stores a checkpoint any more.

    True while that is so, too.
    """
    limit, left = draft.snapshot.deadline_seconds, deadline_left(draft.snapshot)
    if limit is None or left is None or left > 0:
        return False
    pod = _saving(draft.snapshot)
    if pod is not None:
        text = f"the {limit} s of spec.activeDeadlineSeconds are over; pod {pod.name} was told to end{SAVES}"
        draft.conditions.set(ConditionType.RUNNING, True, OUT_OF_TIME, text)
        return True
    ran = int(limit - left)
    text = f"pods ran for {ran} s in all, and spec.activeDeadlineSeconds is {limit}; waiting is not counted"
    remedy = edit(f"Raise activeDeadlineSeconds above {ran} by the time that is still needed", "activeDeadlineSeconds")
    draft.fail(failure(FailureReason.DEADLINE_EXCEEDED, text, remedy))
    return True


def _saving(snapshot: Snapshot) -> PodView | None:
    """Return a pod that was told to end and may store a checkpoint before, which the verdict is to name; else None.

    One on a node that does not answer, or that outlives its grace period, is not waited for.
    """
    if snapshot.main is not None or not snapshot.definition.holds("checkpoint"):
        return None
    pods = (pod for pod in snapshot.leftovers if pod.running and pod.deleting)
    return next((pod for pod in pods if not is_node_lost(pod, snapshot.now)), None)
