"""LoRAJob: fine-tune an adapter and publish it."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tunery_api.fields import ApiModel, ObjectName
from tunery_api.inputs import DatasetSpec, ModelSpec, OutputSpec
from tunery_api.lifecycle import LifecycleFields
from tunery_api.methods import (
    AdaLoraSpec,
    LoraSpec,
    Method,
    PrefixTuningSpec,
    Preset,
    PromptTuningSpec,
    QuantizationSpec,
    QuantizationType,
)
from tunery_api.placement import ResourcesSpec, SchedulingSpec
from tunery_api.preference import PreferenceSpec, TrainingTask
from tunery_api.training import (
    MOST_PASSES,
    CheckpointSpec,
    ContinueFrom,
    DiagnosisSpec,
    EvaluationSpec,
    Parallelism,
    Precision,
    ResumeFrom,
    TrackingSpec,
    TrainingSpec,
    passes_near,
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


Why = Annotated[str, Field(min_length=1, max_length=256, pattern=r"\S")]


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

    def device_problems(self) -> Iterator[tuple[str, str]]:
        """Yield what does not go with the devices: the field of `training`, and what is wrong with it."""
        passes, devices = self.training.gradient_accumulation, self.resources.devices
        if self.training.precision is Precision.FLOAT16 and self.resources.gpus == 0:
            yield "precision", "Float16 needs a GPU; with gpus: 0 use Auto, Float32 or BFloat16"
        if passes is not None and passes % devices:
            whose = "resources.gpus x resources.nodes" if self.resources.gpus else "resources.nodes"
            yield (
                "gradientAccumulation",
                f"must be a multiple of the {devices} devices that share the passes ({whose}), is {passes}: set "
                f"{passes_near(passes, devices)}, or leave it out",
            )
        if self.training.parallelism is not Parallelism.FSDP:
            return
        if self.resources.gpus < 2:
            yield "parallelism", FSDP_GPUS
        if self.quantization is not None and self.quantization.type is QuantizationType.INT8:
            yield "parallelism", FSDP_BITS


FSDP_GPUS: Final = (
    "FSDP shares the base among the GPUs of a pod: set resources.gpus to 2 or more, or leave training.parallelism out"
)
FSDP_BITS: Final = (
    "FSDP cannot share a base in Int8; use quantization.type NF4 or FP4, or leave training.parallelism out"
)
_PASSES: Final = "self.?training.?gradientAccumulation.orValue(0)"
_DEVICES: Final = "(self.?resources.?gpus.orValue(1) > 1 ? self.resources.gpus : 1) * self.?resources.?nodes.orValue(1)"
PASSES_ARE_SHARED: Final = f"{_PASSES} < 1 || {_DEVICES} < 1 || {_PASSES} % ({_DEVICES}) == 0"
"""What `device_problems` asks of gradientAccumulation, in CEL; nothing of numbers below 1, which the schema refuses."""
_BELOW: Final = f"{_PASSES} - {_PASSES} % ({_DEVICES})"
_ABOVE: Final = f"{_BELOW} + {_DEVICES}"
SAID_OF_PASSES: Final = (
    "'training.gradientAccumulation must be a multiple of the %d devices that share the passes (%sresources.nodes), "
    f"is %d: set %s%d, or leave it out'.format([{_DEVICES}, "
    f"self.?resources.?gpus.orValue(1) > 0 ? 'resources.gpus x ' : '', {_PASSES}, "
    f"{_PASSES} > {_DEVICES} && {_ABOVE} <= {MOST_PASSES} ? '%d or '.format([{_BELOW}]) : '', "
    f"{_ABOVE} <= {MOST_PASSES} ? {_ABOVE} : {_BELOW}])"
)
"""What it says of it, with its numbers; of a sum of strings the API server would not know the cost."""


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
    stop: Why | None = Field(
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
