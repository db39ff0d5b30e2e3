"""Define the spec of AdapterServer: serve a base model and many adapters behind one OpenAI-compatible gateway."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tunery_api.fields import (
    SERVER_DEFAULT,
    ApiModel,
    CpuString,
    DiskString,
    KindSpec,
    MemoryString,
    Number,
    StorageUri,
)
from tunery_api.inputs import LocalReference, ModelSpec
from tunery_api.jobs import GpuResource, LabelKey, LabelValue, SchedulingSpec

AdapterName = Annotated[
    str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$")
]
"""The model name in requests. It can't contain `@`: the engine knows each adapter as `name@version`."""

ENGINE_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
"""The maximum LoRA ranks that vLLM accepts."""
DEFAULT_LOADED: Final = 32
DEFAULT_IN_BATCH: Final = 8

ENGINE_ARGS: Final = (
    "--max-num-seqs",
    "--max-num-batched-tokens",
    "--enable-prefix-caching",
    "--no-enable-prefix-caching",
    "--enable-chunked-prefill",
    "--no-enable-chunked-prefill",
    "--kv-cache-dtype",
    "--quantization",
    "--enforce-eager",
    "--stream-interval",
    "--scheduling-policy",
    "--enable-auto-tool-choice",
    "--tool-call-parser",
    "--reasoning-parser",
    "--generation-config",
    "--seed",
    "--max-logprobs",
)
"""The engine flags that a manifest may set: none of them opens a port, reads a file or runs code."""


