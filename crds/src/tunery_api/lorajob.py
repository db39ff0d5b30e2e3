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
    """Whether the checks on CPU come before the GPU."""

    REQUIRED = "Required"
    SKIP = "Skip"
    ONLY = "Only"
    """The checks are all there is: the object succeeds with them, and nothing is trained."""


class OnStop(StrEnum):
    """What becomes of what a job has trained that ends before its last step."""

    PUBLISH = "Publish"
    DISCARD = "Discard"


StopReason = Annotated[str, Field(min_length=1, max_length=256, pattern=r"\S")]


class CacheSpec(ApiModel):
    """A cache that the jobs of a namespace share."""

    claim_name: ObjectName = Field(
        description="A ReadWriteMany claim of the job's namespace. Preflight fills it; training reads it. Without it, "
        "the platform's, where it names one."
    )


class TrainingRun(ApiModel):
    """What to train and with what: of a LoRAJob, and of each trial of a LoRASweep."""

    model: ModelSpec = Field(description="The base model.")
    dataset: DatasetSpec = Field(description="The training data.")
    task: TrainingTask = Field(
        TrainingTask.SFT,
        description="What is learned: SFT, to answer as the rows do; DPO, ORPO, KTO, to prefer one answer to another.",
    )
    method: Method = Field(
        Method.AUTO,
        description="The PEFT method. Auto chooses from the model's size, the memory and the number of rows "
        "(docs/methods.md#which-method); status.resolved says which and why.",
    )
    preset: Preset | None = Field(
        None,
        description="InstructionTuning, DomainAdaptation or StyleTransfer: tuned settings for what the manifest leaves "
        "open (docs/methods.md#presets).",
    )
    lora: LoraSpec = Field(default_factory=LoraSpec, description="Settings of the LoRA family.")
    adalora: AdaLoraSpec | None = Field(None, description="Settings of AdaLoRA.")
    prompt_tuning: PromptTuningSpec | None = Field(None, description="Settings of prompt tuning.")
    prefix_tuning: PrefixTuningSpec | None = Field(None, description="Settings of prefix tuning.")
    quantization: QuantizationSpec | None = Field(
        None, description="How the base is quantised. Default: NF4 with double quantisation for QLoRA and QDoRA."
    )
    preference: PreferenceSpec | None = Field(None, description="Settings of DPO, ORPO and KTO.")
    training: TrainingSpec = Field(default_factory=TrainingSpec, description="The training loop.")
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec, description="When and how it is evaluated.")
    diagnosis: DiagnosisSpec = Field(
        default_factory=DiagnosisSpec, description="What is done about what a run finds out about itself."
    )
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec, description="When the state is saved.")
    continue_from: ContinueFrom | None = Field(None, description="An adapter to train further.")
    tracking: TrackingSpec | None = Field(None, description="Where the curves go.")
    cache: CacheSpec | None = Field(None, description="Where base models and prepared data are kept for the next job.")
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec, description="Resources of each training pod.")
    scheduling: SchedulingSpec = Field(
        default_factory=SchedulingSpec, description="Where the pods run. May change while no pod runs."
    )


class LoRAJobSpec(TrainingRun, LifecycleFields):
    """What to train, with what, and where to put it."""

    MUTABLE: ClassVar[frozenset[str]] = LifecycleFields.MUTABLE | {"onStop"}
    SET_ONCE: ClassVar[frozenset[str]] = frozenset({"stop"})

    resume_from: ResumeFrom | None = Field(
        None,
        description="Checkpoints of another LoRAJob to go on from, one that failed, was deleted, or kept them: of the "
        "same base, data, adapter and rows of an optimizer step. Not with continueFrom.",
    )
    output: OutputSpec = Field(default_factory=OutputSpec, description="Where the adapter is published.")
    preflight: PreflightPolicy = Field(
        PreflightPolicy.REQUIRED,
        description="Required: data, model, credentials and output are checked on CPU before a GPU is asked for. "
        "Skip: they are not. Only: nothing follows; the job succeeds once they have passed.",
    )
    stop: StopReason | None = Field(
        None,
        description="Why to end the job now, for good: its pod stores a checkpoint and ends, nothing starts again, and "
        "onStop says what becomes of what was trained. It may be set at any time, and then neither changed nor taken "
        "away; on a job that has ended it does nothing. To stop for a while, use suspend.",
    )
    on_stop: OnStop | None = Field(
        None,
        description="Publish: what is best in the newest checkpoint becomes the adapter at the output, also where "
        "activeDeadlineSeconds ends the job, which is then Stopped and not Failed. Discard: nothing is published. "
        "Default: Publish after stop; activeDeadlineSeconds fails the job, which can be tried again.",
    )
