"""The plan of one Job: everything that was decided, nothing that was built."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol

from tunery_api.inputs import OutputSpec
from tunery_api.names import nodes_service
from tunery_api.placement import SchedulingSpec
from tunery_api.runspec import RunSpec, Task
from tunery_operator.config import CaBundle, PodSecurity
from tunery_operator.observed.job import authority_name
from tunery_operator.observed.metadata import Owner

TRAINER: Final = "tunery_trainer"
SERVER: Final = "tunery_server"
"""The programs of the two images."""


class AskedResources(Protocol):
    """What the spec of every kind says of the resources of the pod that does the work."""

    @property
    def cpu(self) -> str:
        """CPU of the container."""
        ...

    @property
    def memory(self) -> str:
        """Memory of the container."""
        ...

    @property
    def ephemeral_storage(self) -> str:
        """Disk of the container."""
        ...

    @property
    def gpus(self) -> int:
        """GPUs of the container."""
        ...

    @property
    def gpu_resource(self) -> str:
        """Name of the extended resource that they are."""
        ...


class JobSpec(Protocol):
    """What the spec of every kind says of its Jobs."""

    @property
    def output(self) -> OutputSpec:
        """Where the result is published."""
        ...

    @property
    def resources(self) -> AskedResources:
        """Resources of the pod that does the work."""
        ...

    @property
    def scheduling(self) -> SchedulingSpec:
        """Where its pods run."""
        ...

    @property
    def retries(self) -> int:
        """Failed attempts that are tried again."""
        ...

    @property
    def suspend(self) -> bool:
        """No pods are wanted."""
        ...


@dataclass(frozen=True, slots=True)
class SecretMount:
    """A Secret of the same namespace, mounted as files."""

    purpose: str
    name: str
    path: str
    key: str | None = None
    """The only one of its keys that is mounted; None: all of them are."""


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """A claim or a ConfigMap of the same namespace, mounted read-only but for the cache that preflight fills."""

    purpose: str
    path: str
    claim: str | None = None
    config_map: str | None = None
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Resources:
    """What the container asks for; requests equal limits."""

    cpu: str
    memory: str
    ephemeral_storage: str
    gpus: int = 0
    gpu_resource: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How the pod reaches the operator, and the certificate authority that it trusts for that."""

    url: str
    ca_pem: str
    """Empty: not known, as the Secret of the certificate is not good."""

    @property
    def authority(self) -> str:
        """A short name of the certificate authority."""
        return authority_name(self.ca_pem)


@dataclass(frozen=True, slots=True)
class Image:
    """The container's image and how it is pulled."""

    name: str
    pull_policy: str
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PodExtras:
    """What the platform, and the owner through its labels, say of a pod apart from where it runs."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    shm_size: str = "1Gi"
    resources: Mapping[str, str] = field(default_factory=dict)
    """Extended resources beside what the manifest asks for."""
    security: PodSecurity = field(default_factory=PodSecurity)
    ca_bundle: CaBundle = field(default_factory=CaBundle)


@dataclass(frozen=True, slots=True)
class JobPlan:
    """One batch Job and its pod, with what that is to do."""

    owner: Owner
    task: Task
    name: str
    run: RunSpec
    image: Image
    resources: Resources
    secrets: tuple[SecretMount, ...]
    volumes: tuple[VolumeMount, ...]
    scheduling: SchedulingSpec
    retries: int
    suspend: bool
    kueue_labels: Mapping[str, str]
    progress: Progress | None
    settings: str
    """Digest of the fields of the spec that may change while no pod runs: a Job of another digest is made anew."""
    pod: PodExtras = field(default_factory=PodExtras)
    grace_seconds: int = 30
    program: str = TRAINER
    """The Python package that the container runs."""
    nodes: int = 1
    """Pods that work together; more than one are numbered, and find each other by `service`."""

    @property
    def service(self) -> str:
        """Name of the Service by which several pods find each other."""
        return nodes_service(self.owner.uid)

    @property
    def digest(self) -> str:
        """Name what the platform says of the pods, and where they run: a Job whose pod waits follows another one.

        What the run is to do is no part of it, nor its queue, nor the authority that its reports trust.
        """
        pod = self.pod
        # Only where there are any: the plans of all others are what they were.
        more = {"extended": dict(pod.resources)} if pod.resources else {}
        return digest_of(
            {
                **more,
                "image": asdict(self.image),
                "resources": asdict(self.resources),
                "scheduling": self.scheduling.to_json_dict(),
                "labels": [dict(pod.labels), dict(pod.annotations)],
                "pod": [dict(pod.env), pod.shm_size, pod.security.model_dump(mode="json")],
                "authorities": pod.ca_bundle.model_dump(mode="json"),
                "progress": self.progress and self.progress.url,
            }
        )


def digest_of(value: Any) -> str:
    """Return a name of a tree of plain values: equal ones have the same."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
