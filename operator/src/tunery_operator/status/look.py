"""When to look again although nothing happened: what time alone changes in a status."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from tunery_api.status import Phase
from tunery_operator.status.ledger import deadline_left
from tunery_operator.status.snapshot import Attempt, Snapshot

NODE_GRACE_SECONDS: Final = 15.0
"""Time after the end of a pod's grace period from which its node counts as lost."""
WARNING_SECONDS: Final = 10.0
"""Time between two looks at what the cluster says of a pod that does not start."""

_FINAL: Final = frozenset({Phase.SUCCEEDED.value, Phase.FAILED.value})


def next_look(snapshot: Snapshot, status: Mapping[str, Any]) -> float | None:
    """Return the seconds until time alone may change `status`, which was computed from `snapshot`; None: never."""
    if status.get("phase") in _FINAL:
        return None
    return min(_looks(snapshot), default=None)


def _looks(snapshot: Snapshot) -> Iterator[float]:
    attempts = [attempt for attempt in (snapshot.preflight, snapshot.work, snapshot.report) if attempt is not None]
    pods = [pod for attempt in attempts for pod in attempt.pods] + list(snapshot.leftovers)
    left = deadline_left(snapshot)
    if left is not None and any(pod.running for pod in pods):
        yield max(0.0, left)
    for pod in pods:
        if pod.deleted_at is not None and not pod.finished:
            grace = (pod.deleted_at - snapshot.now).total_seconds() + NODE_GRACE_SECONDS
            if grace > 0:
                yield grace
    if snapshot.refusal is not None or any(_does_not_start(attempt) for attempt in attempts):
        yield WARNING_SECONDS


def _does_not_start(attempt: Attempt) -> bool:
    """Tell whether a Job should have a running pod and has none, for a reason that only events can tell."""
    job, pod = attempt.job, attempt.last
    if job.suspend or job.finished:
        return False
    return pod is None or pod.finished or (pod.started_at is None and pod.unschedulable is None)
