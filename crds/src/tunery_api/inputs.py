"""Define the blocks of a spec for model, adapter, data set and output: URIs, revisions and Secrets."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from tunery_api.fields import (
    AdapterUri,
    ApiModel,
    DatasetUri,
    ModelUri,
    Number,
    ObjectName,
    StorageUri,
)
from tunery_api.methods import TrainingTask


class LocalReference(ApiModel):
    """Names an object in the job's own namespace."""

    name: ObjectName = Field(description="Name of the object, in the same namespace.")


class SecretKeyReference(ApiModel):
    """One key of a Secret of the same namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")] = Field(
        description="Name of the Secret."
    )
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = Field(
        description="The key in it."
    )


class ModelSpec(ApiModel):
    """The base model."""

    uri: ModelUri = Field(
        description="The base model: hf://owner/name, s3://bucket/prefix or pvc://claim/path. "
        "A folder with config.json, a tokenizer and safetensors files; no code from the folder is ever run."
    )
    revision: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$",
        description="hf:// only: a commit, branch or tag. It is resolved to a commit once; status.resolved.revision "
        "tells which. Default: main.",
    )
    served_name: str | None = Field(
        None,
        max_length=256,
        pattern=r"^[^\s]*$",
        description="The name under which the base model is served; it becomes base_model_name_or_path in "
        "adapter_config.json. Default: the hf id, else the last part of the URI.",
    )
    secret_ref: LocalReference | None = Field(
        None,
        description="Secret that opens the model: HF_TOKEN (and HF_ENDPOINT) for hf://, the AWS names for s3://. "
        "Mounted as files. Default: the pod's workload identity.",
    )

    def effective_served_name(self) -> str:
        """Return servedName, or what it defaults to."""
        if self.served_name:
            return self.served_name
        scheme, _, rest = self.uri.partition("://")
        return rest.strip("/") if scheme == "hf" else rest.rstrip("/").rsplit("/", 1)[-1]


class AdapterReference(ApiModel):
    """An adapter that is read; exactly one of loraJobRef and uri."""

    lora_job_ref: LocalReference | None = Field(
        None, description="A LoRAJob of this namespace; waits until it has succeeded."
    )
    uri: AdapterUri | None = Field(
        None,
        description="The folder of an adapter: s3://bucket/prefix, pvc://claim/path or hf://owner/name, optionally "
        "with a folder in it. With Tunery's manifest.json every file must match it. Without one the adapter was made "
        "elsewhere: adapter_config.json and adapter_model.safetensors are read, as PEFT saves them, and its origin is "
        "Unverified.",
    )
    revision: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")] | None = (
        Field(None, description="hf:// only: a commit, branch or tag; the status tells the commit. Default: main.")
    )
    sha256: Annotated[str, Field(min_length=64, max_length=64, pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None,
        description="With uri: take this content only, as the status of an object that has read it shows. The SHA-256 "
        "of Tunery's manifest.json; of an adapter made elsewhere that of the two lines that `sha256sum "
        "adapter_config.json adapter_model.safetensors` prints. Default: whatever lies there.",
    )
    secret_ref: LocalReference | None = Field(
        None,
        description="Secret that opens uri: the AWS names for s3://, HF_TOKEN (and HF_ENDPOINT) for hf://. Default for "
        "s3://: that of the LoRAJob's output, or output.secretRef; for hf://: none.",
    )


class DatasetFormat(StrEnum):
    """How a row is written."""

    AUTO = "Auto"
    TEXT = "Text"
    PROMPT_COMPLETION = "PromptCompletion"
    ALPACA = "Alpaca"
    SHARE_GPT = "ShareGPT"
    MESSAGES = "Messages"
    PREFERENCE = "Preference"
    UNPAIRED_PREFERENCE = "UnpairedPreference"


FORMATS_OF_TASK: Final[dict[TrainingTask, tuple[DatasetFormat, ...]]] = {
    TrainingTask.SFT: (
        DatasetFormat.TEXT,
        DatasetFormat.PROMPT_COMPLETION,
        DatasetFormat.ALPACA,
        DatasetFormat.SHARE_GPT,
        DatasetFormat.MESSAGES,
    ),
    TrainingTask.DPO: (DatasetFormat.PREFERENCE,),
    TrainingTask.ORPO: (DatasetFormat.PREFERENCE,),
    TrainingTask.KTO: (DatasetFormat.UNPAIRED_PREFERENCE, DatasetFormat.PREFERENCE),
}
"""What each task learns from; Auto, which is not in it, finds out which."""


class DatasetTemplate(StrEnum):
    """How prompts and completions become text."""

    CHAT = "Chat"
    PLAIN = "Plain"


Split = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
ColumnName = Annotated[str, Field(min_length=1, max_length=128)]


Sha256 = Annotated[str, Field(min_length=64, max_length=64, pattern=r"^[0-9a-f]{64}$")]


class DatasetEvaluation(ApiModel):
    """The rows held out to measure the adapter with; at most one of the three."""

    uri: DatasetUri | None = Field(None, description="A data set of its own, opened by dataset.secretRef.")
    split: Split | None = Field(None, description="A split of the same data set.")
    fraction: Number | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the rows that is held out, above 0 and below 1. Default 0.05: at least 1, at most 1000.",
    )
    sha256: Sha256 | None = Field(
        None,
        description="With uri or split: measure on this content only, as status.dataset.evaluationSha256 of an object "
        "that has read it shows. Default: whatever lies there.",
    )


class DatasetSpec(ApiModel):
    """The training data."""

    uri: DatasetUri = Field(
        description="The data: hf://owner/name, s3://bucket/key, pvc://claim/path or configmap://name/key; "
        ".jsonl, .json, .parquet or .csv, optionally .gz or .zst; a file, a folder or a glob."
    )
    format: DatasetFormat = Field(
        DatasetFormat.AUTO,
        description="How a row is written. Task SFT: Text (text), PromptCompletion (prompt, completion), Alpaca "
        "(instruction, input, output), ShareGPT (conversations) or Messages (messages). DPO, ORPO and KTO: Preference "
        "(prompt, chosen, rejected). KTO: UnpairedPreference (prompt, completion, label). Auto looks at the columns.",
    )
    template: DatasetTemplate = Field(
        DatasetTemplate.CHAT,
        description="Chat: rows become chats, by the tokenizer's chat template, ChatML where it has none. Plain, for "
        "base models: prompt and completion (PromptCompletion, Alpaca) or answer stand one after the other as they "
        "are.",
    )
    split: Split = Field("train", description="The split to train on, where the data set has splits.")
    evaluation: DatasetEvaluation | None = Field(
        None, description="The rows held out; at most one of uri, split and fraction."
    )
    columns: dict[Annotated[str, Field(max_length=32)], ColumnName] | None = Field(
        None,
        max_length=8,
        description="Renames: the format's field to the column of the data set, such as {prompt: question}.",
    )
    max_invalid_rows: int = Field(
        0, ge=0, le=1_000_000, description="Bad rows that are left out and counted; one more refuses the data set."
    )
    sha256: Sha256 | None = Field(
        None,
        description="Train on this content only, as status.dataset.sha256 of an object that has read it shows: the "
        "SHA-256 of the file, or of what `sha256sum` prints of several. Default: whatever lies there.",
    )
    secret_ref: LocalReference | None = Field(
        None, description="Secret that opens the data set. Default: the pod's workload identity."
    )


class OutputSpec(ApiModel):
    """Where the result is published."""

    uri: StorageUri | None = Field(
        None,
        description="The exact place, s3://bucket/prefix. Default: <the platform's default>/<namespace>/<name>/<uid>.",
    )
    secret_ref: LocalReference | None = Field(
        None,
        description="Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, optionally AWS_SESSION_TOKEN, "
        "AWS_REGION, AWS_ENDPOINT_URL, AWS_CA_BUNDLE, AWS_S3_ADDRESSING_STYLE, AWS_SERVER_SIDE_ENCRYPTION, "
        "AWS_SSE_KMS_KEY_ID, AWS_SSE_BUCKET_KEY_ENABLED. Default: the workload identity.",
    )
    overwrite: bool = Field(False, description="Replace a result that is already there; else the job is refused.")
