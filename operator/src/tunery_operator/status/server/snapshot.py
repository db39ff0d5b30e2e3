"""One server at one moment: all that its status follows from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tunery_api.adapterserver import AdapterServerSpec
from tunery_api.errors import FieldError
from tunery_api.failures import Failure
from tunery_api.serving import ReplicaState
from tunery_operator.observed.attempt import ClusterWarning
from tunery_operator.observed.deployment import DeploymentView, ServerPodView
from tunery_operator.observed.metadata import Owner
from tunery_operator.planning.platform_values import NO_VALUES, PlatformValues
from tunery_operator.planning.resolution import Resolution


@dataclass(frozen=True, slots=True)
class Heard:
    """The newest report of a replica, and when it came."""

    state: ReplicaState
    at: datetime


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
    """One AdapterServer, what was made for it, and what is known about it."""

    owner: Owner
    spec: AdapterServerSpec | None = None
    """None: it is not valid, and `errors` say why."""
    replicas: int = 1
    """spec.replicas, also of a spec that is not valid."""
    distrust: str | None = None
    """Why its pods cannot trust the certificate of the operator's endpoint; None: they can."""
    errors: tuple[FieldError, ...] = ()
    """What is wrong with the spec; its children are left as they are."""
    unplannable: tuple[FieldError, ...] = ()
    """Why an accepted spec cannot be planned with today's rules and settings."""
    conflict: str | None = None
    """What bears the name of a child and is not ours."""
    rejection: Failure | None = None
    """The API server's answer to a request for a child that it rejected."""
    waiting_for: str | None = None
    """What its Deployment waits for, such as that of an earlier server of the same name that still ends."""
    resolution: Resolution | None = None
    """None: it could not be resolved, as the spec is not valid."""
    deployment: DeploymentView | None = None
    pods: tuple[ServerPodView, ...] = ()
    """Those that belong to the Deployment."""
    reports: Mapping[str, Heard] = field(default_factory=dict)
    """By uid of the pod."""
    warnings: Mapping[str, tuple[ClusterWarning, ...]] = field(default_factory=dict)
    """What the cluster says against pods that do not come up, by their uid, oldest first."""
    platform: PlatformValues = NO_VALUES
    """The values of the chart that its pods use."""
    watching_since: datetime | None = None
    """Since when this operator takes reports: none can have come before."""
