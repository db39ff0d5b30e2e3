"""The plan of an AdapterServer: everything that was decided about its pods, nothing that was built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tunery_api.adapterserver import AdapterServerSpec, RolloutSpec
from tunery_api.placement import SchedulingSpec
from tunery_api.serving import ServeSpec
from tunery_operator.plan.job import Platform
from tunery_operator.plan.types import Image, PodExtras, Progress, Resources, SecretMount, VolumeMount
from tunery_operator.views.owner import Owner


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """One server: its Deployment and what belongs to that, but not what it serves."""

    owner: Owner
    serve: ServeSpec
    door: Image
    engine: Image
    arguments: tuple[str, ...]
    """Of `vllm serve`, after the model."""
    environment: Mapping[str, str]
    """Of the engine."""
    resources: Resources
    """Of the engine."""
    secrets: tuple[SecretMount, ...]
    volumes: tuple[VolumeMount, ...]
    scheduling: SchedulingSpec
    kueue_labels: Mapping[str, str]
    progress: Progress | None
    replicas: int
    rollout: RolloutSpec
    network_policy: bool
    pod: PodExtras

    @property
    def digest(self) -> str:
        """Name all of the Deployment but its replicas: with another one it is patched."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The name of the Deployment, the Service, the PodDisruptionBudget and the NetworkPolicy."""
        return server_name(self.owner.key.name)

    @property
    def config_name(self) -> str:
        """The name of the ConfigMap with serve.json, which never changes: another content has another name."""
        raise NotImplementedError

    @property
    def adapters_name(self) -> str:
        """The name of the ConfigMap with adapters.json."""
        return adapters_name(self.owner.key.name)


def server_name(owner: str) -> str:
    """Return the name of a server's Deployment and Service; an owner's name is short enough by a rule of the API."""
    return f"{owner}-server"


def adapters_name(owner: str) -> str:
    """Return the name of the ConfigMap that says what a server serves."""
    return f"{owner}-adapters"


def plan_server(spec: AdapterServerSpec, owner: Owner, platform: Platform) -> ServerPlan:
    """Return the plan of a server; raises InvalidSpec when the platform cannot run the spec."""
    raise NotImplementedError
