"""Define what the diagnosis of a run can report: findings with severity and fix, and the checklist."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, NamedTuple

from pydantic import Field

from tunery_api.fields import OpenModel, enum_values


class Severity(StrEnum):
    """How severe a finding is."""

    INFO = "Info"
    """The result is good; it could be better or cheaper."""
    WARNING = "Warning"
    """The result is probably worse than it could be."""
    PROBLEM = "Problem"
    """The result will be useless. With diagnosis.action: Stop the run ends."""


class FindingType(StrEnum):
    """The type of an entry of `status.findings`, and the reason of the condition Healthy."""

    WORSE_THAN_BASE = "WorseThanBase"
    LOSS_RISING = "LossRising"
    LOSS_SPIKES = "LossSpikes"
    NO_GRADIENT = "NoGradient"
    GRADIENT_NOT_FINITE = "GradientNotFinite"
    LEARNING_RATE_TOO_LOW = "LearningRateTooLow"
    NOT_LEARNING = "NotLearning"
    STILL_LEARNING = "StillLearning"
    PLATEAU = "Plateau"
    OVERFITTING = "Overfitting"
    TOO_FEW_STEPS = "TooFewSteps"
    EVALUATION_TOO_SMALL = "EvaluationTooSmall"
    MICRO_BATCH_HALVED = "MicroBatchHalved"
    MEMORY_TIGHT = "MemoryTight"
    ROOM_FOR_LARGER_BATCH = "RoomForLargerBatch"
    WAITING_FOR_DATA = "WaitingForData"
    MUCH_PADDING = "MuchPadding"
    SLOWING_DOWN = "SlowingDown"


class Definition(NamedTuple):
    """The definition of a finding type, without the numbers of a run."""

    severity: Severity
    field: str | None
    """The spec field that most often fixes it; an entry of the status may name another."""
    meaning: str
    """The observation, for the documentation."""
    action: str
    """The recommended fix."""


_F = FindingType
_INFO, _WARNING, _PROBLEM = Severity

FINDINGS: Final[dict[FindingType, Definition]] = {
    _F.WORSE_THAN_BASE: Definition(
        _PROBLEM,
        "training.learningRate",
        "the held-out loss is significantly above the base model's, by more than 5 %",
        "a fifth of the learning rate; if the training loss fell meanwhile, compare the held-out rows with the "
        "training rows",
    ),
    _F.LOSS_RISING: Definition(
        _PROBLEM,
        "training.learningRate",
        "the loss was lower before and has risen since, in training and on the held-out rows",
        "a third of the learning rate; `maxGradNorm: 0.3` if gradients are not clipped; `warmup: 0.1`",
    ),
    _F.LOSS_SPIKES: Definition(
        _WARNING,
        "training.learningRate",
        "single steps have a loss far above those around them; Info for one or two, Warning from three in 200 on",
        "half the learning rate, twice the warm-up; check the rows of the steps that the message names",
    ),
    _F.NO_GRADIENT: Definition(
        _PROBLEM,
        "lora.targetModules",
        "the gradient is zero, or the adapter does not change",
        "if there was a gradient before, a fifth of the learning rate; else check `status.resolved.targetModules` and "
        "which tokens count in the loss (`status.dataset`)",
    ),
    _F.GRADIENT_NOT_FINITE: Definition(
        _PROBLEM,
        "training.learningRate",
        "the gradient is not a number",
        "a third of the learning rate; `precision: BFloat16` instead of Float16",
    ),
    _F.LEARNING_RATE_TOO_LOW: Definition(
        _WARNING,
        "training.learningRate",
        "after half of the run the held-out loss has fallen by less than 1 %, and falls as slowly as at the start",
        "ten times the learning rate",
    ),
    _F.NOT_LEARNING: Definition(
        _WARNING,
        "lora.targetModules",
        "after half of the run the held-out loss has not changed",
        "check `status.resolved.targetModules` and the rows that were read (`status.dataset`)",
    ),
    _F.STILL_LEARNING: Definition(
        _INFO,
        "training.learningRate",
        "the held-out loss fell until the end, nearly as fast as at the start",
        "three times the learning rate, or twice the epochs",
    ),
    _F.PLATEAU: Definition(
        _INFO,
        "lora.rank",
        "the held-out loss has levelled off without overfitting: a larger adapter may learn more",
        "a learning rate in the recommended range; if it is already, twice the rank or `lora.targetModules: "
        "[all-linear]`",
    ),
    _F.OVERFITTING: Definition(
        _WARNING,
        "training.epochs",
        "the training loss falls, but the held-out loss no longer does, or rises",
        "fewer epochs; `evaluation.earlyStoppingPatience: 2`; `lora.dropout: 0.1`; half the rank; more rows",
    ),
    _F.TOO_FEW_STEPS: Definition(
        _WARNING,
        "training.epochs",
        "the run has fewer than 20 optimizer steps",
        "more epochs, or a larger `maxSteps` if it is set; else a smaller `gradientAccumulation`",
    ),
    _F.EVALUATION_TOO_SMALL: Definition(
        _INFO,
        "dataset.evaluation.fraction",
        "there are too few held-out rows to tell an improvement from chance",
        "hold out more rows; if these are more than a fifth of the data, add data",
    ),
    _F.MICRO_BATCH_HALVED: Definition(
        _INFO,
        "training.batchSize",
        "memory ran out in a pass; the run continues with fewer rows per pass and the same steps",
        "set the batch size that fitted, so that the next run loses no pass",
    ),
    _F.MEMORY_TIGHT: Definition(
        _WARNING,
        "training.batchSize",
        "more than 92 % of the memory was in use",
        "half the batch size with twice the accumulation; without a GPU more `resources.memory`",
    ),
    _F.ROOM_FOR_LARGER_BATCH: Definition(
        _INFO,
        "training.batchSize",
        "less than 45 % of the GPU's memory was in use, and a step takes several passes",
        "twice the batch size with half the accumulation: the same steps, faster",
    ),
    _F.WAITING_FOR_DATA: Definition(
        _WARNING,
        "resources.cpu",
        "over 50 steps, more than a fifth of the time was spent waiting for their rows",
        "more `resources.cpu`; packing",
    ),
    _F.MUCH_PADDING: Definition(
        _INFO,
        "training.packing",
        "more than 40 % of the tokens of 50 steps were padding",
        "`packing: true`, else `groupByLength: true`",
    ),
    _F.SLOWING_DOWN: Definition(
        _INFO,
        None,
        "for 30 steps, steps took more than 1.5 times as long as at the start, with as many tokens; it holds until 30 "
        "steps take less than 1.25 times as long",
        "check the node: another job on it, or a throttled GPU",
    ),
}
"""One entry per type. Tests check that it is complete and that docs/methods.md matches."""


class CheckName(StrEnum):
    """The name of an entry of `status.checks`."""

    TARGET_MODULES = "TargetModules"
    RANK = "Rank"
    ALPHA = "Alpha"
    DROPOUT = "Dropout"
    LEARNING_RATE = "LearningRate"
    BASE_FROZEN = "BaseFrozen"
    ONLY_ADAPTER_TRAINS = "OnlyAdapterTrains"
    GRADIENT_ACCUMULATION = "GradientAccumulation"
    CHAT_TEMPLATE = "ChatTemplate"
    PADDING = "Padding"
    LABELS = "Labels"
    BATCH_FITS = "BatchFits"
    HELD_OUT = "HeldOut"
    GENERATION = "Generation"
    BASELINE = "Baseline"


class CheckResult(StrEnum):
    """The result of a check."""

    PASSED = "Passed"
    WARNING = "Warning"
    SKIPPED = "Skipped"


_Word = Annotated[str, Field(min_length=1, max_length=128)]
"""Any word is accepted: a later version may have more values."""


MAX_FINDINGS: Final = 12
"""The most findings of a status."""
MAX_CHECKS: Final = 24

TRAINING_CHECKS: Final = (
    CheckName.BASE_FROZEN,
    CheckName.ONLY_ADAPTER_TRAINS,
    CheckName.PADDING,
    CheckName.BATCH_FITS,
    CheckName.GENERATION,
    CheckName.BASELINE,
)
"""The checks that only the training can run."""
CHECK_PENDING: Final = "checked in training"
"""The message of these checks until the training has run them."""
CHECK_NOT_REACHED: Final = "stopped before this was checked"
"""The message of these checks after a run without training."""


class FindingStatus(OpenModel):
    """A finding of the diagnosis, with the field to change and a suggested value."""

    type: _Word = Field(description=f"Type of the finding: {enum_values(FindingType)}.")
    severity: Annotated[str, Field(max_length=32)] = Field(description=f"Severity: {enum_values(Severity)}.")
    step: int = Field(ge=0, description="Optimizer step of the finding.")
    field: Annotated[str, Field(max_length=128)] | None = Field(None, description="Spec field to change.")
    suggest: Annotated[str, Field(max_length=128)] | None = Field(None, description="Suggested value of the field.")
    message: Annotated[str, Field(max_length=512)] | None = Field(None, description="The observation, for people.")


class CheckStatus(OpenModel):
    """One entry of the checklist."""

    name: _Word = Field(description=f"Name of the check: {enum_values(CheckName)}.")
    result: Annotated[str, Field(max_length=32)] = Field(
        description=f"Result of the check: {enum_values(CheckResult)}."
    )
    message: Annotated[str, Field(max_length=512)] | None = Field(
        None, description="Details of the result, for people."
    )


def most_severe(severities: list[str]) -> str | None:
    """Return the most severe of these, or None if none is above Info. An unknown severity counts as Info."""
    return next((each.value for each in (_PROBLEM, _WARNING) if each.value in severities), None)
