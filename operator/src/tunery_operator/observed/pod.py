"""Read a pod of a Job into a view: the state of its container, and why it does not run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from tunery_api.names import KIND_LABEL, OWNER_LABEL, OWNER_UID_LABEL, PROGRESS_URL_ENV, container_name
from tunery_operator.observed.metadata import controller_of, parse_time

_JOB_NAME_LABEL: Final = "batch.kubernetes.io/job-name"
_INDEX_ANNOTATION: Final = "batch.kubernetes.io/job-completion-index"
_JOB_UID_LABEL: Final = "batch.kubernetes.io/controller-uid"


@dataclass(frozen=True, slots=True)
class PodView:
    """One pod of a Job."""

    name: str
    namespace: str
    uid: str
    job: str
    """Name of the Job that made it."""
    job_uid: str
    owner_uid: str
    """The uid of the Tunery object that it belongs to."""
    version: str
    created: str
    """RFC 3339 in UTC: sorts as text."""
    phase: str
    node: str | None
    scheduler: str
    """Name of the scheduler that is to place it."""
    deleting: bool
    deleted_at: datetime | None
    """When its grace period ends, once it is being deleted."""
    unanswered: bool
    """Its node does not answer, and the pod is not being deleted yet."""
    status_reason: str | None
    status_message: str
    """The kubelet's message of an eviction."""
    waiting_reason: str | None
    waiting_message: str
    unschedulable: str | None
    """The scheduler's message while no node fits."""
    disruption: str | None
    """The reason of the DisruptionTarget condition."""
    disrupted_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    exit_code: int | None
    exit_reason: str | None
    termination_message: str
    reports_to: str | None
    """The URL that its container posts progress to; None: it posts none."""
    index: int | None = None
    """Its index among the pods that train together; pod 0 reports for all. None: it trains alone."""
    owner_labels: tuple[str, str, str] = ("", "", "")
    """Namespace, kind, and name of the object that it belongs to, as its labels state them."""

    @property
    def running(self) -> bool:
        """Return whether the container runs now."""
        return self.started_at is not None and self.finished_at is None and self.phase == "Running"

    @property
    def finished(self) -> bool:
        """Return whether the pod has ended."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def failed(self) -> bool:
        """Return whether the pod has failed."""
        return self.phase == "Failed"


def outlives(pod: PodView, where: str = "") -> str:
    """Return a message about a pod that outlives its Job and is not being deleted, with the command that ends it."""
    does = "runs on without it" if pod.running else "is still there"
    return f"{does}{where}; kubectl delete pod {pod.name} -n {pod.namespace} would end it"


@dataclass(frozen=True, slots=True)
class LostPod:
    """What is remembered of a pod that no longer exists."""

    uid: str
    name: str
    created: str
    seconds: float
    """How long its container ran."""
    started_at: datetime | None = None
    node: str | None = None
    disruption: str | None = None
    index: int | None = None
    exit_code: int | None = None


def lost_pod(pod: PodView, now: datetime) -> LostPod | None:
    """Return what to remember of a pod that was deleted by `now`; None if its container has not started."""
    if pod.started_at is None:
        return None
    ended = pod.finished_at or min(now, pod.deleted_at or now)
    return LostPod(
        uid=pod.uid,
        name=pod.name,
        created=pod.created,
        seconds=max(0.0, (ended - pod.started_at).total_seconds()),
        started_at=pod.started_at,
        node=pod.node,
        disruption=pod.disruption,
        index=pod.index,
        exit_code=pod.exit_code,
    )


def parse_pod(body: Mapping[str, Any], seen: datetime) -> PodView:
    """Return the view of a pod of the API server, as it was `seen` first by the operator's own clock."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    controller, labels = controller_of(body), meta.get("labels") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    disrupted = conditions.get("DisruptionTarget") or {}
    name = container_name(labels.get(KIND_LABEL, ""))
    state = _container_state(status, name)
    terminated, waiting = state.get("terminated") or {}, state.get("waiting") or {}
    started, finished = _times(meta, terminated or state.get("running") or {}, seen)
    return PodView(
        name=meta["name"],
        namespace=sys.intern(meta["namespace"]),
        uid=meta["uid"],
        # Labels outlast the Job: if it is deleted without its pods, they lose their owner reference.
        job=controller.get("name") or labels.get(_JOB_NAME_LABEL, ""),
        job_uid=controller.get("uid") or labels.get(_JOB_UID_LABEL, ""),
        owner_uid=labels.get(OWNER_UID_LABEL, ""),
        version=meta.get("resourceVersion", ""),
        created=meta.get("creationTimestamp") or "",
        phase=status.get("phase") or "Pending",
        node=spec.get("nodeName"),
        scheduler=spec.get("schedulerName") or "",
        deleting="deletionTimestamp" in meta,
        deleted_at=parse_time(meta.get("deletionTimestamp")),
        unanswered=_is_unanswered(status.get("phase"), conditions),
        status_reason=status.get("reason"),
        status_message=status.get("message") or "",
        waiting_reason=waiting.get("reason"),
        waiting_message=waiting.get("message") or "",
        unschedulable=unschedulable_message(conditions.get("PodScheduled") or {}),
        disruption=disruption_reason(disrupted),
        disrupted_at=parse_time(disrupted.get("lastTransitionTime")),
        started_at=started,
        finished_at=finished,
        exit_code=terminated.get("exitCode"),
        exit_reason=terminated.get("reason"),
        termination_message=terminated.get("message") or "",
        reports_to=_reports_to(spec, name),
        index=_index(meta),
        owner_labels=(sys.intern(meta["namespace"]), labels.get(KIND_LABEL, ""), labels.get(OWNER_LABEL, "")),
    )


