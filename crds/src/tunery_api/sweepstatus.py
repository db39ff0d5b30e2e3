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
"""The most trials of a status: maxTrials, as many that don't fit into memory and don't count, and the final one."""

TrialName = Annotated[str, Field(max_length=253)]
TrialValue = Annotated[str, Field(max_length=256)]
Parameters = Annotated[dict[Annotated[str, Field(max_length=64)], TrialValue], Field(max_length=LARGEST_SPACE)]
"""Values by field path, as in the trial's manifest."""


class TrialState(StrEnum):
    """The state of a trial. Waiting and Running are active states; the others are final."""

    WAITING = "Waiting"
    RUNNING = "Running"
    COMPLETE = "Complete"
    PRUNED = "Pruned"
    INFEASIBLE = "Infeasible"
    """The parameters can't work: they run out of memory, diverge or are invalid together."""
    FAILED = "Failed"
    """The failure isn't due to the parameters, such as a lost node."""
    DELETED = "Deleted"


FINAL_TRIAL_STATES: Final = frozenset(TrialState) - {TrialState.WAITING, TrialState.RUNNING}


class EndReason(StrEnum):
    """Why the sweep creates no more trials."""

    MAX_TRIALS = "MaxTrials"
    BUDGET = "Budget"
    DEADLINE = "Deadline"
    NO_IMPROVEMENT = "NoImprovement"
    SPACE_EXHAUSTED = "SpaceExhausted"
    MOST_WONT_FIT = "MostWontFit"
    """The number of trials that don't fit into memory has reached maxTrials."""


class TrialAdapter(OpenModel):
    """The adapter that a trial published at its own URI."""

    uri: Text = Field(description="URI of the adapter.")
    manifest_sha256: Annotated[str, Field(max_length=64)] = Field(description="SHA-256 of manifest.json.")


class TrialFailure(OpenModel):
    """Details of a trial's failure. A sweep that fails because of the trial copies them to its own failure."""

    message: Annotated[str, Field(max_length=1024)] | None = Field(None, description="The full message, if why is cut.")
    remedies: list[Remedy] | None = Field(
        None, max_length=MAX_REMEDIES, description="Ways to fix the failure. Unset: the default remedies of the reason."
    )
    facts: dict[str, Text] | None = Field(
        None, max_length=MAX_FACTS, description="Data about the failure, such as the URI of the data report."
    )


class TrialStatus(OpenModel):
    """One trial.

    A final one never changes, except that its adapter is removed after the sweep has published the best.
    """

    number: int = Field(ge=0, description="Number of the trial, from 0; never reused.")
    name: TrialName = Field(description="Name of the trial's LoRAJob.")
    uid: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="UID of the trial's LoRAJob. It is part of the URI of the checkpoints."
    )
    origin: Annotated[str, Field(max_length=64)] | None = Field(
        None,
        description="Source of the parameters: TPE, Random, Grid, Initial, Final, or the name of a recommended "
        "configuration.",
    )
    state: Annotated[str, Field(max_length=32)] = Field(
        description="State of the trial: Waiting, Running, Complete, Pruned, Infeasible, Failed or Deleted."
    )
    value: Number | None = Field(
        None, description="Held-out loss of the weights that the trial published or would have published."
    )
    base_value: Number | None = Field(None, description="Held-out loss before training.")
    parameters: Parameters = Field(default_factory=dict, description="Values by field path.")
    trainable_parameters: int | None = Field(None, ge=0, description="Number of trainable parameters.")
    steps: int | None = Field(None, ge=0, description="Planned optimizer steps.")
    evaluations: list[EvaluationStatus] | None = Field(
        None, max_length=MAX_EVALUATIONS, description="The evaluations; set when the trial has ended."
    )
    gpu_seconds: int | None = Field(
        None, ge=0, description="Run time of the trial's pods in seconds, each multiplied by its GPUs."
    )
    run_seconds: int | None = Field(None, ge=0, description="Run time of the trial's pods, in seconds.")
    at: Annotated[str, Field(max_length=12)] | None = Field(
        None, description="Share of the planned steps after which the trial was ended."
    )
    reason: Annotated[str, Field(max_length=128)] | None = Field(
        None, description="Failure reason, in CamelCase. Unset: the trial hasn't failed."
    )
    why: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="Why the trial was ended early or failed, for people."
    )
    failure: TrialFailure | None = Field(None, description="Details of the failure: full message, remedies and facts.")
    adapter: TrialAdapter | None = Field(
        None,
        description="The adapter that the trial published. Removed after the sweep has published the best, unless "
        "keepAdapters retains it.",
    )

    def without_advice(self) -> TrialStatus:
        """Return the trial without its failure details: the status of a sweep that succeeded omits them."""
        return self.model_copy(update={"failure": None})


