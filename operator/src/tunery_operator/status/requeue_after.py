"""When to look again although nothing happened: what time alone changes in a status."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from tunery_api.status import FINAL_PHASES, ConditionType, Phase
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.metadata import parse_time
from tunery_operator.status.diagnosis import NODE_GRACE
from tunery_operator.status.ledger import deadline_left
from tunery_operator.status.main_job import until_silence
from tunery_operator.status.snapshot import Snapshot

MIN_SECONDS: Final = 10.0
MAX_SECONDS: Final = 60.0
"""Between two looks at what the cluster says of a pod that does not start, or of a Job that it refuses: the longer
that lasts, the more seldom, since a thousand jobs may wait for the same thing."""
_SHARE: Final = 6
MEETING_SECONDS: Final = 20.0
"""Between two looks at pods that run and have not met yet: the Service that they look for may be gone."""
_STAGES: Final = frozenset({ConditionType.RUNNING.value, ConditionType.PREFLIGHT.value, ConditionType.SEARCHING.value})


def requeue_after(snapshot: Snapshot, status: Mapping[str, Any]) -> float | None:
    """Return the seconds until time alone may change `status`, which was computed from `snapshot`; None: never."""
    if status.get("phase") in FINAL_PHASES:
        return None
    return min(_looks(snapshot, status), default=None)


def _looks(snapshot: Snapshot, status: Mapping[str, Any]) -> Iterator[float]:
    jobs = (snapshot.preflight, snapshot.main, snapshot.report, snapshot.publishing)
    attempts = [attempt for attempt in jobs if attempt is not None]
    pods = [pod for attempt in attempts for pod in attempt.pods] + list(snapshot.leftovers)
    left = deadline_left(snapshot)
    if left is not None and left > 0 and any(pod.running for pod in pods):
        yield left
    silence = until_silence(snapshot)
    if silence is not None and silence >= 0:
        yield silence + 1.0
    yield from _of_search(snapshot)
    for pod in pods:
        if pod.deleted_at is not None and not pod.finished:
            grace = (pod.deleted_at + NODE_GRACE - snapshot.now).total_seconds()
            if grace >= 0:
                yield grace + 1.0
        elif pod.deleting and not pod.finished:
            # Its Job was deleted, and it does not show yet.
            yield MAX_SECONDS
    for attempt in attempts:
        if _does_not_start(attempt):
            started = attempt.job.started_at or parse_time(attempt.job.created)
            yield _pause(snapshot.now, started)
    if status.get("phase") == Phase.STARTING.value and snapshot.main is not None and snapshot.main.meeting:
        yield MEETING_SECONDS
    if snapshot.rejection is not None or snapshot.waiting_for is not None:
        yield _pause(snapshot.now, _since(status))


def _of_search(snapshot: Snapshot) -> Iterator[float]:
    search = snapshot.search
    if search is not None and search.look_again is not None:
        yield max(0.0, (search.look_again - snapshot.now).total_seconds())
    if search is not None and search.blocker is not None:
        yield search.blocker.seconds
    if search is not None and search.owner_changed:
        # That somebody makes it ours again is no news of ours.
        yield MAX_SECONDS
    if search is not None and search.exhausted and not search.alive:
        # What follows, the next look finds out from what this one has written.
        yield 0.0


def _does_not_start(attempt: Attempt) -> bool:
    """Tell whether a Job should have a running pod and has none, for a reason that only events can tell."""
    if attempt.job.suspend or attempt.job.finished:
        return False
    return attempt.missing or any(pod.started_at is None and pod.unschedulable is None for pod in attempt.newest)


def _since(status: Mapping[str, Any]) -> datetime | None:
    """Return since when an object is at the stage at which it is."""
    stages = [c["lastTransitionTime"] for c in status.get("conditions") or () if c["type"] in _STAGES]
    return parse_time(max(stages, default=None))


def _pause(now: datetime, since: datetime | None) -> float:
    waited = (now - since).total_seconds() if since is not None else 0.0
    return min(MAX_SECONDS, max(MIN_SECONDS, waited / _SHARE))