def _index(meta: Mapping[str, Any]) -> int | None:
    """Return the number that the Job controller gives to each pod of an Indexed Job."""
    text = (meta.get("annotations") or {}).get(_INDEX_ANNOTATION, "")
    return int(text) if text.isdecimal() else None


def _times(
    meta: Mapping[str, Any], state: Mapping[str, Any], seen: datetime
) -> tuple[datetime | None, datetime | None]:
    """Return when a container started and finished, corrected for the node's clock.

    If the clock is behind, the container starts before its pod was created: both times are moved, and the duration
    stays. If it is ahead, a time is later than the moment at which it was seen: that moment is the limit.
    """
    created, started, finished = map(
        parse_time, (meta.get("creationTimestamp"), state.get("startedAt"), state.get("finishedAt"))
    )
    behind = max(timedelta(), created - started) if created is not None and started is not None else timedelta()
    return started and min(started + behind, seen), finished and min(finished + behind, seen)


def _is_unanswered(phase: str | None, conditions: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether the node controller has set Ready to False: the pod has no readiness gates, so its kubelet sets
    Ready only as its containers are.
    """
    ready, containers = (conditions.get(type_, {}).get("status") for type_ in ("Ready", "ContainersReady"))
    return phase == "Running" and ready == "False" and containers == "True"


def _container_state(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the state of the container of that name; the kubelet sorts them, and others may have been injected."""
    statuses = status.get("containerStatuses") or ()
    return next((item.get("state") or {} for item in statuses if item.get("name") == name), {})


def _reports_to(spec: Mapping[str, Any], name: str) -> str | None:
    """Return the progress URL of the container of that name; interned, since all pods have the same."""
    urls = _values(_container(spec, name), PROGRESS_URL_ENV)
    return next((sys.intern(url) for url in urls if url), None)


def _container(spec: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next((each for each in spec.get("containers") or () if each.get("name") == name), {})


def _values(container: Mapping[str, Any], variable: str) -> Iterator[str | None]:
    return (each.get("value") for each in container.get("env") or () if each.get("name") == variable)


def unschedulable_message(condition: Mapping[str, Any]) -> str | None:
    """Return the scheduler's message from a PodScheduled condition; None unless no node fits."""
    if condition.get("status") == "False" and condition.get("reason") == "Unschedulable":
        return condition.get("message") or "no node fits"
    return None


def disruption_reason(condition: Mapping[str, Any]) -> str | None:
    """Return the reason of a DisruptionTarget condition; None unless it is true."""
    return (condition.get("reason") or "Unknown") if condition.get("status") == "True" else None
