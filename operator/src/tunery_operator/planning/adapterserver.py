"""Plan an AdapterServer: the names of its children, the flags of vLLM, and the plan of its Deployment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from tunery_api.adapterserver import AdapterServerSpec, EnginePrecision, RolloutSpec
from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.fields import parse_quantity
from tunery_api.inputs import LocalReference
from tunery_api.jobs import SchedulingSpec
from tunery_api.names import KIND_LABEL, OWNER_LABEL, label_value
from tunery_api.runspec import DiskLimit, Purpose
from tunery_api.serving import ENGINE_SOCKET, GATEWAY_PORT, ServeSpec
from tunery_operator.config import PodSecurity, Settings
from tunery_operator.observed.metadata import Key, Owner
from tunery_operator.planning import job, pod
from tunery_operator.planning.job import Platform, Progress, digest_of
from tunery_operator.planning.pod import Access, Image, PodExtras, Resources, TenantSecret, TenantVolume

ROLE: Final = "serve"
"""The role label of children and pods."""
MODEL: Final = "model"
GATEWAY: Final = "gateway"
ENGINE: Final = "engine"
"""The containers, in the order in which they start."""
ADAPTERS: Final = "adapters"
API_KEYS: Final = "api-keys"
"""The purposes of two Secrets of a server; the third has Purpose.MODEL."""
_NAME_DIGITS: Final = 8
"""Characters of a digest at the end of the name of a ConfigMap."""
DRAIN_SECONDS: Final = 60
"""Seconds that the engine has to finish requests after SIGTERM."""
_DTYPES: Final = {
    EnginePrecision.BFLOAT16: "bfloat16",
    EnginePrecision.FLOAT16: "float16",
    EnginePrecision.FLOAT32: "float32",
}
_CACHE_SHARE: Final = 4
"""On the CPU, the KV cache gets this fraction of the memory: the weights take most of it."""


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """The plan of a server's Deployment and its other children, without the adapters to serve."""

    owner: Owner
    serve: ServeSpec
    gateway: Image
    gateway_resources: Resources
    engine: Image
    arguments: tuple[str, ...]
    """Arguments of `vllm serve` after the model."""
    environment: Mapping[str, str]
    """Of the engine."""
    resources: Resources
    """Of the engine."""
    secrets: tuple[TenantSecret, ...]
    volumes: tuple[TenantVolume, ...]
    scheduling: SchedulingSpec
    kueue_labels: Mapping[str, str]
    progress: Progress | None
    replicas: int
    rollout: RolloutSpec
    network_policy: bool
    pod: PodExtras

    @property
    def digest(self) -> str:
        """The digest of the Deployment without its replicas: another digest patches it.

        The served adapters and the certificate authority are not part of it, as neither needs new pods.
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
        """Return the content of serve.json with defaults, as the gateway may have another version."""
        return self.serve.model_dump(mode="json", by_alias=True, exclude_none=True)

    @property
    def name(self) -> str:
        """The name of the Deployment, the Service, the PodDisruptionBudget and the NetworkPolicy."""
        return server_name(self.owner.key.name)

    @property
    def config_name(self) -> str:
        """The name of the ConfigMap with serve.json, which is immutable: other content has another name."""
        return f"{self.name}-{digest_of(self.serve_json())[:_NAME_DIGITS]}"

    @property
    def adapters_name(self) -> str:
        """The name of the ConfigMap with adapters.json."""
        return adapters_name(self.owner.key.name)


def server_name(owner: str) -> str:
    """Return the name of a server's Deployment and Service; an owner's name is short enough by a rule of the API."""
    return f"{owner}-server"


def adapters_name(owner: str) -> str:
    """Return the name of the ConfigMap with the adapters of a server."""
    return f"{owner}-adapters"


def server_url(key: Key) -> str:
    """Return the base URL of a server's API, within the cluster."""
    return f"http://{server_name(key.name)}.{key.namespace}.svc:{GATEWAY_PORT}/v1"


def pod_selector(owner: Owner) -> dict[str, str]:
    """Return the label selector of the pods of a server."""
    return {KIND_LABEL: owner.key.kind.singular, OWNER_LABEL: label_value(owner.key.name)}


