"""Define the status of measurements and estimates: metrics, data set, memory and disk; format their numbers."""

from __future__ import annotations

import math
from typing import Annotated, Final

from pydantic import Field

from tunery_api.fields import OpenModel, Text

Number = Annotated[str, Field(max_length=32)]
"""A floating point number as a string."""


def number_text(value: float) -> str:
    """Return a measured number with six digits, the same text in log, status and model card."""
    return f"{value:.6g}"


def parse_finite(text: object) -> float | None:
    """Return the finite number that a text stands for; None for anything else, which means: not measured."""
    try:
        number = float(str(text))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class MetricsStatus(OpenModel):
    """The latest metrics, as strings."""

    loss: Number | None = Field(None, description="Training loss.")
    eval_loss: Number | None = Field(None, description="Loss on the held-out rows.")
    base_eval_loss: Number | None = Field(
        None,
        description="Loss on the held-out rows before training: of the base model, or with continueFrom of its "
        "adapter.",
    )
    reward_accuracy: Number | None = Field(
        None, description="DPO, ORPO, KTO: evalRewardAccuracy of the rows trained since the last report."
    )
    reward_margin: Number | None = Field(
        None, description="DPO, ORPO, KTO: evalRewardMargin of the rows trained since the last report."
    )
    eval_reward_accuracy: Number | None = Field(
        None,
        description="DPO, ORPO: share of the held-out rows whose chosen answer has the higher reward. KTO: share of "
        "the held-out answers whose reward is on the correct side of the reference point.",
    )
    eval_reward_margin: Number | None = Field(
        None,
        description="DPO, ORPO, KTO: mean reward of the held-out chosen or desirable answers, minus that of the other "
        "answers.",
    )
    base_eval_reward_accuracy: Number | None = Field(
        None,
        description="ORPO: evalRewardAccuracy before training. DPO and KTO have none: their rewards are relative to "
        "the model before training.",
    )
    exact_match: Number | None = Field(
        None, description="With evaluation.generation: share of the generated answers that equal the row's answer."
    )
    base_exact_match: Number | None = Field(None, description="exactMatch before training.")
    rouge_l: Number | None = Field(
        None, description="With evaluation.generation: mean ROUGE-L (F1) of the generated answers, from 0 to 1."
    )
    base_rouge_l: Number | None = Field(None, description="rougeL before training.")
    improvement: Number | None = Field(
        None, description="How far evalLoss is below baseEvalLoss, as a share of baseEvalLoss; negative if it is above."
    )
    improvement_error: Number | None = Field(
        None,
        description="Standard error of improvement over the held-out rows. Unset with fewer than 8 rows that differ.",
    )
    learning_rate: Number | None = Field(None, description="Current learning rate.")
    grad_norm: Number | None = Field(None, description="Gradient norm before clipping.")


class StoppedStatus(OpenModel):
    """Why a job was stopped, and its last step."""

    reason: Annotated[str, Field(min_length=1, max_length=128)] = Field(
        description="StopRequested, or DeadlineExceeded if activeDeadlineSeconds ended a job with onStop: Publish."
    )
    after_step: int | None = Field(None, ge=0, description="Last optimizer step of the job.")


def share_text(share: float) -> str:
    """Return a share in readable form: `41 %`, `4.1 %`, `0.41 %`."""
    value = 100 * share
    return f"{value:.0f} %" if abs(value) >= 9.95 else f"{value:.2g} %"


def change_text(change: float, error: float | None = None, *, signed: bool = True) -> str:
    """Return a relative change in readable form, such as `−30.5 % (± 1.2 %)`.

    `error` is its standard error. The text has 1 to 4 decimals: as many as the first digit of the error needs, or
    without an error that of the change. `signed=False` omits the sign.
    """
    least = abs(change if error is None else error)
    decimals = min(4, max(1, math.ceil(-math.log10(100 * least)))) if 0 < least < math.inf else 1
    # A change of nearly 100 % must not read 100 %: add decimals, then round down.
    while error is None and abs(change) < 1 and decimals < 4 and float(f"{100 * abs(change):.{decimals}f}") == 100:
        decimals += 1
    shown = 100 * abs(change)
    text = f"{min(shown, 99.9999) if error is None and shown < 100 else shown:.{decimals}f}"
    sign = "" if not signed or float(text) == 0 else "−" if change < 0 else "+"
    return f"{sign}{text} %" + (f" (± {100 * error:.{decimals}f} %)" if error is not None else "")


