"""What the platform team decides: read once at start from TUNERY_… variables, which the chart renders."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from tunery_api.fields import CpuString, ObjectName, QuantityString, parse_quantity
from tunery_api.names import GROUP, MANAGED_BY_LABEL
from tunery_api.placement import LabelKey, LabelValue, Toleration

PREFIX: Final = "TUNERY_"
USER: Final = 65532
"""The user and group of the trainer image."""
ENGINE_USER: Final = 2000
"""The user of vLLM's own image."""
GPU_MEMORY_LABEL: Final = "nvidia.com/gpu.memory"
"""Memory of one of a node's GPUs in MiB, a label of NVIDIA's GPU feature discovery."""

EnvName = Annotated[str, Field(max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
ExtendedResource = Annotated[
    str, Field(max_length=253, pattern=r"^([a-z0-9.-]+/[A-Za-z0-9._-]+|hugepages-[0-9]+[KMG]i)$")
]
UserId = Annotated[int, Field(ge=1, le=2**31 - 1)]


class InvalidSettings(Exception):
    """The environment does not make settings; the message has a line for each error, with the variable's name."""


class LogFormat(StrEnum):
    """How a log line looks."""

    TEXT = "text"
    JSON = "json"


class _Part(BaseModel):
    """A value of its own within one variable, as JSON: camelCase, no unknown fields."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Placement(_Part):
    """Where pods are put when their manifest does not say."""

    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    priority_class_name: ObjectName | None = None
    runtime_class_name: ObjectName | None = None


class PodSecurity(_Part):
    """The ids that pods run with; None leaves the choice to the cluster, as OpenShift's restricted-v2 demands."""

    run_as_user: UserId | None = USER
    run_as_group: UserId | None = USER
    fs_group: UserId | None = USER


def _free_label(key: str) -> str:
    if key == MANAGED_BY_LABEL or key.startswith(f"{GROUP}/"):
        raise ValueError("is a label of Tunery's own: by it the operator finds its pods")
    return key


class CaBundle(_Part):
    """A ConfigMap in the namespace of each job with certificate authorities that its pods trust; no name: none."""

    config_map: ObjectName | Literal[""] = ""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")] = (
        "ca-bundle.crt"
    )


class Distributed(_Part):
    """What the platform says of pods that train on several devices, on top of what it says of all: its network's."""

    env: dict[EnvName, str] = Field(default_factory=dict)
    """Variables, such as NCCL_SOCKET_IFNAME."""
    annotations: dict[LabelKey, str] = Field(default_factory=dict)
    resources: dict[ExtendedResource, QuantityString] = Field(default_factory=dict)
    """Extended resources of each pod, such as those of RDMA."""


class PodTemplate(Placement):
    """What the platform says of every pod of a job; the manifest's scheduling goes before it."""

    labels: dict[Annotated[LabelKey, AfterValidator(_free_label)], LabelValue] = Field(default_factory=dict)
    annotations: dict[LabelKey, str] = Field(default_factory=dict)
    env: dict[EnvName, str] = Field(default_factory=dict)
    """Variables of the container, such as HTTPS_PROXY; never a credential, since pods are not secret."""
    ca_bundle: CaBundle = CaBundle()
    shm_size: QuantityString = "1Gi"
    """Size limit of /dev/shm; it counts as memory of the container."""
    security: PodSecurity = PodSecurity()
    gpu: Placement = Placement()
    """What is added for pods that ask for a GPU."""
    distributed: Distributed = Distributed()


class Resources(_Part):
    """What a container asks for; requests equal limits."""

    cpu: CpuString = "1"
    memory: QuantityString = "512Mi"
    ephemeral_storage: QuantityString = "1Gi"


class Serving(_Part):
    """What the platform says of AdapterServers."""

    server_image: str = ""
    """The image of the door and of what brings the base model; empty: the platform serves nothing."""
    server_pull_policy: str = "IfNotPresent"
    server_resources: Resources = Resources()
    engine_image: str = ""
    engine_pull_policy: str = "IfNotPresent"
    allow_image: bool = True
    """Whether a manifest may name another image of the engine."""
    run_as_user: UserId | None = ENGINE_USER
    """The id of user and group of a server's pod, which door and engine share; None: that of the pods of jobs."""
    plugins: tuple[Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")], ...] = ()
    """The plugins of vLLM that the engine loads; it loads no other that lies in its image."""
    network_policy: bool = True
    """Make a NetworkPolicy that lets nobody in but by the door."""


def _without_slash(uri: str) -> str:
    return uri.rstrip("/")


class Settings(BaseSettings):
    """The settings of one operator process."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_parse_none_str="null")

    trainer_image: str = Field(min_length=1)
    """The image of preflight, train and merge containers."""
    trainer_pull_policy: str = "IfNotPresent"
    trainer_pull_secrets: list[str] = Field(default_factory=list)
    """Names of Secrets in the jobs' namespaces; the kubelet reads them, the operator never does."""
    pod_template: PodTemplate = PodTemplate()
    serving: Serving = Serving()
    inherit_label_prefixes: list[Annotated[str, Field(min_length=1, max_length=317)]] = Field(default_factory=list)
    """Labels and annotations of an object that begin with one of these are its pods' too."""
    default_output_uri: Annotated[str, AfterValidator(_without_slash)] = ""
    """Where results go whose manifest names no place; empty: every manifest must name one."""
    default_output_secret: str = ""
    default_ttl_seconds: int | None = Field(None, ge=0)
    """Seconds after which a finished object is deleted whose manifest does not say; None: never."""
    gpu_memory: dict[str, QuantityString] = Field(default_factory=dict)
    """Memory of one GPU by resource name, or by a label of its nodes as `label=value`."""
    cache_claim: ObjectName | Literal[""] = ""
    """The claim that caches base models and prepared data, by its name in each job's namespace; empty: none."""
    cache_max_size: QuantityString | Literal[""] = ""
    """What a cache may hold; empty: what its claim has."""
    preflight_cpu: CpuString = "1"
    preflight_memory: QuantityString = "4Gi"
    preflight_ephemeral_storage: QuantityString = "20Gi"
    preflight_scheduling: Placement = Placement()
    preflight_queue: str = ""
    """Kueue's LocalQueue of preflight Jobs, in their own namespace; empty: none."""
    preflight_queue_from_owner: bool = False
    """Queue preflight Jobs where their object is queued."""
    preflight_max_concurrent: int = Field(0, ge=0)
    """Preflight Jobs that are unfinished at a time; 0: no limit."""
    progress_url: str = ""
    """The URL that pods post progress to; empty: pods are not asked to report."""
    progress_port: int = Field(8443, ge=0, le=65535)
    progress_tls_dir: Path | None = None
    """Folder with tls.crt, tls.key and ca.crt; None: no progress endpoint."""
    progress_tls_secret: str = ""
    """Name of the Secret that the folder is made of, for what the log says of it."""
    progress_write_seconds: float = Field(5.0, ge=1)
    """Least seconds between two writes of the progress of one object."""
    metrics_port: int = Field(8080, ge=0, le=65535)
    watch_namespaces: list[ObjectName] = Field(default_factory=list)
    """The namespaces that are served; empty: all."""
    workers: int = Field(16, ge=1, le=256)
    """Reconciles at a time; each holds a thread."""
    lease_name: str = ""
    """The Lease by which replicas agree on the one that acts; empty: this process always acts."""
    lease_namespace: str = ""
    pod_name: str = ""
    """The name that this process holds the Lease by."""
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    log_format: LogFormat = LogFormat.TEXT

    @model_validator(mode="after")
    def _election_is_whole(self) -> Self:
        if self.lease_name and not (self.lease_namespace and self.pod_name):
            raise ValueError(f"{PREFIX}LEASE_NAME needs {PREFIX}LEASE_NAMESPACE and {PREFIX}POD_NAME")
        return self

    @model_validator(mode="after")
    def _preflight_has_one_queue(self) -> Self:
        if self.preflight_queue and self.preflight_queue_from_owner:
            raise ValueError(f"{PREFIX}PREFLIGHT_QUEUE and {PREFIX}PREFLIGHT_QUEUE_FROM_OWNER exclude each other")
        return self

    def gpu_memory_bytes(self, resource: str, node_labels: Mapping[str, str]) -> int | None:
        """Return the memory in bytes of one GPU of this resource on nodes with these labels; None: nobody told.

        The label that NVIDIA's feature discovery gives to nodes goes first, then what the platform says of a label,
        then what it says of the resource. Of several labels the smallest memory counts.
        """
        discovered = node_labels.get(GPU_MEMORY_LABEL, "")
        if discovered.isdecimal():
            return int(discovered) * 2**20
        labelled = [f"{name}={value}" for name, value in node_labels.items() if f"{name}={value}" in self.gpu_memory]
        told = [self.gpu_memory[key] for key in labelled or [resource] if key in self.gpu_memory]
        return min((int(parse_quantity(quantity)) for quantity in told), default=None)


def read_settings() -> Settings:
    """Return the settings that the environment makes.

    Raises InvalidSettings with every error, each with the variable and the place in it.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise InvalidSettings("\n".join(map(_line, error.errors()))) from error
    except SettingsError as error:
        # Its message names the field; its cause says where in the text.
        raise InvalidSettings(f"{error}: {error.__cause__}") from error


def _line(error: Any) -> str:
    """Return one error of pydantic as `TUNERY_POD_TEMPLATE.labels.a: what is wrong`."""
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return str(message)
    variable, *rest = map(str, error["loc"])
    name = variable if variable.startswith(PREFIX) else f"{PREFIX}{variable.upper()}"
    return f"{'.'.join([name, *rest])}: {message}"
