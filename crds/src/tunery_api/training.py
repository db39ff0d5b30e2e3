"""Define the blocks of a spec for training, evaluation, diagnosis, checkpoints and tracking."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tunery_api.fields import ApiModel, Number, StorageUri
from tunery_api.inputs import AdapterReference, LocalReference

MOST_PASSES: Final = 1024
"""Of all devices, before an optimizer step."""


class Scheduler(StrEnum):
    """How the learning rate moves after the warm-up."""

    COSINE = "Cosine"
    LINEAR = "Linear"
    CONSTANT = "Constant"
    POLYNOMIAL = "Polynomial"
    INVERSE_SQRT = "InverseSqrt"


class Optimizer(StrEnum):
    """The optimizer; the 8-bit and paged ones are bitsandbytes'."""

    ADAMW = "AdamW"
    ADAMW_8BIT = "AdamW8bit"
    PAGED_ADAMW_32BIT = "PagedAdamW32bit"
    PAGED_ADAMW_8BIT = "PagedAdamW8bit"


class Loss(StrEnum):
    """Which tokens the loss counts."""

    COMPLETION = "Completion"
    ALL = "All"


class Precision(StrEnum):
    """The type that the model computes in."""

    AUTO = "Auto"
    BFLOAT16 = "BFloat16"
    FLOAT16 = "Float16"
    FLOAT32 = "Float32"


class OnOutOfMemory(StrEnum):
    """What is done where memory runs out in a pass."""

    HALVE_BATCH = "HalveBatch"
    FAIL = "Fail"


class Parallelism(StrEnum):
    """How several devices share the work."""

    AUTO = "Auto"
    DDP = "DDP"
    """Each has the whole base."""
    FSDP = "FSDP"
    """The GPUs of a node share the base."""


class TrainingSpec(ApiModel):
    """The training loop."""

    PREFLIGHT_NEUTRAL: ClassVar = frozenset(
        {
            *("learning_rate", "scale_learning_rate_with_rank", "scheduler", "warmup"),
            *("weight_decay", "max_grad_norm", "neftune_noise_alpha"),
        }
    )
    """Fields that change neither the prepared data nor the memory: a sweep needs no preflight for another value."""

    epochs: Number | None = Field(
        None,
        gt=0,
        description="Passes over the data, such as 3 or 0.5, above 0. Default: the preset's, else 1, and up to 3 where "
        "the data is small; not with maxSteps.",
    )
    max_steps: int | None = Field(None, ge=1, le=100_000_000, description="Optimizer steps, instead of epochs.")
    learning_rate: Number | None = Field(
        None,
        gt=0,
        description="Peak learning rate, such as 2e-4, above 0. Default: the preset's, else 2e-4; AdaLoRA "
        "1e-3, IA3 3e-3, PrefixTuning 1e-2 (with projection 1e-3) and PromptTuning 3e-2, whatever the preset. DPO, "
        "ORPO and KTO: a quarter of these.",
    )
    scale_learning_rate_with_rank: bool = Field(
        False, description="Multiply the learning rate by sqrt(8 / rank), for higher ranks (docs/methods.md#presets)."
    )
    scheduler: Scheduler = Field(Scheduler.COSINE, description="How the learning rate moves after the warm-up.")
    warmup: Number | None = Field(
        None, ge=0, description="Below 1: share of all steps, such as 0.1; else steps. Default: the preset's, else 0.1."
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Rows in one forward pass of one device. Default: what fits into its memory, at most the rows of "
        "an optimizer step.",
    )
    gradient_accumulation: int | None = Field(
        None,
        ge=1,
        le=MOST_PASSES,
        description="Forward passes before an optimizer step, those of all devices counted together: a multiple of "
        "resources.gpus x resources.nodes, with gpus: 0 of nodes. Default: as many as make 16 rows an optimizer step, "
        "or so many fewer that there are 100 steps; with several devices the next multiple of their number.",
    )
    parallelism: Parallelism = Field(
        Parallelism.AUTO,
        description="How several devices share the work. DDP: each has the whole base model. FSDP: the GPUs of a node "
        "share it, which is slower and is for what does not fit otherwise. Auto: DDP where the base fits into each "
        "GPU, else FSDP; status.resolved says which and why.",
    )
    max_length: int = Field(2048, ge=8, le=1_048_576, description="Tokens of a row; what is longer is cut off.")
    packing: bool | None = Field(
        None,
        description="Fill rows of maxLength with several examples, attention kept inside each. Default: true where "
        "task, method and model allow it, and either enough rows remain for 100 optimizer steps or maxSteps is set.",
    )
    group_by_length: bool = Field(
        False, description="Put rows of similar length into a batch; needless and refused with packing."
    )
    loss: Loss = Field(
        Loss.COMPLETION, description="Completion: the assistant's tokens; All, for task SFT only: every token."
    )
    optimizer: Optimizer | None = Field(
        None, description="The optimizer. Default: AdamW; PagedAdamW8bit where a GPU has no room for AdamW's state."
    )
    weight_decay: Number = Field(0.0, ge=0, description="Weight decay, such as 0.01.")
    max_grad_norm: Number = Field(0.3, ge=0, description="Gradients are clipped to this norm; 0: never.")
    precision: Precision = Field(
        Precision.AUTO, description="Auto: BFloat16 where the device has it, else Float32 (CPU) or Float16 (GPU)."
    )
    gradient_checkpointing: bool | None = Field(
        None,
        description="Recompute activations to save memory. Default: true unless the memory of the device is known to "
        "suffice without it, and with prefix tuning.",
    )
    on_out_of_memory: OnOutOfMemory = Field(
        OnOutOfMemory.HALVE_BATCH,
        description="Where memory runs out in a pass. HalveBatch: go on from the last finished step with half the rows "
        "of a pass and twice the passes, then with activations recomputed; the rows of a step stay the same. Fail: end "
        "the job.",
    )
    neftune_noise_alpha: Number | None = Field(
        None,
        ge=0,
        description="Noise added to the embeddings while training (NEFTune), for task SFT only; unset: none.",
    )
    seed: int = Field(42, ge=0, le=2**31 - 1, description="Seed of the data order, the initialisation and dropout.")