MAX_EVALUATIONS: Final = 16
"""The most evaluations of a status."""


class EvaluationStatus(OpenModel):
    """The evaluation after one optimizer step."""

    step: int = Field(ge=0, description="Optimizer step of the evaluation.")
    loss: Number = Field(description="Loss on the held-out rows.")


MAX_CURVE_POINTS: Final = 64
"""The most points of the loss curve in a status."""


class CurvePoint(OpenModel):
    """The losses after one optimizer step."""

    step: int = Field(ge=0, description="Optimizer step; 0: before training.")
    loss: Number | None = Field(None, description="Training loss.")
    eval_loss: Number | None = Field(None, description="Loss on the held-out rows.")


class CurveStatus(OpenModel):
    """The loss curve of the training."""

    uri: Text | None = Field(
        None, description="URI of the latest curve.jsonl. Unset once the file is published with an adapter."
    )
    points: list[CurvePoint] | None = Field(
        None,
        max_length=MAX_CURVE_POINTS,
        description=f"Points of the curve by step, at most {MAX_CURVE_POINTS}: a longer curve is thinned out and keeps "
        "its first and its latest point.",
    )


class DatasetStatus(OpenModel):
    """What preflight found in the data set."""

    rows: int | None = Field(None, ge=0, description="Number of valid rows.")
    evaluation_rows: int | None = Field(
        None, ge=0, description="Valid rows of the separate evaluation data set or split; 0 if a fraction is held out."
    )
    invalid_rows: int | None = Field(None, ge=0, description="Number of invalid rows, which were skipped.")
    first_invalid: list[Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=5, description="The first invalid rows, each with file, line, field and cause."
    )
    tokens: int | None = Field(None, ge=0, description="Total number of tokens.")
    truncated_percent: Number | None = Field(None, description="Percentage of the rows longer than training.maxLength.")
    duplicates: int | None = Field(None, ge=0, description="Number of duplicate rows.")
    p50_length: int | None = Field(None, ge=0, description="Median length of a row, in tokens.")
    p90_length: int | None = Field(None, ge=0, description="90th percentile of a row's length, in tokens.")
    p99_length: int | None = Field(None, ge=0, description="99th percentile of a row's length, in tokens.")
    longest: int | None = Field(None, ge=0, description="Length of the longest row, in tokens.")
    sha256: Annotated[str, Field(max_length=64)] | None = Field(None, description="SHA-256 of the content.")
    evaluation_sha256: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="SHA-256 of the separate evaluation data set or split."
    )
    format: Annotated[str, Field(max_length=32)] | None = Field(
        None, description="Format of the rows, given or detected."
    )
    template: Annotated[str, Field(max_length=32)] | None = Field(
        None,
        description="How rows became text: tokenizer (its chat template), chatml (the tokenizer has no template) or "
        "none (unchanged).",
    )
    loss_tokens: int | None = Field(None, ge=0, description="Tokens that count in the loss.")
    lost_tokens: int | None = Field(None, ge=0, description="Tokens truncated beyond training.maxLength.")
    unlearnable_rows: int | None = Field(
        None, ge=0, description="Rows skipped because truncation left no answer to learn."
    )
    assistant_turns: int | None = Field(
        None, ge=0, description="Number of assistant turns; with template: Plain, completions."
    )
    context_turns: int | None = Field(
        None, ge=0, description="Assistant turns that rows exclude from training, by weight: 0 or train: false."
    )
    trained_turns: int | None = Field(None, ge=0, description="Assistant turns that are trained.")
    lost_reasoning: int | None = Field(
        None, ge=0, description="Trained turns whose reasoning the chat template removed."
    )
    split_rows: int | None = Field(
        None, ge=0, description="Rows split into several examples because the chat template rewrites earlier turns."
    )
    examples: int | None = Field(
        None, ge=0, description="Examples made of the training rows, including a held-out fraction."
    )
    sequences: int | None = Field(
        None, ge=0, description="Training sequences, without held-out rows: packed ones if packed is true."
    )
    packed: bool | None = Field(None, description="Whether a sequence has several examples.")
    repeated_tokens: int | None = Field(
        None, ge=0, description="Tokens that occur more than once because rows were split."
    )
    desirable: int | None = Field(
        None, ge=0, description="KTO: training answers with label true; of pairs, the chosen answers."
    )
    overlap: int | None = Field(None, ge=0, description="Evaluation rows that are also training rows.")
    ignored_columns: list[Annotated[str, Field(max_length=64)]] | None = Field(
        None, max_length=16, description="Columns that the format doesn't use; the first 16."
    )
    warnings: list[Annotated[str, Field(max_length=256)]] | None = Field(
        None, max_length=8, description="Warnings about the data set, also sent as event DatasetWarning."
    )
    report: Text | None = Field(
        None,
        description="URI of the data report: every skipped row, lengths, and examples as the model sees them. "
        "data-report.json is next to it.",
    )


