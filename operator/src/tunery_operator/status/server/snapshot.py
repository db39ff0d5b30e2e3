"""Provide the snapshot that the status of a server is computed from, and the state of its replicas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from tunery_api.adapterserver import AdapterServerSpec
from tunery_api.errors import FieldError
from tunery_api.failures import Failure
from tunery_api.serverstatus import AdapterState
from tunery_api.serving import SILENT_SECONDS, ReplicaState, ReportedAdapter
from tunery_operator.observed.deployment import DeploymentView, ServerPodView
from tunery_operator.observed.event import ClusterWarning
from tunery_operator.observed.metadata import Owner, parse_time
from tunery_operator.planning.platform_values import NO_VALUES, PlatformValues, with_platform_values
from tunery_operator.planning.resolution import Resolution
from tunery_operator.status.diagnosis import FRESH, NODE_GRACE
from tunery_operator.status.server.pod_failures import pod_blocker, waits_for_capacity

SILENCE: Final = timedelta(seconds=SILENT_SECONDS)


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """The latest report of a replica, and its time."""

    state: ReplicaState
    at: datetime


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
    """One AdapterServer with its children and reports."""

    owner: Owner
    spec: AdapterServerSpec | None = None
    """None: it is invalid, as `errors` report."""
    replicas: int = 1
    """spec.replicas, also of an invalid spec."""
    certificate_fault: str | None = None
    """Why its pods cannot trust the certificate of the operator's endpoint; None: they can."""
    errors: tuple[FieldError, ...] = ()
    """The errors of the spec; its children are not changed."""
    planning_errors: tuple[FieldError, ...] = ()
    """Why an accepted spec cannot be planned with today's rules and settings."""
    conflict: str | None = None
    """The foreign object that has the name of a child."""
    rejection: Failure | None = None
    """The API server's answer to a request for a child that it rejected."""
    waiting_for: str | None = None
    """What its Deployment waits for, such as that of an earlier server of the same name that still ends."""
    resolution: Resolution | None = None
    """None: the spec is invalid."""
    deployment: DeploymentView | None = None
    pods: tuple[ServerPodView, ...] = ()
    """The pods of the Deployment."""
    reports: Mapping[str, ReplicaReport] = field(default_factory=dict)
    """By uid of the pod."""
    warnings: Mapping[str, tuple[ClusterWarning, ...]] = field(default_factory=dict)
    """The warning events of pods that do not start, by uid of the pod, oldest first."""
    platform: PlatformValues = NO_VALUES
    """The values of the chart that its pods use."""
    watching_since: datetime | None = None
    """Since when this operator accepts reports."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica."""

    pod: ServerPodView
    state: ReplicaState | None
    """Its latest report; None: it has not reported to this operator."""
    silent: bool
    """It gets requests and has not reported for too long."""
    silent_in: float | None
    """Seconds until it counts as silent; None: it is silent, or gets no requests."""
    blocker: Failure | None
    """Why it gets no requests."""
    adapters: Mapping[str, ReportedAdapter]
    """The reported adapters, by name."""
    loaded: int = 0
    """The number of adapters that its engine has loaded."""
    predecessor: ServerPodView | None = None
    """The terminating pod whose resources it waits for; None: none."""

    @property
    def ready(self) -> bool:
        """Return whether its pod is Ready."""
        return self.pod.ready

    @property
    def runs(self) -> bool:
        """Return whether its gateway has started: until then its pod waits for a node or downloads the base model."""
        return self.pod.ready or self.state is not None or self.pod.phase != "Pending"

    @property
    def starting(self) -> bool:
        """Return whether it is starting for the first time."""
        return not self.pod.ready and not any(container.restarts for container in self.pod.containers)

    @property
    def waiting_message(self) -> str | None:
        """Return a message about the ending pod that it waits for; None if it waits for none."""
        if self.predecessor is None:
            return None
        return f"pod {self.pod.name} waits for pod {self.predecessor.name}, which is ending, to make room"

    @property
    def served(self) -> int:
        """The number of adapters that it serves, cold ones included."""
        if not self.ready:
            return 0
        return sum(item.state in (AdapterState.SERVED, AdapterState.COLD) for item in self.adapters.values())