class AdapterSource(ApiModel):
    """One adapter; exactly one of loraJobRef, adapterMergeRef and uri."""

    name: AdapterName = Field(description="Model name in requests.")
    lora_job_ref: LocalReference | None = Field(
        None, description="A LoRAJob of this namespace. The adapter is served once the LoRAJob has succeeded."
    )
    adapter_merge_ref: LocalReference | None = Field(
        None,
        description="An AdapterMerge of this namespace with into: Adapter. The adapter is served once it has "
        "succeeded.",
    )
    uri: StorageUri | None = Field(None, description="URI of a published adapter with its manifest.json.")
    manifest_sha256: Annotated[str, Field(min_length=64, max_length=64, pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None,
        description="With uri: the SHA-256 that manifest.json must have. Unset: a newly published version at the URI "
        "is served too.",
    )
    keep_loaded: bool = Field(
        False,
        description="Keep the adapter in the engine even if it isn't requested. false: the engine may unload it to "
        "load others.",
    )


class LabelOperator(StrEnum):
    """How a label is compared, as in metav1.LabelSelector."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class LabelRequirement(ApiModel):
    """A requirement on one label."""

    key: LabelKey = Field(description="Label key of the LoRAJob or AdapterMerge.")
    operator: LabelOperator = Field(description="Operator, as in metav1.LabelSelector.")
    values: list[LabelValue] | None = Field(None, max_length=64, description="Values; only for In and NotIn.")


class AdapterSelector(ApiModel):
    """A label selector for LoRAJobs and AdapterMerges, as in metav1.LabelSelector."""

    match_labels: dict[LabelKey, LabelValue] | None = Field(
        None, max_length=16, description="Required labels and their values."
    )
    match_expressions: list[LabelRequirement] | None = Field(
        None, max_length=16, description="Requirements on labels; all must be met."
    )


class AliasTarget(ApiModel):
    """One target of an alias."""

    adapter: AdapterName = Field(description="Name of an adapter of this server, or of the base model.")
    weight: int = Field(
        1,
        ge=0,
        le=1_000_000,
        description="Weight of the target: it gets this share of the sum of all weights. 0: no requests.",
    )


class Alias(ApiModel):
    """A name that routes to one or more adapters, such as support-bot:prod."""

    name: AdapterName = Field(description="Model name in requests.")
    targets: list[AliasTarget] = Field(
        min_length=1,
        max_length=4,
        description="Targets of the requests, by weight. Requests with the same `user` in the body go to the same "
        "target.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["adapter"]},
    )


class ClientAccess(ApiModel):
    """The models that one client may request."""

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = Field(
        description="Name of the client: a key in the Secret of apiKeysSecretRef."
    )
    models: list[AdapterName] = Field(
        min_length=1,
        max_length=64,
        description="Names of the adapters, aliases or base model that the client may request.",
    )


class AccessSpec(ApiModel):
    """Which clients may send requests."""

    api_keys_secret_ref: LocalReference | None = Field(
        None,
        description="Secret with the API keys: each key of the Secret is a client name, its value the client's API "
        "key. Default: no API key is required.",
    )
    clients: list[ClientAccess] | None = Field(
        None,
        max_length=128,
        description="Clients that may request only some models. An unlisted client may request every model.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )


class EnginePrecision(StrEnum):
    """The floating point type of the computation."""

    AUTO = "Auto"
    BFLOAT16 = "BFloat16"
    FLOAT16 = "Float16"
    FLOAT32 = "Float32"


class EngineSpec(ApiModel):
    """The settings of the engine, vLLM."""

    image: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\s]+$")] | None = Field(
        None, description="Container image of the engine. Default: the platform's image."
    )
    max_rank: int = Field(
        64,
        description="Maximum rank of an adapter: 8, 16, 32, 64, 128, 256, 320 or 512. The engine reserves memory for "
        "maxAdaptersInBatch adapters of this rank.",
    )
    max_adapters_in_batch: int = Field(
        DEFAULT_IN_BATCH,
        ge=1,
        le=256,
        description="Maximum number of adapters in one batch. The engine reserves device memory for each.",
    )
    max_loaded_adapters: int = Field(
        DEFAULT_LOADED,
        ge=1,
        le=512,
        description="Maximum number of adapters in the engine's memory. The server can list more: a requested one that "
        "isn't loaded replaces the least recently used.",
    )
    max_length: int | None = Field(
        None,
        ge=16,
        le=10_485_760,
        description="Maximum tokens of prompt and answer together. Default: the model's maximum.",
    )
    precision: EnginePrecision = Field(
        EnginePrecision.AUTO,
        description="Floating point type of the computation. Auto: the type of the model's weights.",
    )
    gpu_memory_fraction: Number = Field(
        0.9, gt=0, le=1, description="Share of the GPU memory that the engine reserves, above 0 and at most 1."
    )
    args: list[Annotated[str, Field(min_length=3, max_length=128)]] | None = Field(
        None,
        max_length=32,
        description=f"Additional flags of `vllm serve`, each as --flag or --flag=value: {', '.join(ENGINE_ARGS)}.",
    )


class EngineResources(ApiModel):
    """The resources of the engine container; requests equal limits."""

    gpus: int = Field(1, ge=0, le=1, description="GPUs of a replica: 1, or 0 to serve on CPU.")
    gpu_resource: GpuResource = Field(
        "nvidia.com/gpu", description="Extended resource name of the GPUs. The engine's image must support them."
    )
    cpu: CpuString = Field("4", description='CPU of the engine: 4, 500m or "0.5". Quote a fraction.')
    memory: MemoryString = Field("24Gi", description="Memory of the engine.")
    ephemeral_storage: DiskString = Field(
        "50Gi", description="Ephemeral storage of a replica, for the base model and the downloaded adapters."
    )


class RolloutSpec(ApiModel):
    """How replicas are replaced, as in a Deployment."""

    max_surge: int = Field(
        1, ge=0, le=64, description="Maximum number of replicas above spec.replicas during a rollout."
    )
    max_unavailable: int = Field(0, ge=0, le=64, description="Maximum number of unavailable replicas during a rollout.")


class AdapterServerSpec(KindSpec):
    """What to serve, to which clients, and on how many replicas."""

    MUTABLE: ClassVar[frozenset[str]] = frozenset(
        {
            "adapters",
            "adapterSelector",
            "adapterSecretRef",
            "aliases",
            "access",
            "replicas",
            "engine",
            "resources",
            "scheduling",
            "rollout",
        }
    )

    model: ModelSpec = Field(description="The base model. Adapters of other base models aren't served.")
    adapters: list[AdapterSource] | None = Field(
        None,
        max_length=512,
        description="Adapters to serve, by name.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    adapter_selector: AdapterSelector | None = Field(
        None,
        description="Serve every LoRAJob and AdapterMerge (into: Adapter) with these labels under its own name, from "
        "its success until its deletion. Default: none.",
    )
    adapter_secret_ref: LocalReference | None = Field(
        None,
        description="Secret that grants read access to all adapters. Default: the platform's Secret for outputs, else "
        "the pod's workload identity.",
    )
    aliases: list[Alias] | None = Field(
        None,
        max_length=64,
        description="Names that route to adapters: for a stable name, a canary or a rollback.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    access: AccessSpec = Field(
        default_factory=AccessSpec,
        description="Which clients may send requests. Default: every client that can reach the server, for all models.",
    )
    replicas: int = Field(
        1,
        ge=0,
        le=64,
        description="Number of replicas; 0 stops the server. An autoscaler sets it through the scale subresource.",
        json_schema_extra={SERVER_DEFAULT: True},
    )
    engine: EngineSpec = Field(
        default_factory=EngineSpec,
        description="Settings of the engine, vLLM. A change replaces the replicas by a rolling update.",
    )
    resources: EngineResources = Field(
        default_factory=EngineResources, description="Resources of the engine container."
    )
    scheduling: SchedulingSpec = Field(default_factory=SchedulingSpec, description="Where the replicas run.")
    rollout: RolloutSpec = Field(default_factory=RolloutSpec, description="How replicas are replaced.")
