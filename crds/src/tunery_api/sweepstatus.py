"""Define the status of a LoRASweep: its trials, the best one, and why it ended."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from tunery_api.fields import OpenModel, Text
from tunery_api.lorasweep import LARGEST_SPACE, MAX_TRIALS
from tunery_api.measured import MAX_EVALUATIONS, EvaluationStatus, Number
from tunery_api.remedies import MAX_FACTS, MAX_REMEDIES, Remedy
from tunery_api.status import AdapterStatus, CommonStatus

MAX_TRIAL_ROWS: Final = 2 * MAX_TRIALS + 1
"""Rows of a status: as many again may not fit into memory, which do not count, and one may be the final one."""

TrialName = Annotated[str, Field(max_length=253)]
TrialValue = Annotated[str, Field(max_length=256)]
Parameters = Annotated[dict[Annotated[str, Field(max_length=64)], TrialValue], Field(max_length=LARGEST_SPACE)]
"""Values by path, as the trial's manifest writes them."""


class TrialState(StrEnum):
    """What is known of a trial. The first two are under way; the others are final."""

    WAITING = "Waiting"
    RUNNING = "Running"
    COMPLETE = "Complete"
    PRUNED = "Pruned"
    INFEASIBLE = "Infeasible"
    """Its parameters cannot work: out of memory, diverged, invalid together."""
    FAILED = "Failed"
    """By chance."""
    DELETED = "Deleted"


FINAL_TRIAL_STATES: Final = frozenset(TrialState) - {TrialState.WAITING, TrialState.RUNNING}


class EndReason(StrEnum):
    """Why no more trials are made."""

    MAX_TRIALS = "MaxTrials"
    BUDGET = "Budget"
    DEADLINE = "Deadline"
    NO_IMPROVEMENT = "NoImprovement"
    SPACE_EXHAUSTED = "SpaceExhausted"
    MOST_WONT_FIT = "MostWontFit"
    """As many as maxTrials were found too large for the memory."""


class TrialAdapter(OpenModel):
    """What a trial has published at its own place."""

    uri: Text = Field(description="Where it lies.")
    manifest_sha256: Annotated[str, Field(max_length=64)] = Field(description="Digest of manifest.json.")


class TrialFailure(OpenModel):
    """What a trial's failure has beyond its row: a sweep that fails for it passes that on."""

    message: Annotated[str, Field(max_length=1024)] | None = Field(None, description="The message, where why is cut.")
    remedies: list[Remedy] | None = Field(
        None, max_length=MAX_REMEDIES, description="The ways to fix it. Unset: the usual ones of the reason."
    )
    facts: dict[str, Text] | None = Field(
        None, max_length=MAX_FACTS, description="What belongs to the failure, such as the URI of the data report."
    )


class TrialStatus(OpenModel):
    """One trial. A final one never changes, but that its adapter goes when the sweep has published its best."""

    number: int = Field(ge=0, description="Its number; never used again.")
    name: TrialName = Field(description="Name of its LoRAJob.")
    uid: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="UID of its LoRAJob; its checkpoints lie in a folder that is named after it."
    )
    origin: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Who proposed it: TPE, Random, Grid, Initial, Final, or the configuration of the guide."
    )
    state: Annotated[str, Field(max_length=32)] = Field(
        description="Waiting, Running, Complete, Pruned, Infeasible, Failed or Deleted."
    )
    value: Number | None = Field(None, description="The held-out loss of what it published, or would have.")
    base_value: Number | None = Field(None, description="The held-out loss before its training.")
    parameters: Parameters = Field(default_factory=dict, description="Its values by path.")
    trainable_parameters: int | None = Field(None, ge=0, description="Parameters that it trains.")
    steps: int | None = Field(None, ge=0, description="Optimizer steps that it was to take.")
    evaluations: list[EvaluationStatus] | None = Field(
        None, max_length=MAX_EVALUATIONS, description="Its evaluations, once it is final."
    )
    gpu_seconds: int | None = Field(None, ge=0, description="Seconds that its pods ran, times their GPUs.")
    run_seconds: int | None = Field(None, ge=0, description="Seconds that its pods ran.")
    at: Annotated[str, Field(max_length=12)] | None = Field(
        None, description="Share of its steps at which it was ended."
    )
    reason: Annotated[str, Field(max_length=128)] | None = Field(None, description="Of a trial that failed.")
    why: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="Why it was ended, or failed, in a sentence."
    )
    failure: TrialFailure | None = Field(None, description="What its failure said beyond reason and why.")
    adapter: TrialAdapter | None = Field(
        None, description="What it published; once the best of the sweep is published, of those alone that are kept."
    )

    def without_advice(self) -> TrialStatus:
        """Return it as it is published: what a failed trial advises is of no use beside what succeeded."""
        return self.model_copy(update={"failure": None})


