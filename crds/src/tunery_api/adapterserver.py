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
"""The name that requests give as their model. `@` is left out: it stands before the version."""

ENGINE_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as its largest rank."""
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
"""The flags that a manifest may give to the engine: none of them opens a port, reads a file or runs code."""


class AdapterSource(ApiModel):
    """One adapter; exactly one of loraJobRef, adapterMergeRef and uri."""

    name: AdapterName = Field(description="The name that requests give as their model.")
    lora_job_ref: LocalReference | None = Field(
        None, description="A LoRAJob of this namespace; it is waited for until it has succeeded."
    )
    adapter_merge_ref: LocalReference | None = Field(
        None, description="An AdapterMerge of this namespace, into: Adapter; it is waited for likewise."
    )
    uri: StorageUri | None = Field(None, description="A published adapter with its manifest.json.")
    manifest_sha256: Annotated[str, Field(min_length=64, max_length=64, pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="With uri: serve this content only. Default: follow what is published there."
    )
    keep_loaded: bool = Field(
        False, description="Stay in the engine however long nobody asks for it; the others leave as room is needed."
    )


class LabelOperator(StrEnum):
    """How a label is compared, as in metav1.LabelSelector."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class LabelRequirement(ApiModel):
    """One condition on a label."""

    key: LabelKey = Field(description="Label of the LoRAJob or AdapterMerge.")
    operator: LabelOperator = Field(description="How it is compared.")
    values: list[LabelValue] | None = Field(None, max_length=64, description="Values for In and NotIn.")


class AdapterSelector(ApiModel):
    """Labels that a LoRAJob or AdapterMerge must have, as in metav1.LabelSelector."""

    match_labels: dict[LabelKey, LabelValue] | None = Field(
        None, max_length=16, description="Labels with their values."
    )
    match_expressions: list[LabelRequirement] | None = Field(None, max_length=16, description="Conditions on labels.")


class AliasTarget(ApiModel):
    """One adapter that a name leads to."""

    adapter: AdapterName = Field(description="Name of an adapter that this server serves, or of the base model.")
    weight: int = Field(1, ge=0, le=1_000_000, description="Share of the requests, by all weights of the alias.")


class Alias(ApiModel):
    """A name that leads to one adapter or several, such as support-bot:prod."""

    name: AdapterName = Field(description="The name that requests give as their model.")
    targets: list[AliasTarget] = Field(
        min_length=1,
        max_length=4,
        description="Where requests go, by weight. Those with the same `user` in their body go to the same target.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["adapter"]},
    )


class ClientAccess(ApiModel):
    """What one client may ask for."""

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = Field(
        description="The client: a key of the Secret."
    )
    models: list[AdapterName] = Field(
        min_length=1, max_length=64, description="Names of adapters, aliases or the base model that it may ask for."
    )


class AccessSpec(ApiModel):
    """Who may ask."""

    api_keys_secret_ref: LocalReference | None = Field(
        None,
        description="Secret with the API keys: each of its keys is the name of a client, the value that client's API "
        "key. Default: no key is asked for.",
    )
    clients: list[ClientAccess] | None = Field(
        None,
        max_length=128,
        description="Clients that may ask for some models only; one that is not listed may ask for all.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )


class EnginePrecision(StrEnum):
    """The type that the engine computes in."""

    AUTO = "Auto"
    BFLOAT16 = "BFloat16"
    FLOAT16 = "Float16"
    FLOAT32 = "Float32"


class EngineSpec(ApiModel):
    """How the engine, vLLM, is run."""

    image: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\s]+$")] | None = Field(
        None, description="Image of the engine. Default: the platform's."
    )
    max_rank: int = Field(
        64,
        description="Largest rank of an adapter: 8, 16, 32, 64, 128, 256, 320 or 512. Each of maxAdaptersInBatch takes "
        "the memory of this rank, whatever its own.",
    )
    max_adapters_in_batch: int = Field(
        DEFAULT_IN_BATCH, ge=1, le=256, description="Adapters that one batch may mix; each has its room on the device."
    )
    max_loaded_adapters: int = Field(
        DEFAULT_LOADED,
        ge=1,
        le=512,
        description="Adapters that the engine holds in memory at a time. There may be more: one that is asked for is "
        "loaded then, in place of the one that was least recently asked for.",
    )
    max_length: int | None = Field(
        None, ge=16, le=10_485_760, description="Tokens of prompt and answer together. Default: what the model allows."
    )
    precision: EnginePrecision = Field(
        EnginePrecision.AUTO, description="Type to compute in. Auto: the type of the model's weights."
    )
    gpu_memory_fraction: Number = Field(
        0.9, gt=0, le=1, description="Share of the GPU's memory that the engine takes, above 0 and at most 1."
    )
    args: list[Annotated[str, Field(min_length=3, max_length=128)]] | None = Field(
        None,
        max_length=32,
        description=f"Further flags of `vllm serve`, each as --flag or --flag=value: {', '.join(ENGINE_ARGS)}.",
    )


class EngineResources(ApiModel):
    """The resources of the engine's container; requests equal limits."""

    gpus: int = Field(1, ge=0, le=1, description="GPUs of a replica: 1, or 0 to serve on the CPU.")
    gpu_resource: GpuResource = Field(
        "nvidia.com/gpu", description="Name of the extended resource that the GPUs are; the engine's image must fit it."
    )
    cpu: CpuString = Field("4", description='CPU of the engine: 4, 500m or "0.5"; quote a fraction.')
    memory: MemoryString = Field("24Gi", description="Memory of the engine.")
    ephemeral_storage: DiskString = Field(
        "50Gi", description="Disk of a replica: the base model and the adapters that it has brought."
    )


class RolloutSpec(ApiModel):
    """How replicas are replaced, as in a Deployment."""

    max_surge: int = Field(1, ge=0, le=64, description="Replicas above spec.replicas while a change is rolled out.")
    max_unavailable: int = Field(0, ge=0, le=64, description="Replicas that may be missing meanwhile.")


class AdapterServerSpec(KindSpec):
    """What to serve, with which adapters, for whom and on how many replicas."""

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

    model: ModelSpec = Field(description="The base model; adapters trained on another are not served.")
    adapters: list[AdapterSource] | None = Field(
        None,
        max_length=512,
        description="Adapters by name.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    adapter_selector: AdapterSelector | None = Field(
        None,
        description="Every LoRAJob and AdapterMerge (into: Adapter) with these labels, under its own name, as soon as "
        "it has succeeded and for as long as it exists.",
    )
    adapter_secret_ref: LocalReference | None = Field(
        None,
        description="Secret that opens every adapter, to read. Default: the platform's for outputs, else the pod's "
        "workload identity.",
    )
    aliases: list[Alias] | None = Field(
        None,
        max_length=64,
        description="Names that lead to adapters: for a stable name, a canary, a rollback.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    access: AccessSpec = Field(default_factory=AccessSpec, description="Who may ask.")
    replicas: int = Field(
        1,
        ge=0,
        le=64,
        description="Replicas; 0 stops the server. An autoscaler sets it through the scale subresource.",
        json_schema_extra={SERVER_DEFAULT: True},
    )
    engine: EngineSpec = Field(
        default_factory=EngineSpec, description="How the engine is run; a change replaces the replicas one by one."
    )
    resources: EngineResources = Field(
        default_factory=EngineResources, description="Resources of the engine's container."
    )
    scheduling: SchedulingSpec = Field(default_factory=SchedulingSpec, description="Where the replicas run.")
    rollout: RolloutSpec = Field(default_factory=RolloutSpec, description="How replicas are replaced.")
