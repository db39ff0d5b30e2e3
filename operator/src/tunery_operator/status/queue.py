"""Show whether a queue such as Kueue's holds a Job: the condition QuotaReserved."""

from __future__ import annotations

from typing import Final

from tunery_api.status import ConditionType
from tunery_operator.observed.attempt import PREEMPTED
from tunery_operator.observed.job import JobView
from tunery_operator.status.builder import StatusBuilder

NO_CONTROLLER: Final = "NoQueueController"
_QUOTA: Final = ConditionType.QUOTA_RESERVED
_WAITING: Final = "WaitingForQuota"


def is_queued(job: JobView) -> bool:
    """Return whether a queue holds the Job: it is suspended, names a queue, and Tunery did not suspend it."""
    return job.suspend and job.queue is not None and not job.suspended_by_us and not job.finished


def check_queue(builder: StatusBuilder, job: JobView) -> None:
    """Set QuotaReserved by the Job itself: an admission controller may have set the queue.

    A Job that was suspended by another client and is resumed was admitted by a queue controller.
    """
    if job.queue is None or job.finished:
        return
    if is_queued(job):
        _show_queued(builder, job.queue)
    elif job.suspend:
        release_quota(builder)
    elif job.admitted or builder.conditions.reason(_QUOTA) in (_WAITING, PREEMPTED):
        builder.conditions.set(_QUOTA, True, "QuotaReserved", f"queue {job.queue}")
    elif not builder.conditions.is_true(_QUOTA):
        text = (
            f"Job {job.name} names queue {job.queue}, but no queue controller is known to have admitted it; "
            "if Kueue is not installed, the queue has no effect"
        )
        builder.conditions.set(_QUOTA, None, NO_CONTROLLER, text)


def _show_queued(builder: StatusBuilder, queue: str) -> None:
    if builder.conditions.is_true(_QUOTA) or builder.conditions.reason(_QUOTA) == PREEMPTED:
        builder.conditions.set(_QUOTA, False, PREEMPTED, f"queue {queue} took the quota back, and will start it again")
    else:
        builder.conditions.set(_QUOTA, False, _WAITING, f"waiting for admission by queue {queue}")


def release_quota(builder: StatusBuilder) -> None:
    """Show that no quota is held: the Job is suspended or gone."""
    if builder.conditions.status(_QUOTA) is not None:
        builder.conditions.set(_QUOTA, None, "Released", "no Job waits in a queue or holds quota")
