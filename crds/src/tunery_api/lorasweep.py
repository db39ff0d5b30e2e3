"""Define the spec of LoRASweep: search for the best settings of a LoRAJob, and publish the best adapter."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, Field, WithJsonSchema

from tunery_api.fields import (
    ApiModel,
    KindSpec,
    Number,
    ObjectName,
    decimal_text,
)
from tunery_api.inputs import OutputSpec
from tunery_api.lorajob import TrainingRun
from tunery_api.training import TrainingSpec

MAX_TRIALS = 128
MAX_PARALLEL_TRIALS = 32
MAX_PARAMETERS = 16
MOST_CHOICES = 64
LARGEST_SPACE = 2 * MAX_PARAMETERS
"""The most searched fields: those of the manifest and those of its preset."""

FieldPath = Annotated[
    str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)*$")
]
"""Path of a field of the template, such as `training.learningRate`. The pattern accepts unknown paths: Python rejects
them and suggests the right one."""

_LONGEST_CHOICE: Final = 256


def _choice(value: Any) -> Any:
    """Return a number or boolean as its text in a manifest."""
    if isinstance(value, bool):
        return str(value).lower()
    return decimal_text(value) if isinstance(value, (int, float)) else value


Choice = Annotated[
    str,
    BeforeValidator(_choice),
    Field(min_length=1, max_length=_LONGEST_CHOICE),
    WithJsonSchema(
        {
            "x-kubernetes-preserve-unknown-fields": True,
            "minLength": 1,
            "maxLength": _LONGEST_CHOICE,
            "maxItems": 0,
            "maxProperties": 0,
            "not": {"enum": [[], {}]},
        }
    ),
]
"""A value as in a manifest: text, number or boolean. A list is written as its entries joined by commas."""


class SweepPreset(StrEnum):
    """The preset search space."""

    GUIDE = "Guide"


class Metric(StrEnum):
    """The metric to minimise."""

    EVAL_LOSS = "EvalLoss"


class SamplerType(StrEnum):
    """How the next trial's values are chosen."""

    TPE = "TPE"
    RANDOM = "Random"
    GRID = "Grid"


class PrunerType(StrEnum):
    """How unpromising trials are found and ended early."""

    HALVING = "Halving"
    MEDIAN = "Median"
    NONE = "None"


class SweepPreflight(StrEnum):
    """Which trials run a preflight."""

    AUTO = "Auto"
    EVERY = "Every"


class TrialTemplate(TrainingRun):
    """What all trials have in common: a LoRAJob's spec without the fields that the sweep sets itself."""

    retries: int | None = Field(None, ge=0, le=100, description="Retries of each trial, as in a LoRAJob. Default: 3.")
    active_deadline_seconds: int | None = Field(
        None, ge=1, le=31_536_000, description="Time limit of each trial in seconds, as in a LoRAJob. Default: 86400."
    )


class ObjectiveSpec(ApiModel):
    """How the best trial is chosen."""

    metric: Metric = Field(Metric.EVAL_LOSS, description="Metric to minimise. EvalLoss: the held-out loss.")
    tolerance: Number = Field(
        0.0,
        ge=0,
        le=1,
        description="Trials within this share above the lowest loss count as equal; of these, the one with the fewest "
        "trainable parameters is the best. 0: the lowest loss only.",
    )


class RangeSpec(ApiModel):
    """A range of numbers, both ends included."""

    min: Number = Field(description="Smallest value, such as 1e-5.")
    max: Number = Field(description="Largest value, above min, such as 5e-4.")
    log: bool = Field(
        False, description="Search on a logarithmic scale, as for learning rates. min must be above 0. Not with step."
    )
    step: Number | None = Field(
        None,
        gt=0,
        description="Search only min, min + step, and so on. Required with sampler type Grid. Default: any value of "
        "the range.",
    )


class WhenSpec(ApiModel):
    """A condition: the value of an earlier parameter for which this one is searched."""

    path: FieldPath = Field(description="Path of an earlier parameter that has choices.")
    values: list[Choice] = Field(
        alias="in",
        min_length=1,
        max_length=MOST_CHOICES,
        description="Choices of that parameter for which this one is searched.",
    )


class ParameterSpec(ApiModel):
    """A field of the template that differs between trials."""

    path: FieldPath = Field(description="Path of the field, such as training.learningRate or lora.rank.")
    range: RangeSpec | None = Field(None, description="Range of a numeric field; either range or choices.")
    choices: list[Choice] | None = Field(
        None,
        min_length=1,
        max_length=MOST_CHOICES,
        description="Values to choose from, such as 16, 2e-4, true or Cosine. For lora.targetModules: module names "
        "joined by commas. The operator validates each as a value of the field.",
    )
    when: WhenSpec | None = Field(
        None,
        description="Search this field only in trials in which another parameter has one of the given values. "
        "Default: in all trials.",
    )


class SamplerSpec(ApiModel):
    """How the next trial's values are chosen."""

    type: SamplerType = Field(
        SamplerType.TPE,
        description="TPE: Optuna's sampler, which learns from earlier trials. Random: random values. Grid: every "
        "combination once, in order.",
    )
    startup_trials: int = Field(
        8, ge=1, le=MAX_TRIALS, description="Random trials before TPE starts to learn from earlier trials."
    )


