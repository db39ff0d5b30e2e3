"""Define the status that all kinds share, and those of LoRAJob and AdapterMerge."""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from tunery_api.failures import FailureStatus
from tunery_api.fields import UNOBSERVED, OpenModel, Text, enum_values
from tunery_api.findings import MAX_CHECKS, MAX_FINDINGS, CheckStatus, FindingStatus
from tunery_api.measured import (
    MAX_EVALUATIONS,
    DatasetStatus,
    DiskStatus,
    EstimateStatus,
    EvaluationStatus,
    MemoryStatus,
    MetricsStatus,
    Number,
    StoppedStatus,
)


def _rfc3339(text: str) -> str:
    """Refuse what the API server would: a schema's format is checked there only."""
    if not _RFC3339.fullmatch(text):
        raise ValueError("must be a time as RFC 3339 writes it")
    datetime.fromisoformat(text)
    return text


_RFC3339: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]\d{2}:\d{2})")
Timestamp = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"}), AfterValidator(_rfc3339)]
Reason = Annotated[str, Field(min_length=1, max_length=128)]
"""A word in CamelCase. Open, as the API conventions want it: a later version may know more."""


class Phase(StrEnum):
    """One word for people, derived from the conditions; programs read the conditions."""

    PENDING = "Pending"
    WAITING = "Waiting"
    PREFLIGHT = "Preflight"
    QUEUED = "Queued"
    STARTING = "Starting"
    DOWNLOADING = "Downloading"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    MERGING = "Merging"
    ANSWERING = "Answering"
    SEARCHING = "Searching"
    UPLOADING = "Uploading"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"


FINAL_PHASES: Final = frozenset({Phase.SUCCEEDED.value, Phase.FAILED.value, Phase.STOPPED.value})
"""The phases of an object that has ended."""


class ConditionType(StrEnum):
    """The condition types of every kind."""

    VALIDATED = "Validated"
    SEARCHING = "Searching"
    INPUTS_READY = "InputsReady"
    PREFLIGHT = "Preflight"
    QUOTA_RESERVED = "QuotaReserved"
    RUNNING = "Running"
    PROGRESS_REPORTED = "ProgressReported"
    CHECKPOINT_SAVED = "CheckpointSaved"
    EVALUATED = "Evaluated"
    RANK_SUFFICIENT = "RankSufficient"
    HEALTHY = "Healthy"
    ADAPTER_UPLOADED = "AdapterUploaded"
    OUTPUT_UPLOADED = "OutputUploaded"
    TRIALS_REMOVED = "TrialsRemoved"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    STOPPED = "Stopped"
    SUSPENDED = "Suspended"
    FINISHED = "Finished"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class ConditionStatus(StrEnum):
    """True, False or Unknown."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


MAX_CONDITIONS: Final = 32
"""What a status has room for; each type stands there once."""


class Condition(OpenModel):
    """A condition, as in metav1."""

    type: Annotated[str, Field(min_length=1, max_length=64)] = Field(description="What it speaks of.")
    status: ConditionStatus = Field(description="True, False or Unknown.")
    reason: Reason = Field(description="Why, in CamelCase.")
    message: Annotated[str, Field(max_length=2048)] = Field("", description="Why, in a sentence.")
    last_transition_time: Timestamp = Field(description="When the status last changed.")
    observed_generation: int | None = Field(None, ge=0, description="Generation of the spec that this speaks of.")


class ProgressStatus(OpenModel):
    """How far training is, as last reported by the pod."""

    percent: int | None = Field(
        None, ge=0, le=100, description="Share of the steps done; of the rows of a reference scored before them."
    )
    percent_text: Annotated[str, Field(max_length=8)] | None = Field(
        None, description="percent, with its sign; in phase Downloading the share that is downloaded."
    )
    step: int | None = Field(None, ge=0, description="Optimizer steps done.")
    total_steps: int | None = Field(None, ge=0, description="Optimizer steps in all.")
    epoch: Number | None = Field(None, description="Passes over the data done.")
    eta_seconds: int | None = Field(None, ge=0, description="Estimated seconds to the end of training.")
    eta: Annotated[str, Field(max_length=16)] | None = Field(None, description="etaSeconds, for people.")
    tokens_per_second: Number | None = Field(
        None, description="Tokens trained on in a second, by all devices together."
    )
    last_update_time: Timestamp | None = Field(None, description="When the pod last reported.")


class ResolvedValue(OpenModel):
    """One setting, and where it came from."""

    name: Annotated[str, Field(max_length=128)] = Field(description="Field of the spec, such as training.epochs.")
    value: Annotated[str, Field(max_length=256)] = Field(description="The value used.")
    source: Annotated[str, Field(max_length=64)] = Field(
        description="Manifest, Preset, Default, Rule, Adapter (continueFrom's), Checkpoint (that it went on from), "
        "Model (the base model's) or Memory (what was planned did not fit when it ran)."
    )
    reason: Annotated[str, Field(max_length=256)] | None = Field(
        None,
        description="Why it is not as planned: what ran out of memory, and at which step. Of lora.rank: what it is "
        "for.",
    )


class AdapterOrigin(StrEnum):
    """What is known of where an adapter comes from; none of these: Tunery's manifest vouches for it."""

    UNVERIFIED = "Unverified"
    """It was made elsewhere: nobody vouches for what it was trained on, or with."""


