"""Define the statuses of what is measured or estimated: metrics, data set, memory, disk; and format their numbers."""

from __future__ import annotations

import math
from typing import Annotated, Final

from pydantic import Field

from tunery_api.fields import OpenModel, Text

Number = Annotated[str, Field(max_length=32)]
"""A floating point number as a string."""


def number_text(value: float) -> str:
    """Return a measured number as log, status and model card tell it: in six digits, so that each says the same."""
    return f"{value:.6g}"


def parse_finite(text: object) -> float | None:
    """Return the number that a text is; None where it is none, or not a finite one: nothing was measured."""
    try:
        number = float(str(text))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class MetricsStatus(OpenModel):
    """The newest metrics, as strings."""

    loss: Number | None = Field(None, description="Training loss.")
    eval_loss: Number | None = Field(None, description="Loss on the held-out rows.")
    base_eval_loss: Number | None = Field(
        None, description="The loss on the held-out rows before training: the base model's, or continueFrom's."
    )
    reward_accuracy: Number | None = Field(
        None, description="DPO, ORPO, KTO: what evalRewardAccuracy is, of the rows trained on since the last report."
    )
    reward_margin: Number | None = Field(
        None, description="DPO, ORPO, KTO: what evalRewardMargin is, of the rows trained on since the last report."
    )
    eval_reward_accuracy: Number | None = Field(
        None,
        description="DPO and ORPO: share of the held-out rows whose chosen answer has the higher reward. KTO: of those "
        "on their side of the reference point.",
    )
    eval_reward_margin: Number | None = Field(
        None,
        description="DPO, ORPO, KTO: mean reward of the held-out chosen or desirable answers, less the others' one.",
    )
    base_eval_reward_accuracy: Number | None = Field(
        None, description="ORPO: evalRewardAccuracy before training. DPO and KTO compare with that, and have none."
    )
    exact_match: Number | None = Field(
        None, description="evaluation.generation: share of the rows whose answer is word for word the row's."
    )
    base_exact_match: Number | None = Field(None, description="exactMatch before training.")
    rouge_l: Number | None = Field(
        None,
        description="evaluation.generation: mean ROUGE-L (F1) of the answers against the rows', from 0 to 1.",
    )
    base_rouge_l: Number | None = Field(None, description="rougeL before training.")
    improvement: Number | None = Field(
        None, description="Share of baseEvalLoss by which evalLoss is below it; negative where it is above."
    )
    improvement_error: Number | None = Field(
        None,
        description="Standard error of improvement, from the held-out rows one by one; left out below 8 that differ.",
    )
    learning_rate: Number | None = Field(None, description="Learning rate.")
    grad_norm: Number | None = Field(None, description="Norm of the gradients before clipping.")


class StoppedStatus(OpenModel):
    """Why a job was stopped, and how far it had come."""

    reason: Annotated[str, Field(min_length=1, max_length=128)] = Field(
        description="StopRequested, or DeadlineExceeded where a deadline publishes."
    )
    after_step: int | None = Field(None, ge=0, description="The optimizer step that was its last.")


def share_text(share: float) -> str:
    """Return a share as people read it: `41 %`, `4.1 %`, `0.41 %`."""
    value = 100 * share
    return f"{value:.0f} %" if abs(value) >= 9.95 else f"{value:.2g} %"


def change_text(change: float, error: float | None = None, *, signed: bool = True) -> str:
    """Return by what share of itself a number has changed, as people read it: `−30.5 % (± 1.2 %)`.

    `error` is a standard error. One decimal, or as many as the first digit of the error needs, at most 4; where none is
    known, of the change. Without `signed` the words around it say whether it fell or rose.
    """
    least = abs(change if error is None else error)
    decimals = min(4, max(1, math.ceil(-math.log10(100 * least)))) if 0 < least < math.inf else 1
    # Next to nothing is left is not nothing: as many decimals as tell them apart, and rounded down where none do.
    while error is None and abs(change) < 1 and decimals < 4 and float(f"{100 * abs(change):.{decimals}f}") == 100:
        decimals += 1
    shown = 100 * abs(change)
    text = f"{min(shown, 99.9999) if error is None and shown < 100 else shown:.{decimals}f}"
    sign = "" if not signed or float(text) == 0 else "−" if change < 0 else "+"
    return f"{sign}{text} %" + (f" (± {100 * error:.{decimals}f} %)" if error is not None else "")


MAX_EVALUATIONS: Final = 16
"""Evaluations of which the status tells."""


class EvaluationStatus(OpenModel):
    """The held-out rows after an optimizer step."""

    step: int = Field(ge=0, description="The step.")
    loss: Number = Field(description="The loss on the held-out rows.")