class PrunerSpec(ApiModel):
    """How and when unpromising trials are ended early.

    A trial in which a Problem is found ends on its own. If the template sets diagnosis.action: Warn, the pruner ends
    it, except with type None.
    """

    type: PrunerType = Field(
        PrunerType.HALVING,
        description="Halving: at each rung, end the worse of the trials that have reached it. Median: end trials that "
        "are worse than the median of earlier ones. None: run all trials to the end.",
    )
    rungs: list[Annotated[Number, Field(gt=0, lt=1)]] = Field(
        default_factory=lambda: [0.25, 0.5],
        min_length=1,
        max_length=8,
        description="Shares of the steps at which trials are compared, ascending, above 0 and below 1. Default: [0.25, "
        "0.5]. If the template sets neither evaluation.times nor everySteps, the first rung decides how often "
        "trials are evaluated.",
    )
    keep: Number = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of the trials that continue after a rung, above 0 and below 1. Type Halving only.",
    )
    min_rivals: int = Field(
        6,
        ge=2,
        le=MAX_TRIALS,
        description="Number of earlier trials that must reach a rung before a trial is ended there.",
    )


class BudgetSpec(ApiModel):
    """The limit for all trials together."""

    gpu_seconds: int = Field(
        ge=1,
        le=10_000_000_000,
        description="Total run time of pods in seconds, each multiplied by its GPUs. Once it is used up, the sweep "
        "ends with the best trial so far.",
    )


class FinalSpec(ApiModel):
    """Overrides for a final training with the best settings."""

    training: TrainingSpec = Field(description="Fields of training that override the best trial's, such as epochs.")


class SweepReference(ApiModel):
    """A finished LoRASweep of the same namespace."""

    name: ObjectName = Field(description="Name of the LoRASweep.")


class LoRASweepSpec(KindSpec):
    """What to search, how long, and where to publish the best adapter."""

    MUTABLE: ClassVar[frozenset[str]] = frozenset(
        {
            "suspend",
            "maxTrials",
            "parallelTrials",
            "maxFailedTrials",
            "stopAfterTrialsWithoutImprovement",
            "budget",
            "activeDeadlineSeconds",
            "ttlSecondsAfterFinished",
        }
    )

    template: TrialTemplate = Field(description="Spec that all trials share, as in a LoRAJob.")
    preset: SweepPreset | None = Field(
        None,
        description="Guide: search the recommended ranges, starting with three tuned configurations. parameters "
        "overrides single paths; fields that the template sets aren't searched. Default: search "
        "parameters only.",
    )
    parameters: list[ParameterSpec] = Field(
        default_factory=list,
        max_length=MAX_PARAMETERS,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["path"]},
        description="Fields to search. Default: those of the preset.",
    )
    initial: list[
        Annotated[dict[FieldPath, Choice], Field(max_length=LARGEST_SPACE, json_schema_extra={"minProperties": 1})]
    ] = Field(
        default_factory=list,
        max_length=32,
        description="Values of the first trials by path, in this order. The sampler chooses missing values.",
    )
    warm_start_from: list[SweepReference] = Field(
        default_factory=list,
        max_length=8,
        description="Finished sweeps that the sampler learns from. Model, data and evaluation must be the same. Their "
        "trials outside of this search space are ignored.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    objective: ObjectiveSpec = Field(default_factory=ObjectiveSpec, description="How the best trial is chosen.")
    sampler: SamplerSpec = Field(default_factory=SamplerSpec, description="How the next trial's values are chosen.")
    pruner: PrunerSpec = Field(
        default_factory=PrunerSpec, description="How and when unpromising trials are ended early."
    )
    seed: int = Field(
        42,
        ge=0,
        le=2**31 - 1,
        description="Random seed of the sampler: the same manifest searches the same way. The trials share the seed "
        "template.training.seed.",
    )
    max_trials: int = Field(
        20,
        ge=1,
        le=MAX_TRIALS,
        description="Maximum number of trials. Trials that don't fit into memory by preflight's estimate don't count.",
    )
    parallel_trials: int = Field(
        1, ge=1, le=MAX_PARALLEL_TRIALS, description="Maximum number of trials that run at the same time."
    )
    max_failed_trials: int | None = Field(
        None,
        ge=0,
        le=MAX_TRIALS,
        description="Trials that may fail for other reasons than their values; with more, the sweep fails. Default: a "
        "fifth of maxTrials, at least 3. No limit if maxTrials was lowered below the trials created.",
    )
    stop_after_trials_without_improvement: int | None = Field(
        None,
        ge=1,
        le=MAX_TRIALS,
        description="End the sweep after this many consecutive trials without a new best one. Default: no limit.",
    )
    budget: BudgetSpec | None = Field(None, description="Limit for all trials together. Default: no limit.")
    active_deadline_seconds: int | None = Field(
        None,
        ge=1,
        le=31_536_000,
        description="Time limit of the sweep in seconds, including waiting. Afterwards trials are stopped and the "
        "sweep ends with the best so far. Default: no limit.",
    )
    preflight: SweepPreflight = Field(
        SweepPreflight.AUTO,
        description="Auto: run a preflight for the first trial, then only if data or memory use can differ from all "
        "checked trials. Every: run it for each trial.",
    )
    final: FinalSpec | None = Field(
        None,
        description="Train once more with the best settings and these overrides, then publish the better result. "
        "Default: no final training.",
    )
    keep_adapters: int = Field(
        1,
        ge=1,
        le=MAX_TRIALS,
        description="Number of best trials whose own adapters are retained. The sweep deletes the others at its end.",
    )
    output: OutputSpec = Field(default_factory=OutputSpec, description="Where the best adapter is published.")
    suspend: bool = Field(
        False, description="Stop the trials after a checkpoint and create no new ones. Set it to false to resume."
    )
    ttl_seconds_after_finished: int | None = Field(
        None,
        ge=0,
        le=315_360_000,
        description="Seconds after which the finished sweep and its trials are deleted. Unset: the platform's default, "
        "which is 30 days unless changed.",
    )