class EstimateStatus(OpenModel):
    """The estimated resources of a run by part; the sum of the bytes is status.memory.estimateBytes."""

    weights_bytes: int | None = Field(None, ge=0, description="Frozen base model, as stored on the device.")
    adapter_bytes: int | None = Field(None, ge=0, description="Trainable weights.")
    gradients_bytes: int | None = Field(None, ge=0, description="Gradients of the trainable weights.")
    optimizer_bytes: int | None = Field(None, ge=0, description="Optimizer state, and AdaLoRA's importance scores.")
    activations_bytes: int | None = Field(
        None,
        ge=0,
        description="Activations stored for the backward pass, by training.batchSize and the length of the rows.",
    )
    workspace_bytes: int | None = Field(
        None,
        ge=0,
        description="Temporary memory of the backward pass: a tile of logits, a recomputed layer, a dequantised "
        "weight.",
    )
    overhead_bytes: int | None = Field(None, ge=0, description="The process and its libraries.")
    slack_bytes: int | None = Field(None, ge=0, description="Fragmentation of the allocator.")
    row_bytes: int | None = Field(None, ge=0, description="Memory of one more row in a batch.")
    steps: int | None = Field(None, ge=0, description="Total optimizer steps.")
    tokens: int | None = Field(None, ge=0, description="Approximate number of tokens in these steps.")


class MemoryStatus(OpenModel):
    """The device memory: estimated by preflight, and used by training."""

    estimate_bytes: int | None = Field(None, ge=0, description="Estimated peak memory of the device while training.")
    available_bytes: int | None = Field(
        None, ge=0, description="Memory of the device. Unset: the platform settings don't specify it."
    )
    suggested_batch_size: int | None = Field(None, ge=1, description="Largest batch size that fits into memory.")
    peak_bytes: int | None = Field(
        None,
        ge=0,
        description="Peak memory of the latest attempt, of its first process if several train. On GPU: memory "
        "reserved by PyTorch's allocator. On CPU: resident memory with mapped files, which can exceed "
        "resources.memory.",
    )


class DiskStatus(OpenModel):
    """The disk space of training, as estimated by preflight."""

    estimate_bytes: int | None = Field(
        None, ge=0, description="Estimated disk space: downloads, prepared data and checkpoints, plus 10 %."
    )
    available_bytes: int | None = Field(
        None,
        ge=0,
        description="spec.resources.ephemeralStorage; if the manifest leaves it unset, it is derived from "
        "estimateBytes.",
    )
