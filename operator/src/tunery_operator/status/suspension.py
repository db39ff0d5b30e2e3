"""Show whether a Job waits in a queue, and what must end before an object is suspended or stopped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tunery_api.names import child_name
from tunery_api.runspec import Task
from tunery_api.status import ConditionType
from tunery_operator.observed.attempt import PREEMPTED, Attempt
from tunery_operator.observed.job import JobView
from tunery_operator.observed.pod import PodView, outlives
from tunery_operator.status.builder import StatusBuilder
from tunery_operator.status.snapshot import Snapshot

NO_CONTROLLER: Final = "NoQueueController"
_QUOTA: Final = ConditionType.QUOTA_RESERVED
_WAITING: Final = "WaitingForQuota"
SAVES: Final = ", and may still write a checkpoint"
"""The end of the message about a terminating pod that trains."""


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


def terminating(snapshot: Snapshot) -> Iterator[str]:
    """Yield what must end before an object is suspended or stopped."""
    for attempt in (snapshot.preflight, snapshot.main, snapshot.report):
        saves = attempt is snapshot.main and snapshot.definition.has_status_field("checkpoint")
        yield from _not_ended(attempt, saves=saves) if attempt is not None and not attempt.job.finished else ()
    for name in snapshot.search.not_suspended if snapshot.search is not None else ():
        yield f"trial {name} is not suspended yet"
    for pod in snapshot.leftovers:
        if not pod.finished:
            yield f"pod {pod.name} {_leftover_text(pod, snapshot)}"


def _leftover_text(pod: PodView, snapshot: Snapshot) -> str:
    """Return the state of a pod without its Job: terminating, or left by a client that deleted only the Job."""
    if not pod.deleting:
        return f"of an earlier Job {outlives(pod)}"
    trains = pod.job != child_name(snapshot.owner.key.name, Task.PREFLIGHT.value)
    saves = pod.running and trains and snapshot.definition.has_status_field("checkpoint")
    return f"is terminating{SAVES if saves else ''}"


def _not_ended(attempt: Attempt, *, saves: bool) -> Iterator[str]:
    ending = [pod for pod in attempt.pods if not pod.finished] if attempt.job.suspend else []
    before = SAVES if saves else ""
    yield from (f"pod {pod.name} is terminating{before}" for pod in ending)
    # A queue may start the Job at any time: only a Job that Tunery suspends stays suspended.
    if not attempt.job.suspend or attempt.job.active > 0 or is_queued(attempt.job):
        yield f"Job {attempt.job.name} is not stopped yet"