def plan_server(spec: AdapterServerSpec, owner: Owner, platform: Platform) -> ServerPlan:
    """Return the plan of a server; raises InvalidSpec when the platform cannot run the spec."""
    settings = platform.settings
    accesses = list(_accesses(spec, settings))
    volumes = pod.volume_mounts(accesses)
    return ServerPlan(
        owner=owner,
        serve=_serve_spec(spec, owner, accesses),
        gateway=pod.server_image(settings),
        gateway_resources=pod.platform_resources(settings.serving.server.resources),
        engine=_engine_image(spec, settings),
        arguments=engine_arguments(spec),
        environment=engine_environment(spec, settings.serving.engine.plugins),
        resources=pod.resources(spec.resources),
        secrets=pod.secret_mounts(accesses),
        volumes=volumes,
        scheduling=pod.work_scheduling(spec.scheduling, settings, spec.resources.gpus),
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
    secrets, volumes = pod.run_secrets(accesses), pod.run_volumes(pod.volume_mounts(accesses))
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
        text = "the platform sets the image of the engine, and serving.engine.allowImage allows no other"
        raise InvalidSpec([FieldError("spec.engine.image", text)])
    if not (named or platform.image):
        raise InvalidSpec([FieldError("spec.engine.image", "is required: the platform names no image of the engine")])
    return Image(named or platform.image, settings.image.pull_policy)


def _pod(owner: Owner, settings: Settings) -> PodExtras:
    """Return the other settings of the pod: gateway and engine share a socket and folders, so they run as one user."""
    extras, user = pod.pod_extras(owner, settings), settings.serving.engine.run_as_user
    if user is None:
        return extras
    return replace(extras, security=PodSecurity(run_as_user=user, run_as_group=user, fs_group=user))


def engine_arguments(spec: AdapterServerSpec) -> tuple[str, ...]:
    """Return the flags of `vllm serve`."""
    return tuple(_arguments(spec))


def _arguments(spec: AdapterServerSpec) -> Iterator[str]:
    chosen = spec.engine
    yield f"--uds={ENGINE_SOCKET}"
    yield f"--served-model-name={spec.model.effective_served_name()}"
    yield "--enable-lora"
    yield f"--max-loras={chosen.max_adapters_in_batch}"
    # Twice, so that an update's old and new version have room and the engine itself never throws one out.
    yield f"--max-cpu-loras={2 * chosen.max_loaded_adapters}"
    yield f"--max-lora-rank={chosen.max_rank}"
    # With more than one, vLLM refuses to load adapters while it runs.
    yield "--api-server-count=1"
    yield "--disable-fastapi-docs"
    yield f"--shutdown-timeout={DRAIN_SECONDS}"
    if chosen.max_length is not None:
        yield f"--max-model-len={chosen.max_length}"
    if chosen.precision in _DTYPES:
        yield f"--dtype={_DTYPES[chosen.precision]}"
    if spec.resources.gpus:
        yield f"--gpu-memory-utilization={chosen.gpu_memory_fraction}"
    yield from chosen.args or ()


def engine_environment(spec: AdapterServerSpec, plugins: tuple[str, ...]) -> dict[str, str]:
    """Return the variables of the engine's container."""
    common = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_PLUGINS": ",".join(plugins),
        "VLLM_NO_USAGE_STATS": "1",
        # What lies in /model is all that it may read: a name that is wrong is no download.
        "HF_HUB_OFFLINE": "1",
        # The user has no entry in the image's passwd, where libraries look for its name.
        "USER": "tunery",
        # One process on one node: its internal connections stay within the pod as far as possible.
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    if spec.resources.gpus:
        return common
    gibibytes = int(parse_quantity(spec.resources.memory) // 2**30)
    space = max(1, gibibytes // _CACHE_SHARE)
    return {
        **common,
        "VLLM_CPU_KVCACHE_SPACE": str(space),
        # What torch would compile needs a compiler, which the image may lack.
        "TORCHDYNAMO_DISABLE": "1",
        # By itself it starts a thread for each core of the node but one, and binds them: more than the pod may use, and
        # to the cores that another server's engine on that node has bound its own to.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(max(1, int(parse_quantity(spec.resources.cpu)))),
    }
