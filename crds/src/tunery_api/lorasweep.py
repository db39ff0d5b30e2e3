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
"""Parameters of a manifest, and those of its preset."""

FieldPath = Annotated[
    str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)*$")
]
"""A field of the template, as in a manifest: `training.learningRate`. The pattern lets typos by, which are
told with what was meant."""

_LONGEST_CHOICE: Final = 256


def _choice(value: Any) -> Any:
    """Return a number, true or false as the text of the same value."""
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
"""A value as a manifest writes it, text, number, true or false; of a list its entries, joined by commas."""


class SweepPreset(StrEnum):
    """Whose space is searched."""

    GUIDE = "Guide"


class Metric(StrEnum):
    """What is minimised."""

    EVAL_LOSS = "EvalLoss"


class SamplerType(StrEnum):
    """Who proposes the next trial."""

    TPE = "TPE"
    RANDOM = "Random"
    GRID = "Grid"


class PrunerType(StrEnum):
    """Who ends a trial that promises nothing."""

    HALVING = "Halving"
    MEDIAN = "Median"
    NONE = "None"


class SweepPreflight(StrEnum):
    """Which trials are checked on a CPU first."""

    AUTO = "Auto"
    EVERY = "Every"


class TrialTemplate(TrainingRun):
    """What all trials have in common: a LoRAJob's spec without what the sweep itself says."""

    retries: int | None = Field(None, ge=0, le=100, description="As in a LoRAJob, of each trial. Default: 3.")
    active_deadline_seconds: int | None = Field(
        None, ge=1, le=31_536_000, description="As in a LoRAJob, of each trial. Default: 86400."
    )


class ObjectiveSpec(ApiModel):
    """What the best trial is."""

    metric: Metric = Field(Metric.EVAL_LOSS, description="The held-out loss; lower is better.")
    tolerance: Number = Field(
        0.0,
        ge=0,
        le=1,
        description="Of the trials within this share of the lowest loss, the one that trains the fewest parameters is "
        "the best.",
    )


class RangeSpec(ApiModel):
    """Numbers from min to max, both included."""

    min: Number = Field(description="The smallest value, such as 1e-5.")
    max: Number = Field(description="The largest value, such as 5e-4; above min.")
    log: bool = Field(
        False, description="Equal factors are equally likely, not equal distances; min must be above 0. Not with step."
    )
    step: Number | None = Field(None, gt=0, description="Only min, min + step, …; a Grid needs it.")


class WhenSpec(ApiModel):
    """What an earlier parameter must be for this one to exist."""

    path: FieldPath = Field(description="An earlier parameter with choices.")
    values: list[Choice] = Field(alias="in", min_length=1, max_length=MOST_CHOICES, description="Choices of it.")


class ParameterSpec(ApiModel):
    """A field of the template that differs from trial to trial."""

    path: FieldPath = Field(description="The field, such as training.learningRate or lora.rank.")
    range: RangeSpec | None = Field(None, description="Of a field that is a number; instead of choices.")
    choices: list[Choice] | None = Field(
        None,
        min_length=1,
        max_length=MOST_CHOICES,
        description="The values: 16, 2e-4, true, Cosine; of lora.targetModules names joined by commas. "
        "Each as the field takes it, which the operator looks at, not the API server.",
    )
    when: WhenSpec | None = Field(None, description="Only in trials in which another parameter has such a value.")


class SamplerSpec(ApiModel):
    """Who proposes the next trial."""

    type: SamplerType = Field(
        SamplerType.TPE,
        description="TPE: Optuna's, which learns from the trials so far; Random; Grid: every point once, in order.",
    )
    startup_trials: int = Field(8, ge=1, le=MAX_TRIALS, description="Random trials before TPE learns from them.")


class PrunerSpec(ApiModel):
    """Who ends a trial that promises nothing. A Problem that a trial finds ends it by itself, unless the template's
    diagnosis.action is Warn: then the pruner does, whatever its type but None."""

    type: PrunerType = Field(
        PrunerType.HALVING,
        description="Halving: at each rung the worse of the trials that have come so far end; Median: those that are "
        "worse than the median of the earlier ones; None: all run to their ends.",
    )
    rungs: list[Annotated[Number, Field(gt=0, lt=1)]] = Field(
        default_factory=lambda: [0.25, 0.5],
        min_length=1,
        max_length=8,
        description="Shares of the steps at which trials are compared, rising, above 0 and below 1. Where the template "
        "says neither evaluation.times nor everySteps, trials are measured as often as the first one asks for.",
    )
    keep: Number = Field(
        0.5,
        gt=0,
        lt=1,
        description="Halving: the share of the trials that continue at a rung, above 0 and below 1.",
    )
    min_rivals: int = Field(
        6, ge=2, le=MAX_TRIALS, description="Earlier trials that must have come to a rung before any ends there."
    )


