"""List what must end before an object is suspended or stopped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tunery_api.names import child_name
from tunery_api.runspec import Task
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.pod import PodView, outlives
from tunery_operator.status.queue import is_queued
from tunery_operator.status.snapshot import Snapshot

SAVES: Final = ", and may still write a checkpoint"
"""The end of the message about a terminating pod that trains."""


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
