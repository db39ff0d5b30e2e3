"""Define the spec fields for model, adapter, data set and output: URIs, revisions and Secrets."""

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
    """A reference to an object in the same namespace."""

    name: ObjectName = Field(description="Name of the object, in the same namespace.")


class SecretKeyReference(ApiModel):
    """A reference to one key of a Secret in the same namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")] = Field(
        description="Name of the Secret."
    )
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = Field(
        description="Key of the Secret."
    )


class ModelSpec(ApiModel):
    """The base model."""

    uri: ModelUri = Field(
        description="URI of the base model: hf://owner/name, s3://bucket/prefix or pvc://claim/path. The folder has "
        "config.json, a tokenizer and safetensors files. Code in the folder is never run."
    )
    revision: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$",
        description="Commit, branch or tag; hf:// only. It is resolved to a commit once, which "
        "status.resolved.revision shows. Default: main.",
    )
    served_name: str | None = Field(
        None,
        max_length=256,
        pattern=r"^[^\s]*$",
        description="Name under which the base model is served; it becomes base_model_name_or_path in "
        "adapter_config.json. Default: the Hugging Face model ID, else the last part of the URI.",
    )
    secret_ref: LocalReference | None = Field(
        None,
        description="Secret that grants access to the model: HF_TOKEN (and HF_ENDPOINT) for hf://, the AWS variables "
        "for s3://. Mounted as files. Default: the pod's workload identity.",
    )

    def effective_served_name(self) -> str:
        """Return servedName or its default."""
        if self.served_name:
            return self.served_name
        scheme, _, rest = self.uri.partition("://")
        return rest.strip("/") if scheme == "hf" else rest.rstrip("/").rsplit("/", 1)[-1]


class AdapterReference(ApiModel):
    """An input adapter; exactly one of loraJobRef and uri."""

    lora_job_ref: LocalReference | None = Field(
        None, description="A LoRAJob of this namespace. This object waits until the LoRAJob has succeeded."
    )
    uri: AdapterUri | None = Field(
        None,
        description="Folder of an adapter: s3://bucket/prefix, pvc://claim/path or hf://owner/name[/folder]. If it has "
        "Tunery's manifest.json, every file must match it. Else PEFT's adapter_config.json and "
        "adapter_model.safetensors are read, with origin Unverified.",
    )
    revision: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")] | None = (
        Field(None, description="Commit, branch or tag; hf:// only. The status shows the commit. Default: main.")
    )
    sha256: Annotated[str, Field(min_length=64, max_length=64, pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None,
        description="With uri: required SHA-256 of Tunery's manifest.json. Without this file: SHA-256 of the output of "
        "`sha256sum adapter_config.json adapter_model.safetensors`. The status of an object that has read it "
        "shows the value. Default: any content.",
    )
    secret_ref: LocalReference | None = Field(
        None,
        description="Secret that grants access to uri: the AWS variables for s3://, HF_TOKEN (and HF_ENDPOINT) for "
        "hf://. Default for s3://: that of the LoRAJob's output, or output.secretRef. Default for hf://: "
        "none.",
    )


class DatasetFormat(StrEnum):
    """The format of a row."""

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
"""The formats that each task accepts. Auto isn't listed: it detects the format."""


class DatasetTemplate(StrEnum):
    """How prompts and completions become text."""

    CHAT = "Chat"
    PLAIN = "Plain"


Split = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
ColumnName = Annotated[str, Field(min_length=1, max_length=128)]


Sha256 = Annotated[str, Field(min_length=64, max_length=64, pattern=r"^[0-9a-f]{64}$")]


class DatasetEvaluation(ApiModel):
    """The held-out rows for the evaluation; at most one of uri, split and fraction."""

    uri: DatasetUri | None = Field(
        None, description="URI of a separate evaluation data set. dataset.secretRef grants access to it."
    )
    split: Split | None = Field(None, description="Split of the same data set.")
    fraction: Number | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the rows that is held out, above 0 and below 1. Default: 0.05, but at least 1 and at "
        "most 1000 rows.",
    )
    sha256: Sha256 | None = Field(
        None,
        description="With uri or split: required SHA-256 of the content. status.dataset.evaluationSha256 of an object "
        "that has read it shows the value. Default: any content.",
    )


class DatasetSpec(ApiModel):
    """The training data."""

    uri: DatasetUri = Field(
        description="URI of the data: hf://owner/name, s3://bucket/key, pvc://claim/path or configmap://name/key. A "
        "file, folder or glob of .jsonl, .json, .parquet or .csv, optionally .gz or .zst."
    )
    format: DatasetFormat = Field(
        DatasetFormat.AUTO,
        description="SFT: Text (text), PromptCompletion (prompt, completion), Alpaca (instruction, input, output), "
        "ShareGPT (conversations), Messages (messages). DPO, ORPO, KTO: Preference (prompt, chosen, "
        "rejected). KTO: UnpairedPreference (prompt, completion, label). Auto detects it by the columns.",
    )
    template: DatasetTemplate = Field(
        DatasetTemplate.CHAT,
        description="Chat: apply the tokenizer's chat template, or ChatML if it has none. Plain, for base models: "
        "concatenate prompt and completion (PromptCompletion, Alpaca) or prompt and answer unchanged.",
    )
    split: Split = Field("train", description="Split to train on, if the data set has splits.")
    evaluation: DatasetEvaluation | None = Field(
        None,
        description="Held-out rows for the evaluation; at most one of uri, split and fraction. Default: a fraction of "
        "0.05.",
    )
    columns: dict[Annotated[str, Field(max_length=32)], ColumnName] | None = Field(
        None,
        max_length=8,
        description="Column of the data set for each field of the format, such as {prompt: question}. Default: a "
        "column has its field's name.",
    )
    max_invalid_rows: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Maximum invalid rows, which are skipped and counted. With more, the data set is rejected.",
    )
    sha256: Sha256 | None = Field(
        None,
        description="Required SHA-256 of the file, or of the output of `sha256sum` for several files. "
        "status.dataset.sha256 of an object that has read the data shows the value. Default: any content.",
    )
    secret_ref: LocalReference | None = Field(
        None, description="Secret that grants access to the data set. Default: the pod's workload identity."
    )


class OutputSpec(ApiModel):
    """Where the result is published."""

    uri: StorageUri | None = Field(
        None,
        description="URI to publish at, s3://bucket/prefix. Default: <the platform's "
        "default>/<namespace>/<name>/<uid>.",
    )
    secret_ref: LocalReference | None = Field(
        None,
        description="Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, optionally AWS_SESSION_TOKEN, "
        "AWS_REGION, AWS_ENDPOINT_URL, AWS_CA_BUNDLE, AWS_S3_ADDRESSING_STYLE, "
        "AWS_SERVER_SIDE_ENCRYPTION, AWS_SSE_KMS_KEY_ID, AWS_SSE_BUCKET_KEY_ENABLED. Default: the "
        "platform's Secret for outputs, else the pod's workload identity.",
    )
    overwrite: bool = Field(
        False, description="Replace an existing result at the URI; false: an existing result is an error."
    )
