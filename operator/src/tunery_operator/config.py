"""Provide the operator's settings: the chart's values that it reads, by their names, and what the chart derives."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from tunery_api.fields import CpuString, ObjectName, QuantityString, parse_quantity
from tunery_api.jobs import LabelKey, LabelValue, Toleration
from tunery_api.names import GROUP, MANAGED_BY_LABEL

USER: Final = 65532
"""The user and group of the trainer image."""
ENGINE_USER: Final = 2000
"""The user of vLLM's own image."""
GPU_MEMORY_LABEL: Final = "nvidia.com/gpu.memory"
"""Memory of one of a node's GPUs in MiB, a label of NVIDIA's GPU feature discovery."""


def _unset(value: object) -> object:
    """Return None for an empty string, which is how values.yaml writes an unset value."""
    return None if value == "" else value


_Unset = BeforeValidator(_unset)
Name = Annotated[ObjectName | None, _Unset]
EnvName = Annotated[str, Field(max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
ExtendedResource = Annotated[
    str, Field(max_length=253, pattern=r"^([a-z0-9.-]+/[A-Za-z0-9._-]+|hugepages-[0-9]+[KMG]i)$")
]
UserId = Annotated[int, Field(ge=1, le=2**31 - 1)]
Port = Annotated[int, Field(ge=1, le=65535)]


class InvalidSettings(Exception):
    """The file holds no valid settings; the message has a line for each error, which starts with the chart's value."""


class LogFormat(StrEnum):
    """The format of log lines."""

    TEXT = "text"
    JSON = "json"


class _Values(BaseModel):
    """A section of the chart's values: camelCase, no unknown names."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Images(_Values):
    """How nodes pull all images."""

    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: tuple[ObjectName, ...] = ()
    """Names of Secrets in each namespace with jobs; the kubelet reads them, the operator never does."""


class Logging(_Values):
    """What the operator logs."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: LogFormat = LogFormat.JSON


class Process(_Values):
    """The operator process."""

    workers: int = Field(16, ge=1, le=256)
    """Concurrent reconciles; each uses a thread."""
    logging: Logging = Logging()


class Placement(_Values):
    """The scheduling of pods whose manifest has none."""

    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    priority_class_name: Name = None
    runtime_class_name: Name = None


class PodSecurity(_Values):
    """The ids that pods run with; None leaves the choice to the cluster, as OpenShift's restricted-v2 demands."""

    run_as_user: UserId | None = USER
    run_as_group: UserId | None = USER
    fs_group: UserId | None = USER


def _free_label(key: str) -> str:
    if key == MANAGED_BY_LABEL or key.startswith(f"{GROUP}/"):
        raise ValueError("is a label of Tunery's own: by it the operator finds its pods")
    return key


class CaBundle(_Values):
    """A ConfigMap in the namespace of each job with the certificate authorities that its pods trust."""

    config_map: Name = None
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")] = (
        "ca-bundle.crt"
    )


class Distributed(_Values):
    """Additions for pods that train on several GPUs or nodes."""

    env: dict[EnvName, str] = Field(default_factory=dict)
    """Variables, such as NCCL_SOCKET_IFNAME."""
    annotations: dict[LabelKey, str] = Field(default_factory=dict)
    resources: dict[ExtendedResource, QuantityString] = Field(default_factory=dict)
    """Extended resources of each pod, such as those of RDMA."""


class Trainer(Placement):
    """The pods of jobs; the manifest's scheduling overrides it."""

    image: str = Field(min_length=1)
    """The image of preflight, train and merge containers."""
    pod_labels: dict[Annotated[LabelKey, AfterValidator(_free_label)], LabelValue] = Field(default_factory=dict)
    pod_annotations: dict[LabelKey, str] = Field(default_factory=dict)
    env: dict[EnvName, str] = Field(default_factory=dict)
    """Variables of the container, such as HTTPS_PROXY; never a credential, since pods are not secret."""
    ca_bundle: CaBundle = CaBundle()
    inherit_labels: tuple[Annotated[str, Field(min_length=1, max_length=317)], ...] = ()
    """Prefixes of an object's labels and annotations that its pods inherit."""
    gpu: Placement = Placement()
    """Additions for pods that request a GPU."""
    security_context: PodSecurity = PodSecurity()
    shm_size: QuantityString = "1Gi"
    """Size limit of /dev/shm; it counts as memory of the container."""
    distributed: Distributed = Distributed()


class PlatformResources(_Values):
    """The resources of a container; requests equal limits."""

    cpu: CpuString
    memory: QuantityString
    ephemeral_storage: QuantityString


class Server(_Values):
    """The container of an AdapterServer that clients connect to."""

    image: str = ""
    """Empty: the platform serves nothing."""
    resources: PlatformResources = PlatformResources(cpu="1", memory="512Mi", ephemeral_storage="1Gi")


class Engine(_Values):
    """The container of an AdapterServer that runs vLLM."""

    image: str = ""
    allow_image: bool = True
    """Whether a manifest may name another image of the engine."""
    run_as_user: UserId | None = ENGINE_USER
    """User and group of a server's pod, which both containers share; None: those of the pods of jobs."""
    plugins: tuple[Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")], ...] = ()
    """The only plugins of vLLM that the engine loads."""


class Serving(_Values):
    """The pods of AdapterServers."""

    server: Server = Server()
    engine: Engine = Engine()
    network_policy: bool = True
    """Create a NetworkPolicy that allows connections to the server's port only."""


class DefaultOutput(_Values):
    """Where results are published if a manifest names no output."""

    uri: Annotated[str, AfterValidator(lambda uri: uri.rstrip("/"))] = ""
    """Empty: every manifest must name an output."""
    secret_name: Name = None


class CacheVolume(_Values):
    """The claim that caches base models and prepared data, by its name in each job's namespace."""

    claim_name: Name = None
    max_size: Annotated[QuantityString | None, _Unset] = None
    """None: the capacity of the claim."""


class Preflight(Placement):
    """The pods without a GPU that check, report or publish."""

    resources: PlatformResources = PlatformResources(cpu="1", memory="4Gi", ephemeral_storage="20Gi")
    queue_name: Name = None
    """Kueue's LocalQueue of preflight Jobs, in their own namespace."""
    queue_from_owner: bool = False
    """Queue preflight Jobs where their object is queued."""
    max_concurrent: int = Field(0, ge=0)
    """Active preflight Jobs at a time; 0: no limit."""

    @model_validator(mode="after")
    def _has_one_queue(self) -> Self:
        if self.queue_name and self.queue_from_owner:
            raise ValueError("queueName and queueFromOwner exclude each other")
        return self


class ProgressEndpoint(_Values):
    """The HTTPS endpoint that pods report to; the chart derives `url`, `tls_dir` and `tls_secret`."""

    port: Port = 8443
    write_seconds: float = Field(5.0, ge=1)
    """Minimum seconds between two writes of one object's progress."""
    url: str = ""
    """The URL that pods post progress to; empty: pods do not report."""
    tls_dir: Path | None = None
    """Folder with tls.crt, tls.key and ca.crt; None: no progress endpoint."""
    tls_secret: str = ""
    """Name of the Secret that is mounted there, for log lines."""


class MetricsEndpoint(_Values):
    """The HTTP endpoint of /metrics, /healthz and /readyz."""

    port: Port = 8080


class Lease(_Values):
    """The Lease by which the replicas elect a leader, which the chart derives."""

    name: str = ""
    """Empty: this process always leads."""
    namespace: str = ""


class Settings(_Values):
    """The settings of one operator process."""

    image: Images = Images()
    operator: Process = Process()
    trainer: Trainer
    serving: Serving = Serving()
    default_output: DefaultOutput = DefaultOutput()
    default_ttl_seconds_after_finished: int | None = Field(None, ge=0)
    """Seconds after which a finished object is deleted if its manifest sets no time; None: never."""
    gpu_memory: dict[str, QuantityString] = Field(default_factory=dict)
    """Memory of one GPU by resource name, or by a label of its nodes as `label=value`."""
    cache: CacheVolume = CacheVolume()
    preflight: Preflight = Preflight()
    progress: ProgressEndpoint = ProgressEndpoint()
    metrics: MetricsEndpoint = MetricsEndpoint()
    watch_namespaces: tuple[ObjectName, ...] = ()
    """The namespaces that are served; empty: all."""
    lease: Lease = Lease()

    @model_validator(mode="after")
    def _has_two_ports(self) -> Self:
        if self.progress.port == self.metrics.port:
            raise ValueError(f"progress.port and metrics.port: both are {self.metrics.port}, and must differ")
        return self

    def gpu_memory_bytes(self, resource: str, node_labels: Mapping[str, str]) -> int | None:
        """Return the memory in bytes of one GPU of this resource on nodes with these labels; None: unknown.

        The label of NVIDIA's feature discovery goes first, then an entry for a label, then one for the resource.
        Of several labels the smallest memory counts.
        """
        discovered = node_labels.get(GPU_MEMORY_LABEL, "")
        if discovered.isdecimal():
            return int(discovered) * 2**20
        labelled = [f"{name}={value}" for name, value in node_labels.items() if f"{name}={value}" in self.gpu_memory]
        found = [self.gpu_memory[key] for key in labelled or [resource] if key in self.gpu_memory]
        return min((int(parse_quantity(quantity)) for quantity in found), default=None)


def read_settings(file: Path) -> Settings:
    """Return the settings of a YAML file; raises InvalidSettings with every error, each with the chart's value."""
    try:
        return Settings.model_validate(yaml.safe_load(file.read_text()))
    except (OSError, yaml.YAMLError) as error:
        raise InvalidSettings(str(error)) from error
    except ValidationError as error:
        lines = (
            (".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, ")) for each in error.errors()
        )
        raise InvalidSettings("\n".join(": ".join(filter(None, line)) for line in lines)) from error
