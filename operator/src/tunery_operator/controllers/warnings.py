"""Provide the warning events of Jobs and pods that do not start; a pod's own status lacks these causes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from typing import Final, Literal, NamedTuple

from tunery_operator.client.client import KubeClient
from tunery_operator.errors import ApiFailure
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.deployment import ServerPodView
from tunery_operator.observed.event import ClusterWarning
from tunery_operator.observed.metadata import parse_time
from tunery_operator.observed.pod import PodView
from tunery_operator.runtime.reader import read_warnings

JOB_SECONDS: Final = 5.0
"""A Job without a pod for longer has not started."""
POD_SECONDS: Final = 15.0
"""A pod on its node without a container for longer has not started."""
READ_SECONDS: Final = 9.0
"""Least time between two reads for the same Job or pod; the status is computed every 10 s."""
_KEEP_SECONDS: Final = 60.0
_MOST_PODS: Final = 4
"""Pods of several nodes whose events are read: each takes a call."""
_CAUSES: Final = {
    "Job": frozenset({"FailedCreate"}),
    "Pod": frozenset(
        {
            "FailedMount",
            "FailedAttachVolume",
            "FailedMapVolume",
            "FailedCreatePodSandBox",
            "FailedCreatePodContainer",
            "NetworkNotReady",
        }
    ),
}
"""Reasons that name a cause; the pod's own status has the others."""

logger = logging.getLogger(__name__)


class Unstarted(NamedTuple):
    """A Job or pod that does not start, and since when."""

    about: Literal["Job", "Pod"]
    uid: str
    since: datetime


class Warnings:
    """Reads the events of what does not start, at most once in READ_SECONDS for each Job or pod."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._known: dict[str, tuple[float, tuple[ClusterWarning, ...]]] = {}
        self._lock = threading.Lock()

    def of(self, client: KubeClient, namespace: str, item: Unstarted) -> tuple[ClusterWarning, ...]:
        """Return its warnings since then, oldest first; none if the events can't be read."""
        now = self._monotonic()
        with self._lock:
            self._known = {uid: entry for uid, entry in self._known.items() if now - entry[0] < _KEEP_SECONDS}
            known = self._known.get(item.uid)
        if known is not None and now - known[0] < READ_SECONDS:
            return known[1]
        try:
            found = read_warnings(client, namespace, item.uid, item.about)
        except ApiFailure as error:
            logger.warning("Can't read events: kind=%s object=%s/%s: %s", item.about, namespace, item.uid, error)
            return known[1] if known is not None else ()
        causes = tuple(warning for warning in found if _names_cause(warning, item))
        with self._lock:
            self._known[item.uid] = (now, causes)
        return causes


def _names_cause(warning: ClusterWarning, item: Unstarted) -> bool:
    time = parse_time(warning.time)
    # Events have whole seconds.
    return warning.reason in _CAUSES[item.about] and time is not None and time >= item.since.replace(microsecond=0)


def find_unstarted(attempt: Attempt, now: datetime) -> list[Unstarted]:
    """Return what of an attempt should have started by now; of several pods the first few."""
    if attempt.job.finished or attempt.job.suspend:
        return []
    hanging = [pod for pod in attempt.newest if _hangs(pod, now)][:_MOST_PODS]
    pods = [Unstarted("Pod", pod.uid, _created(pod, now)) for pod in hanging]
    job = _missing_pod(attempt, now) if attempt.missing else None
    return pods if job is None else [*pods, job]


def _hangs(pod: PodView, now: datetime) -> bool:
    """Return whether a pod has been on a node without a container for longer than volumes should take."""
    placed = pod.node is not None and pod.started_at is None and not pod.finished
    waits = pod.waiting_reason in (None, "ContainerCreating", "PodInitializing")
    return placed and waits and (now - _created(pod, now)).total_seconds() > POD_SECONDS


def _missing_pod(attempt: Attempt, now: datetime) -> Unstarted | None:
    job, pod = attempt.job, attempt.last
    moments = (parse_time(job.created), job.started_at, pod.finished_at if pod is not None else None)
    since = max((moment for moment in moments if moment is not None), default=now)
    return Unstarted("Job", job.uid, since) if (now - since).total_seconds() > JOB_SECONDS else None


def server_warnings(
    warnings: Warnings, client: KubeClient, namespace: str, pods: Iterable[ServerPodView], now: datetime
) -> dict[str, tuple[ClusterWarning, ...]]:
    """Return the warnings of a server's pods that do not start, by uid."""
    found = {pod.uid: parse_time(pod.created) or now for pod in pods if pod.unstarted}
    unstarted = {uid: since for uid, since in found.items() if (now - since).total_seconds() > POD_SECONDS}
    return {uid: warnings.of(client, namespace, Unstarted("Pod", uid, since)) for uid, since in unstarted.items()}


def _created(pod: PodView, now: datetime) -> datetime:
    return parse_time(pod.created) or now


def with_warnings(
    warnings: Warnings, client: KubeClient, namespace: str, attempt: Attempt | None, now: datetime
) -> Attempt | None:
    """Return the attempt with the warnings of what does not start."""
    unstarted = find_unstarted(attempt, now) if attempt is not None else []
    if attempt is None or not unstarted:
        return attempt
    found = [warning for item in unstarted for warning in warnings.of(client, namespace, item)]
    return replace(attempt, warnings=tuple(found))