def find_replicas(snapshot: ServerSnapshot, now: datetime) -> list[Replica]:
    """Return the replicas, oldest first, without terminating and finished pods."""
    live = _live(snapshot)
    others = any(pod.ready for pod in live)
    return [_replica(snapshot, pod, now, others) for pod in live]


def _live(snapshot: ServerSnapshot) -> list[ServerPodView]:
    live = [pod for pod in snapshot.pods if not pod.deleting and not pod.finished]
    return sorted(live, key=lambda pod: (pod.created, pod.name))


def seconds_frozen(snapshot: ServerSnapshot, before: Mapping[str, Any], now: datetime) -> float:
    """Return how long the status `before` stays as it is after a restart of the operator; 0: it is computed.

    It stays until each of its replicas has reported to this operator, for SILENCE at most, while nothing else changes:
    neither the spec, nor which replicas there are, nor which of them are ready.
    """
    left = (snapshot.watching_since + SILENCE - now).total_seconds() if snapshot.watching_since is not None else 0.0
    known = {entry["pod"]: bool(entry.get("ready")) for entry in before.get("replicaStatuses") or ()}
    live = _live(snapshot)
    reported = all(pod.uid in snapshot.reports for pod in live)
    if left <= 0 or reported or before.get("observedGeneration") != snapshot.owner.generation:
        return 0.0
    return left if known == {pod.name: pod.ready for pod in live} else 0.0


def _replica(snapshot: ServerSnapshot, pod: ServerPodView, now: datetime, others: bool) -> Replica:
    report = snapshot.reports.get(pod.uid)
    since = [parse_time(pod.created), snapshot.watching_since, report.at if report is not None else None]
    last = max((time for time in since if time is not None), default=now)
    left = (last + SILENCE - now).total_seconds()
    silent = pod.ready and left < 0
    state = report.state if report is not None else None
    predecessor = _predecessor(pod, snapshot.pods, now)
    warning = _fresh(snapshot.warnings.get(pod.uid, ()), now)
    found = None if predecessor is not None else pod_blocker(pod, warning, during_rollout=others)
    return Replica(
        pod,
        state,
        silent,
        left if pod.ready and not silent else None,
        found and with_platform_values(found, snapshot.platform.work),
        {item.name: item for item in state.adapters} if state is not None else {},
        _loaded(state) if pod.ready else 0,
        predecessor,
    )


def _predecessor(pod: ServerPodView, pods: Sequence[ServerPodView], now: datetime) -> ServerPodView | None:
    """Return the terminating pod that frees resources first, for a pod that no node fits; None: none does."""
    if not waits_for_capacity(pod):
        return None
    ending = [
        other for other in pods if other.node is not None and not other.finished and seconds_until_gone(other, now) > 0
    ]
    return min(ending, key=lambda other: seconds_until_gone(other, now), default=None)


def seconds_until_gone(pod: ServerPodView, now: datetime) -> float:
    """Return the seconds until a terminating pod is gone at the latest; 0: overdue, or not terminating."""
    return (
        max(0.0, (pod.deletion_deadline + NODE_GRACE - now).total_seconds())
        if pod.deletion_deadline is not None
        else 0.0
    )


def _fresh(warnings: Sequence[ClusterWarning], now: datetime) -> ClusterWarning | None:
    """Return the newest warning that is fresh: the cluster repeats one that still holds."""
    dated = [warning for warning in warnings if (parse_time(warning.time) or now) > now - FRESH]
    return dated[-1] if dated else None


def _loaded(state: ReplicaState | None) -> int:
    return 0 if state is None else sum(item.state is AdapterState.SERVED for item in state.adapters)


def replica_blockers(replicas: Sequence[Replica]) -> Iterator[Failure]:
    """Yield why replicas get no requests, newest replicas first: older ones were ready once."""
    for replica in reversed(replicas):
        if replica.blocker is not None:
            yield replica.blocker