class TrialCounts(OpenModel):
    """The number of trials by state."""

    created: int = Field(0, ge=0, description="All trials.")
    waiting: int = Field(0, ge=0, description="Trials that don't run yet.")
    running: int = Field(0, ge=0, description="Trials that run.")
    complete: int = Field(0, ge=0, description="Trials that finished and were measured.")
    pruned: int = Field(0, ge=0, description="Trials that were ended early as unpromising.")
    infeasible: int = Field(0, ge=0, description="Trials whose parameters can't work.")
    failed: int = Field(
        0, ge=0, description="Trials that failed for other reasons than their parameters, or were deleted."
    )


class BestTrial(OpenModel):
    """The best trial so far."""

    trial: int = Field(ge=0, description="Number of the trial.")
    name: TrialName = Field(description="Name of the trial's LoRAJob.")
    value: Number = Field(description="Held-out loss of the trial.")
    base_value: Number | None = Field(None, description="Held-out loss before training.")
    improvement: Annotated[str, Field(max_length=16)] | None = Field(
        None, description="How far value is below baseValue, in readable form."
    )
    parameters: Parameters = Field(default_factory=dict, description="Values by field path.")


class ParameterImportance(OpenModel):
    """The importance of one parameter."""

    path: Annotated[str, Field(max_length=64)] = Field(description="Field path of the parameter.")
    share: Number = Field(
        description="Importance of the parameter for the loss, as a share of all parameters' importance, by PED-ANOVA."
    )


class Improvement(OpenModel):
    """A trial that was better than all earlier trials."""

    trial: int = Field(ge=0, description="Number of the trial.")
    value: Number = Field(description="Held-out loss of the trial.")


class TrialInputs(OpenModel):
    """The inputs of the first trial that passed its preflight."""

    revision: Annotated[str, Field(max_length=128)] | None = Field(None, description="Commit of the base model.")
    dataset_sha256: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="SHA-256 of the training data."
    )
    evaluation_sha256: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="SHA-256 of the evaluation data. Set only with evaluation.uri or evaluation.split."
    )
    adapter_sha256: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="SHA-256 of the adapter at continueFrom.uri."
    )
    adapter_revision: Annotated[str, Field(max_length=128)] | None = Field(
        None, description="Commit of that adapter, for hf://."
    )


class LoRASweepStatus(CommonStatus):
    """The status of a LoRASweep."""

    adapter: AdapterStatus | None = Field(None, description="The published adapter of the best trial.")
    counts: TrialCounts | None = Field(None, description="The number of trials by state.")
    counts_text: Annotated[str, Field(max_length=16)] | None = Field(
        None,
        description="Finished trials, of all planned ones. Trials that don't count towards maxTrials are left out.",
    )
    best: BestTrial | None = Field(None, description="The best trial so far.")
    trials: list[TrialStatus] | None = Field(
        None, max_length=MAX_TRIAL_ROWS, description="The trials, ordered by number."
    )
    importance: list[ParameterImportance] | None = Field(
        None,
        max_length=LARGEST_SPACE,
        description="Importance of the searched parameters. Set after 20 complete trials.",
    )
    convergence: list[Improvement] | None = Field(
        None, max_length=MAX_TRIALS, description="The trials that were the best when they ended."
    )
    trials_since_improvement: int | None = Field(
        None, ge=0, description="Trials that have ended since the best trial ended."
    )
    gpu_seconds_saved: int | None = Field(
        None, ge=0, description="Estimated GPU seconds that pruning saved, from the mean of the complete trials."
    )
    trial_inputs: TrialInputs | None = Field(
        None,
        description="Model commit and content digests that the first trial read. Every later trial pins them, so all "
        "trials use the same inputs.",
    )
    forgiven: int | None = Field(
        None,
        ge=0,
        description="After a retry of the sweep: failed trials with a number below this one no longer count.",
    )
    end_reason: Annotated[str, Field(max_length=32)] | None = Field(
        None,
        description="Why the sweep creates no more trials: MaxTrials, Budget, Deadline, NoImprovement, SpaceExhausted "
        "or MostWontFit.",
    )