class TrialCounts(OpenModel):
    """Trials by state."""

    created: int = Field(0, ge=0, description="All of them.")
    waiting: int = Field(0, ge=0, description="Not running yet.")
    running: int = Field(0, ge=0, description="Running.")
    complete: int = Field(0, ge=0, description="Measured at their end.")
    pruned: int = Field(0, ge=0, description="Ended early, as they promised nothing.")
    infeasible: int = Field(0, ge=0, description="Whose parameters cannot work.")
    failed: int = Field(0, ge=0, description="Failed by chance, or deleted.")


class BestTrial(OpenModel):
    """The best trial so far."""

    trial: int = Field(ge=0, description="Its number.")
    name: TrialName = Field(description="Name of its LoRAJob.")
    value: Number = Field(description="Its held-out loss.")
    base_value: Number | None = Field(None, description="The held-out loss before training.")
    improvement: Annotated[str, Field(max_length=16)] | None = Field(
        None, description="How far value is below baseValue, for people."
    )
    parameters: Parameters = Field(default_factory=dict, description="Its values by path.")


class ParameterImportance(OpenModel):
    """How much a parameter matters."""

    path: Annotated[str, Field(max_length=64)] = Field(description="The parameter.")
    share: Number = Field(description="Its share of what the parameters change of the loss, by PED-ANOVA.")


class Improvement(OpenModel):
    """A trial that was better than all before it."""

    trial: int = Field(ge=0, description="Its number.")
    value: Number = Field(description="Its held-out loss.")


class TrialInputs(OpenModel):
    """What the first trial that passed its preflight has read."""

    revision: Annotated[str, Field(max_length=128)] | None = Field(None, description="The base model's commit.")
    dataset_sha256: Annotated[str, Field(max_length=64)] | None = Field(None, description="Digest of the data.")
    evaluation_sha256: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Digest of an evaluation set of its own, or of the files of its split."
    )
    adapter_sha256: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Digest of the adapter at continueFrom.uri."
    )
    adapter_revision: Annotated[str, Field(max_length=128)] | None = Field(
        None, description="The commit of that adapter, for hf://."
    )


class LoRASweepStatus(CommonStatus):
    """The status of a LoRASweep."""

    adapter: AdapterStatus | None = Field(None, description="The published result: the best trial's adapter.")
    counts: TrialCounts | None = Field(None, description="Trials by state.")
    counts_text: Annotated[str, Field(max_length=16)] | None = Field(
        None, description="Trials that count and have ended, of those in all."
    )
    best: BestTrial | None = Field(None, description="The best trial so far.")
    trials: list[TrialStatus] | None = Field(None, max_length=MAX_TRIAL_ROWS, description="Every trial, by number.")
    importance: list[ParameterImportance] | None = Field(
        None,
        max_length=LARGEST_SPACE,
        description="What matters most, from 20 complete trials on.",
    )
    convergence: list[Improvement] | None = Field(
        None, max_length=MAX_TRIALS, description="The trials that were the best when they ended."
    )
    trials_since_improvement: int | None = Field(
        None, ge=0, description="Trials that have ended since the best was found."
    )
    gpu_seconds_saved: int | None = Field(
        None, ge=0, description="What the pruned trials would have taken on top, at the mean of the complete ones."
    )
    trial_inputs: TrialInputs | None = Field(
        None,
        description="What the first trial that passed its preflight has read: every later one bears it in its spec, so "
        "that all are trained and measured on the same.",
    )
    forgiven: int | None = Field(
        None,
        ge=0,
        description="Of the trials below this number those that failed count no more: the sweep was retried.",
    )
    end_reason: Annotated[str, Field(max_length=32)] | None = Field(
        None,
        description="Why no more trials are made: MaxTrials, Budget, Deadline, NoImprovement, SpaceExhausted, "
        "MostWontFit.",
    )
