"""Provide what the operator remembers of objects besides their views: reports, deleted pods, live lists of pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from tunery_api.runspec import TrainerStatus
from tunery_api.serving import Desired, ReplicaState
from tunery_operator.observed.pod import LostPod, PodView


class Report(NamedTuple):
    """The newest report of a Job's pod."""

    status: TrainerStatus
    pod_uid: str
    at: datetime
    """When it came, by the operator's clock."""


class ReplicaReportRecord(NamedTuple):
    """The newest report of a server's replica."""

    state: ReplicaState
    at: datetime
    """When it came, by the operator's clock."""
    digest: bytes
    """Of its body."""


@dataclass(slots=True)
class ObjectState:
    """What is remembered of an object while it is active. Mappings and tuples are replaced, never changed."""

    stale: bool = False
    """The next reconcile reads everything live."""
    progress: Report | None = None
    written_at: float | None = None
    """The monotonic time of the last write of the status."""
    lost: Mapping[str, tuple[LostPod, ...]] = field(default_factory=dict)
    """Its deleted pods, by name of their Job."""
    children: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Digests of a server's children as they were read or written last, by resource and name."""
    children_read_at: float | None = None
    """The monotonic time when all children were read; None: not yet."""
    desired: Desired | None = None
    """What the replicas are to serve, as the server's ConfigMap states it; None: it was not read yet."""
    reports: Mapping[str, ReplicaReportRecord] = field(default_factory=dict)
    """The newest report of each replica, by uid of its pod."""


class Departure(NamedTuple):
    """A pod that left the watch: it has ended, or was deleted."""

    version: str
    lost: LostPod | None
    """What is remembered of the pod if it was deleted; None: no container of it has started."""


@dataclass(slots=True)
class PodList:
    """The newest live list of a Job's pods, and the pods that left the watch."""

    version: str = "0"
    ended: int = 0
    """Pods that had ended when the list was read, as the Job controller counts them."""
    unwatched: Mapping[str, PodView] = field(default_factory=dict)
    """The listed pods that no watch has, by uid: they have ended, or lost their labels."""
    departures: dict[str, Departure] = field(default_factory=dict)
    """By uid of the pod, until a list tells whether it has ended or was deleted."""
