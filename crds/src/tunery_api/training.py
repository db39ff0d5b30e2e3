"""Define the spec fields for training, evaluation, diagnosis, checkpoints and tracking."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tunery_api.fields import ApiModel, Number, StorageUri
from tunery_api.inputs import AdapterReference, LocalReference

MOST_PASSES: Final = 1024
"""The most forward passes before an optimizer step, summed over all devices."""


class Scheduler(StrEnum):
    """The learning rate schedule after the warm-up."""

    COSINE = "Cosine"
    LINEAR = "Linear"
    CONSTANT = "Constant"
    POLYNOMIAL = "Polynomial"
    INVERSE_SQRT = "InverseSqrt"


class Optimizer(StrEnum):
    """The optimizer. bitsandbytes implements the 8-bit and paged ones."""

    ADAMW = "AdamW"
    ADAMW_8BIT = "AdamW8bit"
    PAGED_ADAMW_32BIT = "PagedAdamW32bit"
    PAGED_ADAMW_8BIT = "PagedAdamW8bit"


class Loss(StrEnum):
    """The tokens that count in the loss."""

    COMPLETION = "Completion"
    ALL = "All"


class Precision(StrEnum):
    """The floating point type of the computation."""

    AUTO = "Auto"
    BFLOAT16 = "BFloat16"
    FLOAT16 = "Float16"
    FLOAT32 = "Float32"


class OnOutOfMemory(StrEnum):
    """What happens if memory runs out in a forward or backward pass."""

    HALVE_BATCH = "HalveBatch"
    FAIL = "Fail"


class Parallelism(StrEnum):
    """How several devices share the work."""

    AUTO = "Auto"
    DDP = "DDP"
    """Each device holds the complete base model."""
    FSDP = "FSDP"
    """The base model is sharded over the GPUs of a node."""


class TrainingSpec(ApiModel):
    """The settings of the training loop."""

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
        description="Passes over the data, above 0, such as 3 or 0.5. Default: the preset's value, else 1; for small "
        "data up to 3. Not with maxSteps.",
    )
    max_steps: int | None = Field(
        None, ge=1, le=100_000_000, description="Total optimizer steps; replaces epochs. Unset: epochs decides."
    )
    learning_rate: Number | None = Field(
        None,
        gt=0,
        description="Peak learning rate, above 0. Default: the preset's value, else 2e-4. Regardless of presets: "
        "AdaLoRA 1e-3, IA3 3e-3, PrefixTuning 1e-2 (1e-3 with projection), PromptTuning 3e-2. DPO, ORPO "
        "and KTO use a quarter of the default.",
    )
    scale_learning_rate_with_rank: bool = Field(
        False, description="Multiply the learning rate by sqrt(8 / rank), for high ranks (docs/methods.md#rank)."
    )
    scheduler: Scheduler = Field(Scheduler.COSINE, description="Learning rate schedule after the warm-up.")
    warmup: Number | None = Field(
        None,
        ge=0,
        description="Warm-up. A value below 1 is a share of all steps, such as 0.1; a larger one is a number of steps. "
        "Default: the preset's value, else 0.1.",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Rows per forward pass and device. Default: as many as fit into the device's memory, at most the "
        "rows of an optimizer step.",
    )
    gradient_accumulation: int | None = Field(
        None,
        ge=1,
        le=MOST_PASSES,
        description="Forward passes per optimizer step, summed over all devices: a multiple of resources.gpus x "
        "resources.nodes (on CPU: of nodes). Default: 16 rows per step, or fewer to get 100 steps.",
    )
    parallelism: Parallelism = Field(
        Parallelism.AUTO,
        description="DDP: each device holds the base model. FSDP: the GPUs of a node share it, which is slower. Auto: "
        "DDP if the base model fits into each GPU, else FSDP; status.resolved shows the choice.",
    )
    max_length: int = Field(2048, ge=8, le=1_048_576, description="Maximum tokens per row; longer rows are truncated.")
    packing: bool | None = Field(
        None,
        description="Pack several examples into one row of maxLength; attention stays within each example. Default: "
        "true if task, method and model support it, and either maxSteps is set or at least 100 optimizer "
        "steps remain.",
    )
    group_by_length: bool = Field(False, description="Batch rows of similar length. Not with packing.")
    loss: Loss = Field(
        Loss.COMPLETION,
        description="Tokens that count in the loss. Completion: the assistant's tokens. All: every token; task SFT "
        "only.",
    )
    optimizer: Optimizer | None = Field(
        None,
        description="Optimizer. Default: AdamW, or PagedAdamW8bit if AdamW's state doesn't fit into the GPU's memory.",
    )
    weight_decay: Number = Field(0.0, ge=0, description="Weight decay, such as 0.01.")
    max_grad_norm: Number = Field(
        0.3, ge=0, description="Maximum gradient norm; larger gradients are clipped. 0: no clipping."
    )
    precision: Precision = Field(
        Precision.AUTO,
        description="Floating point type of the computation. Auto: BFloat16 if the device supports it, else Float32 on "
        "CPU and Float16 on GPU.",
    )
    gradient_checkpointing: bool | None = Field(
        None,
        description="Recompute activations to save memory. Default: true, unless the device's memory is known to "
        "suffice without it, or the method is PrefixTuning.",
    )
    on_out_of_memory: OnOutOfMemory = Field(
        OnOutOfMemory.HALVE_BATCH,
        description="HalveBatch: resume from the last finished step with half the batch size and twice the passes, "
        "then with gradient checkpointing; rows per step stay the same. Fail: fail the job.",
    )
    neftune_noise_alpha: Number | None = Field(
        None,
        ge=0,
        description="Scale of the noise that NEFTune adds to the embeddings in training. Task SFT only. Default: no "
        "noise.",
    )
    seed: int = Field(
        42, ge=0, le=2**31 - 1, description="Random seed of the data order, the initialisation and dropout."
    )


class PublishedWeights(StrEnum):
    """The weights that a run publishes."""

    BEST = "Best"
    LAST = "Last"


class GenerationSpec(ApiModel):
    """Answers to held-out rows, generated by the base model and by the adapter."""

    rows: int = Field(16, ge=1, le=256, description="Number of held-out rows to answer, spread evenly over them.")
    max_new_tokens: int = Field(128, ge=1, le=4096, description="Maximum tokens of an answer.")


class EvaluationSpec(ApiModel):
    """When the held-out rows are evaluated, which weights are published, and the required improvement."""

    times: int | None = Field(
        None,
        ge=1,
        le=16,
        description="Number of evaluations, evenly spaced; one before training comes on top. Default: as many as take "
        "about 5 % of the time, at most 8. Not with everySteps.",
    )
    every_steps: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Optimizer steps between evaluations; replaces times. Unset: times decides.",
    )
    publish: PublishedWeights | None = Field(
        None,
        description="Weights to publish. Best: of the evaluation with the lowest loss. Last: of the last step. "
        "Default: Best; for AdaLoRA, whose earlier weights have a higher rank, Last unless "
        "earlyStoppingPatience is set.",
    )
    min_improvement: Number = Field(
        0.0,
        lt=1,
        description="Required improvement, as a share of the base model's evaluation loss, such as 0.05; below 1. "
        "Below it the adapter isn't published.",
    )
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Stop after this many consecutive evaluations without a lower loss. Unset: no early stopping.",
    )
    generation: GenerationSpec | None = Field(
        None,
        description="Generate answers to held-out rows before and after training: exact match and ROUGE-L in "
        "status.metrics, answers in answers.jsonl, samples in the model card. Task SFT with loss Completion "
        "only. Default: off.",
    )


class DiagnosisAction(StrEnum):
    """What happens if the diagnosis finds a Problem."""

    WARN = "Warn"
    STOP = "Stop"


class DiagnosisSpec(ApiModel):
    """How problems that Tunery detects during the run are handled."""

    action: DiagnosisAction = Field(
        DiagnosisAction.WARN,
        description="Action when a Problem is found. Warn: report it in status.findings and continue training. Stop: "
        "end the job early with reason LossDiverged or NotImproved, to save GPU time.",
    )
    show_example: bool = Field(
        False,
        description="Print one training row to the log as the model sees it, with the trained tokens between [[ and "
        "]]. Users who can read pod logs can read this row.",
    )


class CheckpointSpec(ApiModel):
    """When the training state is saved next to the output, to resume from."""

    every_steps: int | None = Field(
        None, ge=1, le=1_000_000, description="Optimizer steps between checkpoints. Unset: everyMinutes decides."
    )
    every_minutes: int | None = Field(
        None, ge=1, le=10_080, description="Minutes between checkpoints. Default: 10, if everySteps is unset too."
    )
    keep: int = Field(2, ge=1, le=100, description="Complete checkpoints to retain while training.")
    keep_after_success: bool = Field(
        False, description="Retain the checkpoints after the adapter is published; false: delete them."
    )


class ContinueFrom(AdapterReference):
    """The adapter to train further; exactly one of loraJobRef and uri."""


class ResumeFrom(ApiModel):
    """The checkpoints of another LoRAJob to resume from; exactly one of loraJobRef and uri."""

    lora_job_ref: LocalReference | None = Field(
        None,
        description="A LoRAJob of this namespace. The new job waits until it has ended, then resumes from its latest "
        "checkpoint.",
    )
    uri: StorageUri | None = Field(
        None,
        description="URI of a checkpoint, as in status.checkpoint.uri, or of the folder of all checkpoints, to take "
        "the latest. secretRef grants access.",
    )
    secret_ref: LocalReference | None = Field(
        None, description="Secret that grants access to the checkpoints. Default: output.secretRef."
    )


ShortText = Annotated[str, Field(min_length=1, max_length=128)]


class WandbSpec(ApiModel):
    """Weights & Biases."""

    project: ShortText = Field(description="W&B project of the run.")
    entity: ShortText | None = Field(None, description="W&B team or user. Default: the default entity of the API key.")
    secret_ref: LocalReference | None = Field(
        None,
        description="Secret with WANDB_API_KEY (and WANDB_BASE_URL). Unset: the run is recorded offline and published "
        "next to the adapter, in runs/wandb/, for `wandb sync`.",
    )


class MlflowSpec(ApiModel):
    """MLflow."""

    uri: str = Field(
        min_length=8, max_length=1024, pattern=r"^https?://[^\s]+$", description="URL of the tracking server."
    )
    experiment: ShortText = Field(description="MLflow experiment of the run.")
    secret_ref: LocalReference | None = Field(
        None, description="Secret with MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD."
    )


class TrackingSpec(ApiModel):
    """The experiment trackers that receive the metrics."""

    wandb: WandbSpec | None = Field(None, description="Report to Weights & Biases. The trials of a sweep form a group.")
    mlflow: MlflowSpec | None = Field(
        None,
        description="Report to an MLflow server. The trials of a sweep have the tag tunery.sweep with the sweep's "
        "name.",
    )
    tensorboard: bool = Field(False, description="Publish TensorBoard event files next to the adapter, in runs/.")


def passes_near(passes: int, devices: int) -> str:
    """Return the nearest allowed multiples of `devices` below and above `passes`, as text."""
    below = passes - passes % devices
    return " or ".join(str(each) for each in (below, below + devices) if 0 < each <= MOST_PASSES)