class InputAdapterStatus(OpenModel):
    """An adapter that was read."""

    uri: Text = Field(description="Where it lies.")
    sha256: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Its digest, which can be copied into sha256 of the reference."
    )
    origin: Annotated[str, Field(max_length=32)] | None = Field(
        None, description="Unverified where it was made elsewhere; unset where Tunery's manifest vouches for it."
    )
    revision: Annotated[str, Field(max_length=128)] | None = Field(None, description="The commit, for hf://.")


class ResolvedStatus(OpenModel):
    """What was left open in the manifest, and what it became."""

    method: Annotated[str, Field(max_length=32)] | None = Field(None, description="The method used.")
    method_reason: Text | None = Field(None, description="Why Auto chose it.")
    rank: int | None = Field(None, ge=0, description="The rank used.")
    target_modules: list[Annotated[str, Field(max_length=256)]] | None = Field(
        None, max_length=64, description="The modules that carry the adapter."
    )
    revision: Annotated[str, Field(max_length=128)] | None = Field(None, description="The model's commit.")
    continued_from: InputAdapterStatus | None = Field(None, description="The adapter of continueFrom, as it was read.")
    steps: int | None = Field(None, ge=0, description="Optimizer steps in all.")
    trainable_parameters: int | None = Field(None, ge=0, description="Parameters that are trained.")
    device: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="What trains: the GPU with its driver and CUDA, or the CPU; told before anything is loaded."
    )
    devices: int | None = Field(None, ge=0, description="How many train together: the GPUs, or on the CPU the pods.")
    parallelism: Annotated[str, Field(max_length=32)] | None = Field(
        None, description="How several devices share the work, DDP or FSDP; why stands among the values."
    )
    values: list[ResolvedValue] | None = Field(None, max_length=48, description="Each setting and its source.")
    unservable: Text | None = Field(None, description="Why no AdapterServer can serve it; unset: nothing says so.")


class AdapterStatus(OpenModel):
    """The published result; set only after its manifest was read back and every digest matched."""

    uri: Text = Field(description="Where it lies.")
    manifest_sha256: Annotated[str, Field(max_length=64)] = Field(description="Digest of manifest.json.")
    size_bytes: int = Field(ge=0, description="Size of all files.")
    served_name: Annotated[str, Field(max_length=256)] | None = Field(None, description="The base model it is for.")
    rank: int | None = Field(None, ge=0, description="Its rank.")
    unservable: Text | None = Field(None, description="Why no AdapterServer can serve it; unset: nothing says so.")


class CheckpointStatus(OpenModel):
    """The newest complete checkpoint."""

    uri: Text = Field(description="Where it lies.")
    step: int = Field(ge=0, description="The optimizer step it was taken at.")


