"""Plan the pods of every kind: images, resources, mounts, scheduling, labels and environment."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from tunery_api.adapterserver import EngineResources
from tunery_api.batchinference import BatchResources
from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.fields import parse_quantity
from tunery_api.inputs import LocalReference
from tunery_api.jobs import PodResources, ResourcesSpec, SchedulingSpec, Toleration
from tunery_api.names import GROUP, SECRETS_DIR, TOPOLOGY_ANNOTATIONS, VOLUMES_DIR
from tunery_api.runspec import MountedSecret
from tunery_operator.config import CaBundle, Placement, PlatformResources, PodSecurity, Settings
from tunery_operator.observed.metadata import Owner

_OF_OTHERS: Final = (f"{GROUP}/", "batch.kubernetes.io/", "kubectl.kubernetes.io/")
_SHM_OF_A_GPU: Final = 2**30
_OF_JOBS: Final = ("job-name", "controller-uid")
"""Labels that Kubernetes gives to the pods of a Job; it rejects a Job whose pods have another value of them."""


@dataclass(frozen=True, slots=True)
class TenantSecret:
    """A Secret of the same namespace, mounted as files."""

    purpose: str
    name: str
    path: str
    key: str | None = None
    """The only one of its keys that is mounted; None: all of them are."""


@dataclass(frozen=True, slots=True)
class TenantVolume:
    """A claim or a ConfigMap of the same namespace, mounted read-only but for the cache that preflight fills."""

    purpose: str
    path: str
    claim: str | None = None
    config_map: str | None = None
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources of a container; requests equal limits."""

    cpu: str
    memory: str
    ephemeral_storage: str
    gpus: int = 0
    gpu_resource: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """The container's image and how it is pulled."""

    name: str
    pull_policy: str
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PodExtras:
    """The settings of a pod from the platform and from labels of the owner, without its scheduling."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    shm_size: str = "1Gi"
    resources: Mapping[str, str] = field(default_factory=dict)
    """Extended resources in addition to those of the manifest."""
    security: PodSecurity = field(default_factory=PodSecurity)
    ca_bundle: CaBundle = field(default_factory=CaBundle)


class SecretSource(NamedTuple):
    """A Secret, or none, and the field that names it."""

    secret: LocalReference | None
    field: str


class Access(NamedTuple):
    """A place that a container opens: what for, its URI, the Secret that opens it, and the field that names that.

    Of the Secret all keys are mounted, or only `key`.
    """

    purpose: str
    uri: str | None
    secret: LocalReference | None
    field: str
    key: str | None = None


def adapter_access(purpose: str, uri: str | None, own: SecretSource, inherited: SecretSource) -> Access:
    """Return the access to an adapter: by its own Secret, else by that of an output, which opens no hub."""
    if own.secret is not None or (uri or "").startswith("hf://"):
        return Access(purpose, uri, own.secret, own.field)
    return Access(purpose, uri, inherited.secret, inherited.field)


def secret_mounts(accesses: Iterable[Access]) -> tuple[TenantSecret, ...]:
    """Return a mount for each access that names a Secret."""
    return tuple(
        TenantSecret(access.purpose, access.secret.name, f"{SECRETS_DIR}/{access.purpose}", access.key)
        for access in accesses
        if access.secret is not None
    )


def volume_mounts(accesses: Iterable[Access]) -> tuple[TenantVolume, ...]:
    """Return a mount for each access whose URI is pvc:// or configmap://."""
    return tuple(itertools.chain.from_iterable(map(_volume, accesses)))


def _volume(access: Access) -> Iterable[TenantVolume]:
    scheme, _, rest = (access.uri or "").partition("://")
    name, path = rest.partition("/")[0], f"{VOLUMES_DIR}/{access.purpose}"
    if scheme == "pvc":
        yield TenantVolume(access.purpose, path, claim=name)
    elif scheme == "configmap":
        yield TenantVolume(access.purpose, path, config_map=name)


def run_secrets(accesses: Iterable[Access]) -> dict[str, MountedSecret]:
    """Return the Secrets for run.json, by purpose."""
    return {
        access.purpose: MountedSecret(
            name=access.secret.name, path=f"{SECRETS_DIR}/{access.purpose}", field=access.field
        )
        for access in accesses
        if access.secret is not None
    }


def run_volumes(mounts: Iterable[TenantVolume]) -> dict[str, str]:
    """Return the volumes for run.json, by purpose."""
    return {mount.purpose: mount.path for mount in mounts}


def image(settings: Settings) -> Image:
    """Return the trainer image."""
    return _image(settings.trainer.image, settings)


def server_image(settings: Settings) -> Image:
    """Return the image of gateway and batches; raises InvalidSpec if the platform names none."""
    name = settings.serving.server.image
    if not name:
        raise InvalidSpec([FieldError("spec", "the platform serves nothing: its serving.server.image is empty")])
    return _image(name, settings)