class PublishedWeights(StrEnum):
    """Which weights of a run are published."""

    BEST = "Best"
    LAST = "Last"


class GenerationSpec(ApiModel):
    """Held-out rows that are answered, by the base model and by the adapter."""

    rows: int = Field(16, ge=1, le=256, description="How many rows are answered, spread over the held-out ones.")
    max_new_tokens: int = Field(128, ge=1, le=4096, description="Tokens of an answer, at most.")


class EvaluationSpec(ApiModel):
    """When the held-out rows are measured, what is published, and what the adapter has to reach."""

    times: int | None = Field(
        None,
        ge=1,
        le=16,
        description="Evaluations from the start to the end, at equal distances; one before training comes on top. "
        "Default: as many as take some 5 % of the time, at most 8; not with everySteps.",
    )
    every_steps: int | None = Field(
        None, ge=1, le=1_000_000, description="Steps between two evaluations, instead of times."
    )
    publish: PublishedWeights | None = Field(
        None,
        description="Best: the weights of the evaluation with the lowest loss; Last: those of the last step. Default: "
        "Best; for AdaLoRA, whose earlier weights have more rank than was asked for, Last unless it may stop early.",
    )
    min_improvement: Number = Field(
        0.0,
        lt=1,
        description="Publish only if the evaluation loss is below the base model's by at least this share of it, such "
        "as 0.05; below 1.",
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, le=1000, description="Stop after so many evaluations in a row without a better loss."
    )
    generation: GenerationSpec | None = Field(
        None,
        description="Let held-out rows be answered before training and after it, and compare with what they say: exact "
        "match and ROUGE-L in status.metrics, every answer in answers.jsonl, a few in the model card. For task SFT "
        "with loss Completion. Default: no.",
    )


class DiagnosisAction(StrEnum):
    """What is done about a Problem."""

    WARN = "Warn"
    STOP = "Stop"


class DiagnosisSpec(ApiModel):
    """What is done about what a run finds out about itself."""

    action: DiagnosisAction = Field(
        DiagnosisAction.WARN,
        description="Warn: a Problem is told in status.findings, and training goes on. Stop: it ends the job, as "
        "LossDiverged or NotImproved, before more GPU time is spent.",
    )
    show_example: bool = Field(
        False,
        description="Print one row in the log as the model sees it, with what it is taught between [[ and ]]. Whoever "
        "may read the pods' logs reads that row.",
    )


class CheckpointSpec(ApiModel):
    """When the state of training is saved beside the output, to resume from."""

    every_steps: int | None = Field(None, ge=1, le=1_000_000, description="Steps between two checkpoints.")
    every_minutes: int | None = Field(
        None, ge=1, le=10_080, description="Minutes between two checkpoints. Default: 10, if neither is set."
    )
    keep: int = Field(2, ge=1, le=100, description="Complete checkpoints that are kept while training.")
    keep_after_success: bool = Field(
        False, description="Keep them once the adapter is published; else they are removed then."
    )


class ContinueFrom(AdapterReference):
    """The adapter to train further; exactly one of loraJobRef and uri."""


class ResumeFrom(ApiModel):
    """The checkpoints of another LoRAJob to go on from; exactly one of loraJobRef and uri."""

    lora_job_ref: LocalReference | None = Field(
        None, description="A LoRAJob of this namespace; waits until it has ended, and takes its newest checkpoint."
    )
    uri: StorageUri | None = Field(
        None,
        description="A checkpoint, as status.checkpoint.uri shows it, or the folder of all of them, whose newest is "
        "taken; opened by secretRef.",
    )
    secret_ref: LocalReference | None = Field(
        None, description="Secret that opens the checkpoints. Default: output.secretRef."
    )


ShortText = Annotated[str, Field(min_length=1, max_length=128)]


class WandbSpec(ApiModel):
    """Weights & Biases."""

    project: ShortText = Field(description="Project that the run appears in.")
    entity: ShortText | None = Field(None, description="Team or user; default: the key's own.")
    secret_ref: LocalReference | None = Field(
        None,
        description="Secret with WANDB_API_KEY (and WANDB_BASE_URL). Without one the run is published beside the "
        "adapter, under runs/wandb/, for `wandb sync`.",
    )


class MlflowSpec(ApiModel):
    """MLflow."""

    uri: str = Field(
        min_length=8, max_length=1024, pattern=r"^https?://[^\s]+$", description="Address of the tracking server."
    )
    experiment: ShortText = Field(description="Experiment that the run appears in.")
    secret_ref: LocalReference | None = Field(
        None, description="Secret with MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD."
    )


class TrackingSpec(ApiModel):
    """Where the run's curves go, beside status and the model card."""

    wandb: WandbSpec | None = Field(None, description="Report to Weights & Biases; a sweep's trials are a group there.")
    mlflow: MlflowSpec | None = Field(
        None, description="Report to an MLflow server; a sweep's trials have the tag tunery.sweep, its name."
    )
    tensorboard: bool = Field(False, description="Publish TensorBoard files beside the adapter, under runs/.")


def passes_near(passes: int, devices: int) -> str:
    """Return the numbers of passes beside `passes` that `devices` can share evenly, those that the schema allows."""
    below = passes - passes % devices
    return " or ".join(str(each) for each in (below, below + devices) if 0 < each <= MOST_PASSES)