MAX_ATTEMPTS: Final = 20
"""Attempts of which the status tells one by one; its totals count all."""
MAX_GENERATIONS: Final = 3
"""The same of pods that train together: so many times all of them, where these are more."""


class AttemptStatus(OpenModel):
    """One pod that was started."""

    uid: Annotated[str, Field(max_length=64)] = Field(description="uid of the pod.")
    pod: Annotated[str, Field(max_length=253)] = Field(description="Name of the pod.")
    node: Annotated[str, Field(max_length=253)] | None = Field(None, description="Node that it ran on.")
    start_time: Timestamp = Field(description="When its container started.")
    end_time: Timestamp | None = Field(None, description="When its container ended, as far as anything tells.")
    reason: Reason | None = Field(
        None,
        description="How it ended: Succeeded, Suspended, a failure reason, …; before endTime, why it is stopped.",
    )
    exit_code: int | None = Field(None, description="Exit code of its container; unset while it runs, or unknown.")
    seconds: int | None = Field(None, ge=0, description="How long it ran.")
    gpu_seconds: int | None = Field(None, ge=0, description="How long it ran, times its GPUs.")
    index: int | None = Field(
        None, ge=0, description="Which of the pods that train together it was, from 0; unset where one trains alone."
    )
    attempt: int | None = Field(
        None, ge=1, description="Which attempt it belonged to, from 1; unset where one pod trains alone."
    )


class InputReference(OpenModel):
    """A LoRAJob whose adapter or checkpoints are used: what it offered when it was ready; it may expire meanwhile."""

    name: Annotated[str, Field(max_length=253)] = Field(description="Name of the LoRAJob.")
    uid: Annotated[str, Field(max_length=64)] = Field(description="Its uid.")
    uri: Text = Field(description="Where its adapter lies, or for resumeFrom its checkpoints.")
    manifest_sha256: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Digest of the adapter's manifest.json."
    )
    output_secret: Annotated[str, Field(max_length=253)] | None = Field(
        None, description="Secret that opens the adapter."
    )
    model_uri: Text | None = Field(None, description="Its base model.")
    model_secret: Annotated[str, Field(max_length=253)] | None = Field(
        None, description="Secret that opens the base model."
    )


