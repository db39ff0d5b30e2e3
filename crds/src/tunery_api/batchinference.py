"""Define BatchInference, spec and status: answer a file of requests through an AdapterServer, and publish."""

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
    """The requests."""

    uri: DatasetUri = Field(
        description="One file of lines as OpenAI's batches have them, {custom_id, method, url, body}: s3://bucket/key, "
        "hf://owner/name/file, pvc://claim/path or configmap://name/key; .jsonl, optionally .gz or .zst."
    )
    secret_ref: LocalReference | None = Field(
        None, description="Secret that opens the input. Default: the pod's workload identity."
    )


class BatchResources(ApiModel):
    """The resources of the container that asks; the engine's are the server's. Requests equal limits."""

    gpus: ClassVar[int] = 0
    gpu_resource: ClassVar[str] = ""

    cpu: CpuString = Field("1", description='CPU of the container: 1, 500m or "0.5"; quote a fraction.')
    memory: MemoryString = Field("1Gi", description="Memory of the container. May change while no pod runs.")
    ephemeral_storage: DiskString = Field(
        "10Gi", description="Disk of the container: input and answers. May change while no pod runs."
    )


class BatchInferenceSpec(LifecycleFields):
    """What to ask, whom, and where to put the answers."""

    server_ref: LocalReference = Field(
        description="An AdapterServer of this namespace; it is waited for until it answers."
    )
    api_key_secret_ref: SecretKeyReference | None = Field(
        None, description="The API key to ask with, where the server asks for one."
    )
    input: BatchInput = Field(description="The requests.")
    default_model: AdapterName | None = Field(
        None, description="Model of the lines whose body names none. Default: such a line is an error."
    )
    concurrency: int = Field(16, ge=1, le=1024, description="Requests that are in flight at a time.")
    max_errors: int = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description="Lines that may end in errors.jsonl; with one more, nothing is published.",
    )
    output: OutputSpec = Field(default_factory=OutputSpec, description="Where the answers are published.")
    resources: BatchResources = Field(default_factory=BatchResources, description="Resources of the pod that asks.")
    scheduling: SchedulingSpec = Field(
        default_factory=SchedulingSpec, description="Where the pod runs. May change while no pod runs."
    )


class AnsweredBy(OpenModel):
    """What answered lines of a batch."""

    name: Annotated[str, Field(max_length=253)] = Field(description="Name of the adapter, or of the base model.")
    manifest_sha256: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Digest of the adapter's manifest; none for the base model."
    )
    lines: int = Field(ge=0, description="Lines that it answered.")


class OutputStatus(OpenModel):
    """Published answers; set only after their manifest was read back and every digest matched."""

    uri: Text = Field(description="Where they lie.")
    manifest_sha256: Annotated[str, Field(max_length=64)] = Field(description="Digest of manifest.json.")
    size_bytes: int = Field(ge=0, description="Size of all files.")


class BatchInferenceStatus(CommonStatus):
    """The status of a BatchInference."""

    output: OutputStatus | None = Field(None, description="The published answers.")
    progress: ProgressStatus | None = Field(None, description="How far it is; steps are lines.")
    lines: int | None = Field(None, ge=0, description="Lines of the input.")
    answered: int | None = Field(None, ge=0, description="Lines that are answered.")
    errors: int | None = Field(None, ge=0, description="Lines that ended in errors.jsonl.")
    prompt_tokens: int | None = Field(None, ge=0, description="Tokens of the prompts, by the answers' usage.")
    completion_tokens: int | None = Field(None, ge=0, description="Tokens of the answers, by their usage.")
    answered_by: list[AnsweredBy] | None = Field(
        None, max_length=MODELS_SHOWN, description="What answered, by version, most lines first."
    )
