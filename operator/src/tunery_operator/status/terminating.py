"""What of an object has not ended yet though it was told to."""

from __future__ import annotations

from collections.abc import Iterator

from tunery_api.names import child_name
from tunery_api.runspec import Task
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.pod import PodView, outlives
from tunery_operator.status.main_job import SAVES
from tunery_operator.status.queueing import is_queued
from tunery_operator.status.snapshot import Snapshot


def terminating(snapshot: Snapshot) -> Iterator[str]:
    """Yield what must end before an object is suspended or stopped."""
    for attempt in (snapshot.preflight, snapshot.main, snapshot.report):
        saves = attempt is snapshot.main and snapshot.definition.holds("checkpoint")
        yield from _not_ended(attempt, saves=saves) if attempt is not None and not attempt.job.finished else ()
    for name in snapshot.search.not_held if snapshot.search is not None else ():
        yield f"trial {name} is not suspended yet"
    for pod in snapshot.leftovers:
        if not pod.finished:
            yield f"pod {pod.name} {_what_it_does(pod, snapshot)}"


def _what_it_does(pod: PodView, snapshot: Snapshot) -> str:
    """Return what a pod does whose Job is gone: it ends, or somebody has deleted the Job without its pods."""
    if not pod.deleting:
        return f"of an earlier Job {outlives(pod)}"
    trains = pod.job != child_name(snapshot.owner.key.name, Task.PREFLIGHT.value)
    saves = pod.running and trains and snapshot.definition.holds("checkpoint")
    return f"was told to end{SAVES if saves else ''}"


def _not_ended(attempt: Attempt, *, saves: bool) -> Iterator[str]:
    ending = [pod for pod in attempt.pods if not pod.finished] if attempt.job.suspend else []
    before = SAVES if saves else ""
    yield from (f"pod {pod.name} ends{before}" for pod in ending)
    # A queue that holds the Job may start it at any time: only what we hold stays put.
    if not attempt.job.suspend or attempt.job.active > 0 or is_queued(attempt.job):
        yield f"Job {attempt.job.name} is not stopped yet"