def _image(name: str, settings: Settings) -> Image:
    return Image(name, settings.image.pull_policy, settings.image.pull_secrets)


def resources(spec: PodResources | BatchResources | EngineResources) -> Resources:
    """Return the resources of the container that does the work, as the manifest states them."""
    return Resources(spec.cpu, spec.memory, spec.ephemeral_storage, spec.gpus, spec.gpu_resource)


def platform_resources(platform: PlatformResources) -> Resources:
    """Return the resources of a container without a GPU, as the platform states them."""
    return Resources(platform.cpu, platform.memory, platform.ephemeral_storage)


def with_disk(spec: ResourcesSpec, needed: int | None) -> ResourcesSpec:
    """Return the resources with a disk of `needed` bytes at least, unless the manifest sets its size."""
    if needed is None or "ephemeral_storage" in spec.model_fields_set:
        return spec
    if needed <= parse_quantity(spec.ephemeral_storage):
        return spec
    return spec.model_copy(update={"ephemeral_storage": f"{-(-needed // 2**30)}Gi"})


def work_scheduling(spec: SchedulingSpec, settings: Settings, gpus: int) -> SchedulingSpec:
    """Return where the pods that train or merge run."""
    template = settings.trainer
    return _placed(spec, template.gpu, template) if gpus else _placed(spec, template)


def check_scheduling(spec: SchedulingSpec, settings: Settings) -> SchedulingSpec:
    """Return where the pods without a GPU run that check and report.

    Of the manifest they take its account and what it tolerates: it selects nodes for the sake of their GPUs.
    """
    own = SchedulingSpec(service_account_name=spec.service_account_name, tolerations=spec.tolerations)
    return _placed(own, settings.preflight)


def _placed(spec: SchedulingSpec, *placements: Placement) -> SchedulingSpec:
    """Lay placements below a scheduling: what comes first wins, tolerations add up."""
    layers: tuple[SchedulingSpec | Placement, ...] = (spec, *placements)
    selector: dict[str, str] = {}
    for layer in reversed(layers):
        selector |= layer.node_selector or {}
    change: dict[str, Any] = {
        "node_selector": selector or None,
        "tolerations": list(_tolerations(layers)) or None,
        "priority_class_name": _first(layers, "priority_class_name"),
        "runtime_class_name": _first(layers, "runtime_class_name"),
    }
    # Fields that are unset are left out of run.json and of the pod.
    return spec.model_copy(update={name: value for name, value in change.items() if value is not None})


def _tolerations(layers: tuple[SchedulingSpec | Placement, ...]) -> Iterator[Toleration]:
    """Yield each toleration once."""
    seen: list[Toleration] = []
    for layer in layers:
        for toleration in layer.tolerations or ():
            if toleration not in seen:
                seen.append(toleration)
                yield toleration


def _first(layers: tuple[SchedulingSpec | Placement, ...], field: str) -> str | None:
    return next((value for layer in layers if (value := getattr(layer, field)) is not None), None)


def pod_extras(owner: Owner, settings: Settings) -> PodExtras:
    """Return labels, annotations and environment of pods; the platform's values override those of the owner."""
    template, prefixes = settings.trainer, settings.trainer.inherit_labels
    return PodExtras(
        labels=_inherited(owner.labels, prefixes) | template.pod_labels,
        annotations=_inherited(owner.annotations, prefixes) | template.pod_annotations,
        env=template.env,
        shm_size=template.shm_size,
        security=template.security_context,
        ca_bundle=template.ca_bundle,
    )


def with_devices(pod: PodExtras, resources: ResourcesSpec, owner: Owner, settings: Settings) -> PodExtras:
    """Return what pods carry that train on several devices; what they carry as it is, where there is but one.

    Kueue's topology is of several pods. GPUs of one pod hand tensors to each other through /dev/shm.
    """
    if resources.devices == 1:
        return pod
    platform = settings.trainer.distributed
    shm = parse_quantity(pod.shm_size) + resources.gpus * _SHM_OF_A_GPU
    nearness = TOPOLOGY_ANNOTATIONS if resources.nodes > 1 else ()
    return replace(
        pod,
        annotations={
            **pod.annotations,
            **{name: owner.annotations[name] for name in nearness if owner.annotations.get(name)},
            **platform.annotations,
        },
        env={**pod.env, **platform.env},
        resources=platform.resources,
        shm_size=_in_gibibytes(int(shm)) if resources.gpus > 1 else pod.shm_size,
    )


def _in_gibibytes(size: int) -> str:
    return str(size) if size % 2**30 else f"{size // 2**30}Gi"


def _inherited(values: Mapping[str, str], prefixes: tuple[str, ...]) -> dict[str, str]:
    """Return the entries with a prefix, without those about the owner itself, such as Tunery's or kubectl's."""
    return {
        name: text
        for name, text in values.items()
        if name.startswith(prefixes) and not name.startswith(_OF_OTHERS) and name not in _OF_JOBS
    }
