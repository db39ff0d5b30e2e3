"""How often the work was started, when first, and what it cost in GPU time."""

from __future__ import annotations

from collections.abc import Iterable

from tunery_operator.status.clock import format_time
from tunery_operator.status.draft import Draft
from tunery_operator.status.podview import LostPod, PodView
from tunery_operator.status.snapshot import Attempt


def count_attempts(draft: Draft, attempt: Attempt) -> None:
    """Set attempts, podName, startTime and gpuSeconds; none of them ever goes back."""
    started = [pod for pod in attempt.pods if pod.started_at is not None]
    new = _new_pods(started, draft.fields.get("podName"), draft.snapshot.lost_pods)
    before = int(draft.fields.get("attempts") or 0)
    # A pod that came and went between two looks is known to the Job controller only.
    counted = max(before + len(new), len(started))
    draft.put(attempts=counted or None)
    if started:
        draft.put(podName=started[-1].name)
        first = min(pod.started_at for pod in started if pod.started_at is not None)
        draft.fields.setdefault("startTime", format_time(first))
    _add_gpu_seconds(draft, attempt)


def _new_pods(started: list[PodView], last_counted: str | None, lost: Iterable[LostPod]) -> list[PodView]:
    """Return the pods that started after the one that was counted last.

    Attempts follow each other. Where that one is gone and nobody saw it go, a pod that still runs is the only one
    that is surely not yet counted.
    """
    names = [pod.name for pod in started]
    if last_counted is None:
        return started
    if last_counted in names:
        return started[names.index(last_counted) + 1 :]
    gone = next((pod for pod in lost if pod.name == last_counted), None)
    if gone is not None:
        return [pod for pod in started if pod.created >= gone.created]
    return [pod for pod in started if not pod.finished]


def _add_gpu_seconds(draft: Draft, attempt: Attempt) -> None:
    snapshot = draft.snapshot
    if snapshot.gpus == 0 or attempt.last is None:
        return
    present = {pod.uid: _seconds(pod) for pod in attempt.pods}
    lost = sum(pod.seconds for pod in snapshot.lost_pods if pod.uid not in present)
    total = int((sum(present.values()) + lost) * snapshot.gpus)
    # A running pod's time is added once it has ended: else each look would write the status.
    if total:
        draft.put(gpuSeconds=max(total, int(draft.fields.get("gpuSeconds") or 0)))


def _seconds(pod: PodView) -> float:
    if pod.started_at is None or pod.finished_at is None:
        return 0.0
    return (pod.finished_at - pod.started_at).total_seconds()
