"""Define the spec and status of BatchInference: answer a file of requests through an AdapterServer."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from pydantic import Field

from tunery_api.adapterserver import AdapterName
from tunery_api.fields import ApiModel, CpuString, DatasetUri, DiskString, MemoryString, OpenModel, Text
from tunery_api.inputs import LocalReference, OutputSpec, SecretKeyReference
from tunery_api.jobs import LifecycleFields, SchedulingSpec
from tunery_api.status import CommonStatus, ProgressStatus

MODELS_SHOWN: Final = 64


class BatchInput(ApiModel):
    """The input file."""

    uri: DatasetUri = Field(
        description="URI of one file in OpenAI's batch format, with {custom_id, method, url, body} per line: "
        "s3://bucket/key, hf://owner/name/file, pvc://claim/path or configmap://name/key; .jsonl, optionally "
        ".gz or .zst."
    )
    secret_ref: LocalReference | None = Field(
        None, description="Secret that grants access to the input. Default: the pod's workload identity."
    )


class BatchResources(ApiModel):
    """The resources of the client container; the AdapterServer has its own. Requests equal limits."""

    gpus: ClassVar[int] = 0
    gpu_resource: ClassVar[str] = ""

    cpu: CpuString = Field("1", description='CPU of the container: 1, 500m or "0.5". Quote a fraction.')
    memory: MemoryString = Field("1Gi", description="Memory of the container. You can change it while no pod runs.")
    ephemeral_storage: DiskString = Field(
        "10Gi",
        description="Ephemeral storage of the container, for input and answers. You can change it while no pod runs.",
    )


class BatchInferenceSpec(LifecycleFields):
    """Which requests to send to which server, and where to publish the answers."""

    server_ref: LocalReference = Field(
        description="An AdapterServer of this namespace. The batch waits until the server is ready."
    )
    api_key_secret_ref: SecretKeyReference | None = Field(
        None, description="API key for the server. Required if the server requires API keys."
    )
    input: BatchInput = Field(description="The requests.")
    default_model: AdapterName | None = Field(
        None, description="Model for lines whose body has none. Default: none; such a line is an error."
    )
    concurrency: int = Field(16, ge=1, le=1024, description="Maximum number of concurrent requests.")
    max_errors: int = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description="Maximum number of failed lines, which are written to errors.jsonl. With more, nothing is "
        "published.",
    )
    output: OutputSpec = Field(default_factory=OutputSpec, description="Where the answers are published.")
    resources: BatchResources = Field(default_factory=BatchResources, description="Resources of the client pod.")
    scheduling: SchedulingSpec = Field(
        default_factory=SchedulingSpec, description="Where the pod runs. You can change it while no pod runs."
    )


class AnsweredBy(OpenModel):
    """The number of lines that one version of a model answered."""

    name: Annotated[str, Field(max_length=253)] = Field(description="Name of the adapter or base model.")
    manifest_sha256: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="SHA-256 of the adapter's manifest. Unset: the base model."
    )
    lines: int = Field(ge=0, description="Number of answered lines.")


class OutputStatus(OpenModel):
    """The published answers; set only after their manifest was read back and every digest matched."""

    uri: Text = Field(description="URI of the answers.")
    manifest_sha256: Annotated[str, Field(max_length=64)] = Field(description="SHA-256 of manifest.json.")
    size_bytes: int = Field(ge=0, description="Total size of the files, in bytes.")


class BatchInferenceStatus(CommonStatus):
    """The status of a BatchInference."""

    output: OutputStatus | None = Field(None, description="The published answers.")
    progress: ProgressStatus | None = Field(None, description="The progress; steps are lines.")
    lines: int | None = Field(None, ge=0, description="Number of input lines.")
    answered: int | None = Field(None, ge=0, description="Number of answered lines.")
    errors: int | None = Field(None, ge=0, description="Number of failed lines, written to errors.jsonl.")
    prompt_tokens: int | None = Field(None, ge=0, description="Total prompt tokens, from the usage in the answers.")
    completion_tokens: int | None = Field(
        None, ge=0, description="Total completion tokens, from the usage in the answers."
    )
    answered_by: list[AnsweredBy] | None = Field(
        None, max_length=MODELS_SHOWN, description="The adapter versions that answered, most lines first."
    )
