"""The plan of an AdapterServer: everything that was decided about its pods, nothing that was built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from tunery_api.adapterserver import AdapterServerSpec, RolloutSpec
from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.fields import parse_quantity
from tunery_api.inputs import LocalReference
from tunery_api.placement import SchedulingSpec
from tunery_api.runspec import DiskLimit, Purpose
from tunery_api.serving import ServeSpec
from tunery_operator.config import PodSecurity, Settings
from tunery_operator.observed.metadata import Owner
from tunery_operator.planning import engine, job, mounts, placing
from tunery_operator.planning.job import Platform
from tunery_operator.planning.mounts import Access
from tunery_operator.planning.server_names import adapters_name, server_name
from tunery_operator.planning.types import Image, PodExtras, Progress, Resources, SecretMount, VolumeMount, digest_of

ADAPTERS: Final = "adapters"
API_KEYS: Final = "api-keys"
"""The purposes of two Secrets of a server; that of the third is Purpose.MODEL."""
_NAME_DIGITS: Final = 8
"""Of a digest, behind the name of a ConfigMap."""


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """One server: its Deployment and what belongs to that, but not what it serves."""

    owner: Owner
    serve: ServeSpec
    gateway: Image
    gateway_resources: Resources
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
        """Name all of the Deployment but its replicas: with another one it is patched.

        What it serves is no part of it, nor the authority that its reports trust: neither makes new pods.
        """
        whole = {
            "serve": self.serve_json(),
            "containers": [
                asdict(self.gateway),
                asdict(self.gateway_resources),
                asdict(self.engine),
                asdict(self.resources),
            ],
            "engine": [self.arguments, dict(self.environment)],
            "mounts": [*map(asdict, self.secrets), *map(asdict, self.volumes)],
            "scheduling": self.scheduling.to_json_dict(),
            "rollout": self.rollout.model_dump(mode="json"),
            "labels": [dict(self.kueue_labels), dict(self.pod.labels), dict(self.pod.annotations)],
            "pod": [dict(self.pod.env), self.pod.shm_size, self.pod.security.model_dump(mode="json")],
            "progress": self.progress and self.progress.url,
        }
        if self.pod.ca_bundle.config_map:  # else as before there were any: an upgrade makes no new pods
            whole["authorities"] = self.pod.ca_bundle.model_dump(mode="json")
        return digest_of(whole)

    def serve_json(self) -> dict[str, Any]:
        """Return what serve.json says, defaults included: the gateway may be of another version."""
        return self.serve.model_dump(mode="json", by_alias=True, exclude_none=True)

    @property
    def name(self) -> str:
        """The name of the Deployment, the Service, the PodDisruptionBudget and the NetworkPolicy."""
        return server_name(self.owner.key.name)

    @property
    def config_name(self) -> str:
        """The name of the ConfigMap with serve.json, which never changes: another content has another name."""
        return f"{self.name}-{digest_of(self.serve_json())[:_NAME_DIGITS]}"

    @property
    def adapters_name(self) -> str:
        """The name of the ConfigMap with adapters.json."""
        return adapters_name(self.owner.key.name)


def plan_server(spec: AdapterServerSpec, owner: Owner, platform: Platform) -> ServerPlan:
    """Return the plan of a server; raises InvalidSpec when the platform cannot run the spec."""
    settings = platform.settings
    accesses = list(_accesses(spec, settings))
    volumes = mounts.volume_mounts(accesses)
    return ServerPlan(
        owner=owner,
        serve=_serve_spec(spec, owner, accesses),
        gateway=job.server_image(settings),
        gateway_resources=_gateway_resources(settings),
        engine=_engine_image(spec, settings),
        arguments=engine.arguments(spec),
        environment=engine.environment(spec, settings.serving.engine.plugins),
        resources=_resources(spec),
        secrets=mounts.secret_mounts(accesses),
        volumes=volumes,
        scheduling=placing.work_scheduling(spec.scheduling, settings, spec.resources.gpus),
        kueue_labels=job.kueue_labels(owner),
        progress=platform.progress,
        replicas=spec.replicas,
        rollout=spec.rollout,
        network_policy=settings.serving.network_policy,
        pod=_pod(owner, settings),
    )


def _accesses(spec: AdapterServerSpec, settings: Settings) -> Iterator[Access]:
    yield Access(Purpose.MODEL, spec.model.uri, spec.model.secret_ref, "spec.model.secretRef")
    if spec.adapter_secret_ref is not None:
        yield Access(ADAPTERS, None, spec.adapter_secret_ref, "spec.adapterSecretRef")
    elif settings.default_output.secret_name:
        secret = LocalReference(name=settings.default_output.secret_name)
        yield Access(ADAPTERS, None, secret, "the platform's default output secret")
    if spec.access.api_keys_secret_ref is not None:
        yield Access(API_KEYS, None, spec.access.api_keys_secret_ref, "spec.access.apiKeysSecretRef")


def _serve_spec(spec: AdapterServerSpec, owner: Owner, accesses: list[Access]) -> ServeSpec:
    secrets, volumes = mounts.run_secrets(accesses), mounts.run_volumes(mounts.volume_mounts(accesses))
    disk = int(parse_quantity(spec.resources.ephemeral_storage))
    return ServeSpec(
        identity=job.identity(owner),
        model=spec.model,
        served_name=spec.model.effective_served_name(),
        model_secret=secrets.get(Purpose.MODEL),
        model_mount=volumes.get(Purpose.MODEL),
        adapter_secret=secrets.get(ADAPTERS),
        api_keys=secrets.get(API_KEYS),
        max_rank=spec.engine.max_rank,
        max_adapters_in_batch=spec.engine.max_adapters_in_batch,
        max_loaded_adapters=spec.engine.max_loaded_adapters,
        disk=DiskLimit(bytes=disk, field="spec.resources.ephemeralStorage"),
    )


def _engine_image(spec: AdapterServerSpec, settings: Settings) -> Image:
    platform, named = settings.serving.engine, spec.engine.image
    if named is not None and not platform.allow_image and named != platform.image:
        text = "the platform sets the image of the engine, and its setting serving.engine.allowImage lets no other in"
        raise InvalidSpec([FieldError("spec.engine.image", text)])
    if not (named or platform.image):
        raise InvalidSpec([FieldError("spec.engine.image", "is required: the platform names no image of the engine")])
    return Image(named or platform.image, settings.image.pull_policy)


def _gateway_resources(settings: Settings) -> Resources:
    asked = settings.serving.server.resources
    return Resources(asked.cpu, asked.memory, asked.ephemeral_storage)


def _resources(spec: AdapterServerSpec) -> Resources:
    asked = spec.resources
    return Resources(asked.cpu, asked.memory, asked.ephemeral_storage, asked.gpus, asked.gpu_resource)


def _pod(owner: Owner, settings: Settings) -> PodExtras:
    """Return what else the pod carries: gateway and engine share a socket and folders, and so one user."""
    pod, user = placing.pod_extras(owner, settings), settings.serving.engine.run_as_user
    if user is None:
        return pod
    return replace(pod, security=PodSecurity(run_as_user=user, run_as_group=user, fs_group=user))
