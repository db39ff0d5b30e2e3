"""How long pods ran: what of it has been written down, and what runs now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from tunery_operator.status.podview import PodView
from tunery_operator.status.snapshot import Snapshot


def run_seconds(status: Mapping[str, Any], pods: Iterable[PodView], now: datetime) -> float:
    """Return how many seconds all attempts ran until now: those that have ended, and those that run."""
    closed = {item["uid"] for item in status.get("attemptHistory") or () if item.get("endTime")}
    running = sum(_seconds(pod, now) for pod in pods if pod.uid not in closed)
    return float(status.get("runSeconds") or 0) + running


def deadline_left(snapshot: Snapshot) -> float | None:
    """Return how many seconds the pods of an object may still run; None: without end."""
    if snapshot.deadline_seconds is None:
        return None
    pods = (*(snapshot.work.pods if snapshot.work else ()), *snapshot.leftovers)
    return snapshot.deadline_seconds - run_seconds(snapshot.status, pods, snapshot.now)


def _seconds(pod: PodView, now: datetime) -> float:
    if pod.started_at is None:
        return 0.0
    return max(0.0, ((pod.finished_at or now) - pod.started_at).total_seconds())
