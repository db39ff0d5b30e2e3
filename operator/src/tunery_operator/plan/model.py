"""The plan of one Job: everything that was decided, nothing that was built."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tunery_api.names import API_VERSION
from tunery_api.placement import SchedulingSpec
from tunery_api.runspec import RunSpec, Task
from tunery_operator.settings import PodSecurity


class Kind(StrEnum):
    """The two kinds that are reconciled."""

    LORAJOB = "LoRAJob"
    ADAPTERMERGE = "AdapterMerge"

    @property
    def plural(self) -> str:
        """The name of the resource, as in a URL."""
        return f"{self.value.lower()}s"


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Names one object to reconcile."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.value} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Owner:
    """The object that children belong to."""

    key: Key
    uid: str
    generation: int
    labels: Mapping[str, str]
    annotations: Mapping[str, str] = field(default_factory=dict)
    settings: str = ""
    """Digest of the fields of its spec that may change while no pod runs."""

    @property
    def api_version(self) -> str:
        """The group and version that owner references name."""
        return API_VERSION


@dataclass(frozen=True, slots=True)
class SecretMount:
    """A Secret of the same namespace, mounted as files."""

    purpose: str
    name: str
    path: str


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
    """How the pod reaches the operator; `ca_pem` is the certificate authority that it trusts for that."""

    url: str
    ca_pem: str

    @property
    def authority(self) -> str:
        """A short name of the certificate authority."""
        return authority_name(self.ca_pem)


def authority_name(ca_pem: str) -> str:
    """Return a short name of a certificate authority: a digest of its PEM."""
    return hashlib.sha256(ca_pem.encode()).hexdigest()[:16]


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
    security: PodSecurity = field(default_factory=PodSecurity)


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


def parse_owner(kind: Kind, body: Mapping[str, Any]) -> Owner:
    """Return the owner that an object of the API server is."""
    meta = body["metadata"]
    key = Key(kind, meta["namespace"], meta["name"])
    labels, annotations = meta.get("labels") or {}, meta.get("annotations") or {}
    settings = settings_digest(body.get("spec") or {})
    return Owner(key, meta["uid"], int(meta.get("generation", 1)), labels, annotations, settings)


def settings_digest(spec: Mapping[str, Any]) -> str:
    """Return a digest of what a raw spec says in the fields that may change while no pod runs."""
    resources = spec.get("resources") or {}
    fields = [spec.get("retries"), spec.get("scheduling"), resources.get("memory"), resources.get("ephemeralStorage")]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