class DatasetStatus(OpenModel):
    """What preflight found in the data set."""

    rows: int | None = Field(None, ge=0, description="Valid rows.")
    evaluation_rows: int | None = Field(
        None, ge=0, description="Valid rows of an evaluation set of its own; 0 where a fraction is held out."
    )
    invalid_rows: int | None = Field(None, ge=0, description="Rows left out.")
    first_invalid: list[Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=5, description="The first of them, with file, line, field and cause."
    )
    tokens: int | None = Field(None, ge=0, description="Tokens in all.")
    truncated_percent: Number | None = Field(None, description="Share of rows longer than training.maxLength.")
    duplicates: int | None = Field(None, ge=0, description="Rows that appear more than once.")
    p50_length: int | None = Field(None, ge=0, description="Median length of a row, in tokens.")
    p90_length: int | None = Field(None, ge=0, description="90th percentile of a row's length, in tokens.")
    p99_length: int | None = Field(None, ge=0, description="99th percentile of a row's length, in tokens.")
    longest: int | None = Field(None, ge=0, description="Length of the longest row, in tokens.")
    sha256: Annotated[str, Field(max_length=64)] | None = Field(None, description="Digest of the content.")
    evaluation_sha256: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="The same of an evaluation set of its own, or of the files of its split."
    )
    format: Annotated[str, Field(max_length=32)] | None = Field(None, description="The format found.")
    template: Annotated[str, Field(max_length=32)] | None = Field(
        None,
        description="How rows became text: tokenizer (its chat template), chatml (it has none) or none (as they are).",
    )
    loss_tokens: int | None = Field(None, ge=0, description="Tokens that count in the loss.")
    lost_tokens: int | None = Field(None, ge=0, description="Tokens beyond training.maxLength, cut off.")
    unlearnable_rows: int | None = Field(None, ge=0, description="Rows left out: cutting them left no answer.")
    assistant_turns: int | None = Field(None, ge=0, description="Turns of the assistant; with Plain, completions.")
    context_turns: int | None = Field(None, ge=0, description="Those that rows mark as weight 0 or train false.")
    trained_turns: int | None = Field(None, ge=0, description="Those that are trained.")
    lost_reasoning: int | None = Field(
        None, ge=0, description="Those that would be trained with reasoning, had the chat template not left it out."
    )
    split_rows: int | None = Field(
        None, ge=0, description="Rows split into several examples, as the chat template rewrites earlier turns."
    )
    examples: int | None = Field(
        None, ge=0, description="What the rows to train on became, a fraction held out included."
    )
    sequences: int | None = Field(None, ge=0, description="What is trained on, held-out rows left out: packed, or not.")
    packed: bool | None = Field(None, description="Whether a sequence holds several examples.")
    repeated_tokens: int | None = Field(None, ge=0, description="Tokens that appear once more because rows were split.")
    desirable: int | None = Field(
        None, ge=0, description="KTO: of the answers to train on, those with label true, or chosen ones of pairs."
    )
    overlap: int | None = Field(None, ge=0, description="Rows of dataset.evaluation that are training rows, too.")
    ignored_columns: list[Annotated[str, Field(max_length=64)]] | None = Field(
        None, max_length=16, description="Columns that no field of the format reads; the first 16."
    )
    warnings: list[Annotated[str, Field(max_length=256)]] | None = Field(
        None, max_length=8, description="What is less than it could be; an event DatasetWarning says it, too."
    )
    report: Text | None = Field(
        None,
        description="Where all of it can be read: every row left out, lengths, examples as the model sees them. "
        "data-report.json lies beside it.",
    )


class EstimateStatus(OpenModel):
    """What a run is estimated to take, in parts; those in bytes make status.memory.estimateBytes."""

    weights_bytes: int | None = Field(None, ge=0, description="The frozen base model, as it is stored on the device.")
    adapter_bytes: int | None = Field(None, ge=0, description="What is trained.")
    gradients_bytes: int | None = Field(None, ge=0, description="Its gradients.")
    optimizer_bytes: int | None = Field(None, ge=0, description="The optimizer's state, and AdaLoRA's importances.")
    activations_bytes: int | None = Field(
        None, ge=0, description="What a batch leaves for the backward pass, by training.batchSize and its rows' length."
    )
    workspace_bytes: int | None = Field(
        None,
        ge=0,
        description="What the backward pass works with: a tile of logits, a layer computed again, an expanded weight.",
    )
    overhead_bytes: int | None = Field(None, ge=0, description="The process itself and its libraries.")
    slack_bytes: int | None = Field(None, ge=0, description="What the allocator loses between tensors.")
    row_bytes: int | None = Field(None, ge=0, description="What one more row in a batch takes.")
    steps: int | None = Field(None, ge=0, description="Optimizer steps of the whole run.")
    tokens: int | None = Field(None, ge=0, description="Tokens that they see, about.")


class MemoryStatus(OpenModel):
    """What preflight estimated, and what was used."""

    estimate_bytes: int | None = Field(None, ge=0, description="Peak memory of the device while training.")
    available_bytes: int | None = Field(None, ge=0, description="Memory of the device, where the platform told.")
    suggested_batch_size: int | None = Field(None, ge=1, description="Largest batch size that fits.")
    peak_bytes: int | None = Field(
        None,
        ge=0,
        description="The most that the newest attempt held, its first process where several train: of a GPU what "
        "torch's allocator reserved, on a CPU all that was resident of the process. That counts pages of files, such "
        "as libraries and weights, which the kernel drops where it must, or counts for another pod: it may be above "
        "resources.memory.",
    )


class DiskStatus(OpenModel):
    """What preflight found of the disk that training takes."""

    estimate_bytes: int | None = Field(
        None, ge=0, description="Disk that training takes: downloads, prepared data, checkpoints, and a tenth."
    )
    available_bytes: int | None = Field(
        None, ge=0, description="spec.resources.ephemeralStorage; where the manifest leaves it open, it follows."
    )
