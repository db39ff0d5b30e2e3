"""Define the spec of LoRAJob: fine-tune an adapter and publish it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from tunery_api.fields import ApiModel, ObjectName
from tunery_api.inputs import DatasetSpec, ModelSpec, OutputSpec
from tunery_api.jobs import LifecycleFields, ResourcesSpec, SchedulingSpec
from tunery_api.methods import (
    AdaLoraSpec,
    LoraSpec,
    Method,
    PreferenceSpec,
    PrefixTuningSpec,
    Preset,
    PromptTuningSpec,
    QuantizationSpec,
    TrainingTask,
)
from tunery_api.training import (
    CheckpointSpec,
    ContinueFrom,
    DiagnosisSpec,
    EvaluationSpec,
    ResumeFrom,
    TrackingSpec,
    TrainingSpec,
)


class PreflightPolicy(StrEnum):
    """Whether the checks on CPU run before the training."""

    REQUIRED = "Required"
    SKIP = "Skip"
    ONLY = "Only"
    """Only the checks run: the object succeeds once they pass, and nothing is trained."""


class OnStop(StrEnum):
    """Whether a job that ends before its last step publishes an adapter."""

    PUBLISH = "Publish"
    DISCARD = "Discard"


StopReason = Annotated[str, Field(min_length=1, max_length=256, pattern=r"\S")]


class CacheSpec(ApiModel):
    """A cache volume that the jobs of a namespace share."""

    claim_name: ObjectName = Field(
        description="Name of a PersistentVolumeClaim in this namespace, with access mode ReadWriteMany. Preflight "
        "writes to it; training reads it."
    )


class TrainingRun(ApiModel):
    """The training settings of a LoRAJob and of a sweep's trials."""

    model: ModelSpec = Field(description="The base model.")
    dataset: DatasetSpec = Field(description="The training data.")
    task: TrainingTask = Field(
        TrainingTask.SFT,
        description="Training objective. SFT: supervised fine-tuning. DPO, ORPO, KTO: learn from preferred and "
        "rejected answers.",
    )
    method: Method = Field(
        Method.AUTO,
        description="PEFT method. Auto chooses by model size, memory and number of rows "
        "(docs/methods.md#which-method); status.resolved shows the choice and the reason.",
    )
    preset: Preset | None = Field(
        None,
        description="InstructionTuning, DomainAdaptation or StyleTransfer: tuned defaults for fields that the manifest "
        "leaves unset (docs/methods.md#presets). Default: none.",
    )
    lora: LoraSpec = Field(
        default_factory=LoraSpec,
        description="Settings of LoRA, QLoRA, DoRA and QDoRA. AdaLoRA and IA3 use some of them.",
    )
    adalora: AdaLoraSpec | None = Field(None, description="Settings of AdaLoRA.")
    prompt_tuning: PromptTuningSpec | None = Field(None, description="Settings of prompt tuning.")
    prefix_tuning: PrefixTuningSpec | None = Field(None, description="Settings of prefix tuning.")
    quantization: QuantizationSpec | None = Field(
        None,
        description="Quantisation of the base model. Default: NF4 with double quantisation for QLoRA and QDoRA, else "
        "none.",
    )
    preference: PreferenceSpec | None = Field(None, description="Settings of DPO, ORPO and KTO.")
    training: TrainingSpec = Field(default_factory=TrainingSpec, description="Settings of the training loop.")
    evaluation: EvaluationSpec = Field(
        default_factory=EvaluationSpec, description="When and how the model is evaluated."
    )
    diagnosis: DiagnosisSpec = Field(
        default_factory=DiagnosisSpec, description="What to do about problems that Tunery detects during the run."
    )
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec, description="When checkpoints are saved.")
    continue_from: ContinueFrom | None = Field(None, description="An adapter to train further. Default: a new adapter.")
    tracking: TrackingSpec | None = Field(None, description="Experiment trackers that the metrics are sent to.")
    cache: CacheSpec | None = Field(
        None,
        description="Volume that caches base models and prepared data for later jobs. Default: the platform's cache "
        "volume, if it has one.",
    )
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec, description="Resources of each training pod.")
    scheduling: SchedulingSpec = Field(
        default_factory=SchedulingSpec, description="Where the pods run. You can change it while no pod runs."
    )


class LoRAJobSpec(TrainingRun, LifecycleFields):
    """What to train, with which settings, and where to publish it."""

    MUTABLE: ClassVar[frozenset[str]] = LifecycleFields.MUTABLE | {"onStop"}
    SET_ONCE: ClassVar[frozenset[str]] = frozenset({"stop"})

    resume_from: ResumeFrom | None = Field(
        None,
        description="Checkpoints of another LoRAJob to resume from: one that failed, was deleted or kept its "
        "checkpoints. Base model, data, adapter and rows per optimizer step must be the same. Not with "
        "continueFrom.",
    )
    output: OutputSpec = Field(default_factory=OutputSpec, description="Where the adapter is published.")
    preflight: PreflightPolicy = Field(
        PreflightPolicy.REQUIRED,
        description="Required: check data, model, credentials and output on CPU before a GPU is requested. Skip: don't "
        "check. Only: check, then succeed without training.",
    )
    stop: StopReason | None = Field(
        None,
        description="Reason to end the job permanently. Its pod saves a checkpoint and ends; onStop applies. You can "
        "set it once, at any time; a finished job ignores it. To pause a job, use suspend.",
    )
    on_stop: OnStop | None = Field(
        None,
        description="Publish: when stop or activeDeadlineSeconds ends the job, publish the best weights of the latest "
        "checkpoint. Discard: publish nothing. Unset: Publish after stop; activeDeadlineSeconds fails the "
        "job, which you can retry.",
    )