class BudgetSpec(ApiModel):
    """What all trials together may take."""

    gpu_seconds: int = Field(
        ge=1, le=10_000_000_000, description="Seconds that pods run, times their GPUs. Spent: the best so far is it."
    )


class FinalSpec(ApiModel):
    """The best trial's settings once more, with these on top."""

    training: TrainingSpec = Field(description="Fields of training that differ, such as epochs.")


class SweepReference(ApiModel):
    """A LoRASweep of the same namespace that has ended."""

    name: ObjectName = Field(description="Its name.")


class LoRASweepSpec(KindSpec):
    """What to search, how long, and where to put the best."""

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

    template: TrialTemplate = Field(description="What all trials have in common; as in a LoRAJob's spec.")
    preset: SweepPreset | None = Field(
        None,
        description="Guide: the guide's space, its three tuned configurations first; parameters replaces it path by "
        "path, and what the template sets is not searched.",
    )
    parameters: list[ParameterSpec] = Field(
        default_factory=list,
        max_length=MAX_PARAMETERS,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["path"]},
        description="What differs from trial to trial. Default: the preset's.",
    )
    initial: list[
        Annotated[dict[FieldPath, Choice], Field(max_length=LARGEST_SPACE, json_schema_extra={"minProperties": 1})]
    ] = Field(
        default_factory=list,
        max_length=32,
        description="Values that are tried first, in this order, by path; what one leaves open is proposed.",
    )
    warm_start_from: list[SweepReference] = Field(
        default_factory=list,
        max_length=8,
        description="Sweeps whose trials the sampler learns from: of the same model, data and evaluation. Those of "
        "their trials that are no points of this space are left out. Each once, and never this one.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    objective: ObjectiveSpec = Field(default_factory=ObjectiveSpec, description="What the best trial is.")
    sampler: SamplerSpec = Field(default_factory=SamplerSpec, description="Who proposes the next trial.")
    pruner: PrunerSpec = Field(
        default_factory=PrunerSpec, description="Who ends a trial that promises nothing, and when."
    )
    seed: int = Field(
        42,
        ge=0,
        le=2**31 - 1,
        description="Seed of the sampler: the same manifest applied again searches alike. That of the trials is "
        "template.training.seed, one for all.",
    )
    max_trials: int = Field(
        20,
        ge=1,
        le=MAX_TRIALS,
        description="Trials in all. Those that would not fit into memory by preflight's estimate do not count.",
    )
    parallel_trials: int = Field(
        1,
        ge=1,
        le=MAX_PARALLEL_TRIALS,
        description="Trials that are under way at a time; of more than maxTrials all.",
    )
    max_failed_trials: int | None = Field(
        None,
        ge=0,
        le=MAX_TRIALS,
        description="Trials that may fail for reasons other than their values, such as a lost node; with one more, the "
        "sweep fails. Default: a fifth of maxTrials, at least 3; none where maxTrials was lowered below what was made.",
    )
    stop_after_trials_without_improvement: int | None = Field(
        None, ge=1, le=MAX_TRIALS, description="End after so many trials in a row that were not better than the best."
    )
    budget: BudgetSpec | None = Field(None, description="What all trials together may take. Default: no limit.")
    active_deadline_seconds: int | None = Field(
        None,
        ge=1,
        le=31_536_000,
        description="Seconds by the clock, waiting too, after which trials are stopped and the best so far is it. "
        "Default: no limit.",
    )
    preflight: SweepPreflight = Field(
        SweepPreflight.AUTO,
        description="Auto: after the first, trials that differ from a checked one only in what can change neither data "
        "nor memory are not checked again. Every: each is.",
    )
    final: FinalSpec | None = Field(
        None, description="Train the best settings once more; the better of the two is published. Default: no."
    )
    keep_adapters: int = Field(
        1,
        ge=1,
        le=MAX_TRIALS,
        description="Trials whose own adapters stay, the best ones; the others' are removed at the end.",
    )
    output: OutputSpec = Field(default_factory=OutputSpec, description="Where the best adapter is published.")
    suspend: bool = Field(False, description="Stop the trials, after a checkpoint, and make no others; false resumes.")
    ttl_seconds_after_finished: int | None = Field(
        None,
        ge=0,
        le=315_360_000,
        description="Seconds after the end at which this object and its trials are deleted; unset: the platform's "
        "default, 30 days unless it chose otherwise.",
    )