class CommonStatus(OpenModel):
    """The status that all kinds share."""

    observed_generation: int | None = Field(
        None, ge=UNOBSERVED, description="Generation of the spec that this speaks of; -1: nobody has seen it yet."
    )
    spec_version: Annotated[str, Field(max_length=32)] | None = Field(
        None, description="API version by whose rules and defaults the spec was judged."
    )
    observed_retry: Annotated[str, Field(max_length=128)] | None = Field(
        None,
        description="The annotation tunery.dev/retry that was seen last; another value reopens a failed object.",
    )
    phase: Annotated[str, Field(max_length=64)] | None = Field(
        None, description=f"One word, derived from the conditions: {enum_values(Phase)}."
    )
    reason: Reason | None = Field(
        None, description="Why it failed, was stopped or waits, in a word; unset where the phase says all."
    )
    conditions: list[Condition] | None = Field(
        None,
        max_length=MAX_CONDITIONS,
        description=f"The conditions, by type: {enum_values(ConditionType)}.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    start_time: Timestamp | None = Field(None, description="When the first pod that does the work started.")
    completion_time: Timestamp | None = Field(None, description="When the job succeeded, failed or was stopped.")
    attempts: int | None = Field(
        None, ge=0, description="How often its pod was started, ever; of several nodes, all pods together count once."
    )
    run_seconds: int | None = Field(
        None, ge=0, description="Seconds that the attempts which have ended ran, in all, however many their pods."
    )
    gpu_seconds: int | None = Field(
        None, ge=0, description="Seconds that the pods which have ended ran, times their GPUs, in all."
    )
    attempt_history: list[AttemptStatus] | None = Field(
        None,
        max_length=64 * MAX_GENERATIONS,
        description=f"The pods of the newest attempts, oldest first: {MAX_ATTEMPTS}, or of several nodes "
        f"{MAX_GENERATIONS} times all of them where these are more.",
    )
    input_references: list[InputReference] | None = Field(
        None, max_length=32, description="The LoRAJobs that it uses, as they were when all of them were ready."
    )
    job_name: Annotated[str, Field(max_length=63)] | None = Field(None, description="The Job that does the work.")
    pod_name: Annotated[str, Field(max_length=253)] | None = Field(
        None, description="The newest pod, also while it waits; of several nodes the first one's, which reports."
    )
    queue: Annotated[str, Field(max_length=63)] | None = Field(None, description="Kueue's queue, where there is one.")
    failure: FailureStatus | None = Field(None, description="Why it failed.")


class LoRAJobStatus(CommonStatus):
    """The status of a LoRAJob."""

    adapter: AdapterStatus | None = Field(None, description="The published result.")
    pods: Annotated[str, Field(max_length=16)] | None = Field(
        None, description="How many of the pods that train together run, such as 4/4; set with several nodes alone."
    )
    progress: ProgressStatus | None = Field(None, description="How far training is.")
    metrics: MetricsStatus | None = Field(None, description="The newest metrics.")
    evaluations: list[EvaluationStatus] | None = Field(
        None,
        max_length=MAX_EVALUATIONS,
        description=f"Those while training and at its end, oldest first; of many the newest {MAX_EVALUATIONS}.",
    )
    dataset: DatasetStatus | None = Field(None, description="What preflight found in the data set.")
    memory: MemoryStatus | None = Field(None, description="What preflight estimated, and what was used.")
    estimate: EstimateStatus | None = Field(None, description="What the run is estimated to take, in parts.")
    disk: DiskStatus | None = Field(None, description="The disk that training takes, by preflight's count.")
    resolved: ResolvedStatus | None = Field(None, description="What the manifest left open.")
    findings: list[FindingStatus] | None = Field(
        None,
        max_length=MAX_FINDINGS,
        description="What the run found out about itself, the gravest first; one of each type.",
    )
    checks: list[CheckStatus] | None = Field(
        None, max_length=MAX_CHECKS, description="The checklist, by preflight and then by training."
    )
    checkpoint: CheckpointStatus | None = Field(None, description="The newest complete checkpoint.")
    curve: Text | None = Field(
        None,
        description="Where curve.jsonl lies, as it was last stored; unset before that, and once it lies beside an "
        "adapter.",
    )
    stopped: StoppedStatus | None = Field(None, description="Set once it was stopped for good.")
    rejected_adapter: AdapterStatus | None = Field(
        None,
        description="What was trained and is not better than asked for, published beside the output for a look at it.",
    )


class MergeInputStatus(InputAdapterStatus):
    """One adapter that went into a merge."""

    rank: int | None = Field(None, ge=0, description="Its rank.")
    weight: Number | None = Field(None, description="Its weight.")
    eval_loss: Number | None = Field(None, description="Its loss on the data set of spec.evaluation.")


class VerificationStatus(OpenModel):
    """How far the written result is from what its inputs say."""

    max_error: Number = Field(description="Largest relative error.")
    method: Annotated[str, Field(max_length=256)] = Field(description="What was compared.")


class AdapterMergeStatus(CommonStatus):
    """The status of an AdapterMerge."""

    adapter: AdapterStatus | None = Field(None, description="The published result.")
    progress: ProgressStatus | None = Field(
        None, description="percentText: how much of the base model or the data is downloaded, in phase Downloading."
    )
    inputs: list[MergeInputStatus] | None = Field(None, max_length=32, description="The adapters that went in.")
    verification: VerificationStatus | None = Field(None, description="How the result was checked.")
    metrics: MetricsStatus | None = Field(
        None, description="evalLoss and baseEvalLoss: the result's and the base model's on the data of spec.evaluation."
    )
    dataset: DatasetStatus | None = Field(None, description="What was found in the data set of spec.evaluation.")
    device: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="What measures: the GPU with its driver and CUDA, or the CPU. A merge itself takes the CPU."
    )
    rank: int | None = Field(None, ge=0, description="Rank of the result.")
    rank_error: Number | None = Field(None, description="Largest relative error that the rank costs, over the modules.")
