"""Kueue, as far as it shows on a Job: queued, admitted, preempted, or not there at all."""

from __future__ import annotations

from typing import Final

from tunery_api.status import ConditionType
from tunery_operator.observed.attempt_history import PREEMPTED
from tunery_operator.observed.job import JobView
from tunery_operator.status.builder import StatusBuilder

NO_CONTROLLER: Final = "NoQueueController"
_QUOTA: Final = ConditionType.QUOTA_RESERVED
_WAITING: Final = "WaitingForQuota"


def is_queued(job: JobView) -> bool:
    """Tell whether a queue holds the Job: it is suspended, names a queue, and not we suspended it."""
    return job.suspend and job.queue is not None and not job.suspended_by_us and not job.finished


def check_queue(draft: StatusBuilder, job: JobView) -> None:
    """Set QuotaReserved by what the Job itself shows: whoever lets it in may have named the queue, too.

    A Job that was held, not by us, and no more is was let in by a queue controller, even if it leaves no marks.
    """
    if job.queue is None or job.finished:
        return
    if is_queued(job):
        _wait(draft, job.queue)
    elif job.suspend:
        release_quota(draft)
    elif job.admitted or draft.conditions.reason(_QUOTA) in (_WAITING, PREEMPTED):
        draft.conditions.set(_QUOTA, True, "QuotaReserved", f"queue {job.queue}")
    elif not draft.conditions.is_true(_QUOTA):
        text = (
            f"Job {job.name} names queue {job.queue}, and nothing shows that a queue controller let it start; "
            "if Kueue is not installed, the queue has no effect"
        )
        draft.conditions.set(_QUOTA, None, NO_CONTROLLER, text)


def _wait(draft: StatusBuilder, queue: str) -> None:
    if draft.conditions.is_true(_QUOTA) or draft.conditions.reason(_QUOTA) == PREEMPTED:
        draft.conditions.set(_QUOTA, False, PREEMPTED, f"queue {queue} took the quota back, and will start it again")
    else:
        draft.conditions.set(_QUOTA, False, _WAITING, f"queue {queue} has no room yet")


def release_quota(draft: StatusBuilder) -> None:
    """Say that no quota is held: the Job that had it is suspended, or is no more."""
    if draft.conditions.status(_QUOTA) is not None:
        draft.conditions.set(_QUOTA, None, "Released", "no Job waits in a queue or holds quota")
