"""Define the status fields that all kinds share, and the statuses of LoRAJob and AdapterMerge."""

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
    CurveStatus,
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
    """Return the text; raise ValueError if it isn't an RFC 3339 time. Only the API server checks a schema's format."""
    if not _RFC3339.fullmatch(text):
        raise ValueError("must be a time as RFC 3339 writes it")
    datetime.fromisoformat(text)
    return text


_RFC3339: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]\d{2}:\d{2})")
Timestamp = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"}), AfterValidator(_rfc3339)]
Reason = Annotated[str, Field(min_length=1, max_length=128)]
"""A word in CamelCase. Any word is accepted, as in the API conventions: a later version may add reasons."""


class Phase(StrEnum):
    """A one-word summary of the conditions for people; programs read the conditions."""

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
"""The phases of an object that has finished."""


class ConditionType(StrEnum):
    """The condition types of every kind, in the order of a status. compute.py of the operator's status sets them."""

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
"""The most conditions of a status; each type occurs once."""


class Condition(OpenModel):
    """A condition, as in metav1."""

    type: Annotated[str, Field(min_length=1, max_length=64)] = Field(description="Type of the condition.")
    status: ConditionStatus = Field(description="True, False or Unknown.")
    reason: Reason = Field(description="Reason for the status, in CamelCase.")
    message: Annotated[str, Field(max_length=2048)] = Field("", description="Details of the reason, for people.")
    last_transition_time: Timestamp = Field(description="When the status last changed.")
    observed_generation: int | None = Field(None, ge=0, description="The metadata.generation that it is based on.")


class ProgressStatus(OpenModel):
    """The progress, as last reported by the pod."""

    percent: int | None = Field(
        None,
        ge=0,
        le=100,
        description="Percentage of the optimizer steps done. Before the first step of DPO and KTO: percentage of the "
        "rows scored by the reference model.",
    )
    percent_text: Annotated[str, Field(max_length=8)] | None = Field(
        None, description="percent with a % sign. In phase Downloading: the percentage downloaded."
    )
    step: int | None = Field(None, ge=0, description="Optimizer steps done.")
    total_steps: int | None = Field(None, ge=0, description="Total optimizer steps of the run.")
    epoch: Number | None = Field(None, description="Passes over the data done.")
    eta_seconds: int | None = Field(None, ge=0, description="Estimated seconds until training ends.")
    eta: Annotated[str, Field(max_length=16)] | None = Field(None, description="etaSeconds in readable form.")
    tokens_per_second: Number | None = Field(None, description="Tokens trained per second, summed over all devices.")
    last_update_time: Timestamp | None = Field(None, description="When the pod last reported.")


class ResolvedValue(OpenModel):
    """The value of one setting, and its source."""

    name: Annotated[str, Field(max_length=128)] = Field(description="Field of the spec, such as training.epochs.")
    value: Annotated[str, Field(max_length=256)] = Field(description="The value in use.")
    source: Annotated[str, Field(max_length=64)] = Field(
        description="Source of the value: Manifest, Preset, Default, Rule, Adapter (continueFrom), Checkpoint (resumed "
        "from), Model (the base model) or Memory (lowered after memory ran out)."
    )
    reason: Annotated[str, Field(max_length=256)] | None = Field(
        None,
        description="Why the value differs from the plan: what ran out of memory, and at which step. For lora.rank: "
        "the use that this rank is recommended for.",
    )


class AdapterOrigin(StrEnum):
    """The origin of an adapter; unset if the adapter has Tunery's manifest with its digests."""

    UNVERIFIED = "Unverified"
    """Another tool made the adapter: its training data and base model are unverified."""


class InputAdapterStatus(OpenModel):
    """An input adapter, as it was read."""

    uri: Text = Field(description="URI of the adapter.")
    sha256: Annotated[str, Field(max_length=64)] | None = Field(
        None,
        description="SHA-256 of the adapter. You can pin the content by copying it into the sha256 field of the "
        "reference.",
    )
    origin: Annotated[str, Field(max_length=32)] | None = Field(
        None, description="Unverified if another tool made the adapter. Unset: Tunery's manifest records its digests."
    )
    revision: Annotated[str, Field(max_length=128)] | None = Field(None, description="Commit of an hf:// adapter.")


class ResolvedStatus(OpenModel):
    """The values that Tunery chose for unset fields."""

    method: Annotated[str, Field(max_length=32)] | None = Field(None, description="The PEFT method in use.")
    method_reason: Text | None = Field(None, description="Why Auto chose this method.")
    rank: int | None = Field(None, ge=0, description="The rank in use.")
    target_modules: list[Annotated[str, Field(max_length=256)]] | None = Field(
        None, max_length=64, description="The modules that the adapter modifies."
    )
    revision: Annotated[str, Field(max_length=128)] | None = Field(None, description="Commit of the base model.")
    continued_from: InputAdapterStatus | None = Field(None, description="The adapter of continueFrom, as it was read.")
    steps: int | None = Field(None, ge=0, description="Total optimizer steps of the run.")
    trainable_parameters: int | None = Field(None, ge=0, description="Number of trainable parameters.")
    device: Annotated[str, Field(max_length=256)] | None = Field(
        None,
        description="The training device: the GPU with its driver and CUDA version, or the CPU. Reported before the "
        "model is loaded.",
    )
    devices: int | None = Field(None, ge=0, description="Number of devices: the GPUs, or on CPU the pods.")
    parallelism: Annotated[str, Field(max_length=32)] | None = Field(
        None, description="How several devices share the work: DDP or FSDP. The reason is in values."
    )
    values: list[ResolvedValue] | None = Field(None, max_length=48, description="Each setting, with its source.")
    unservable: Text | None = Field(None, description="Why an AdapterServer can't serve it, if known.")


class AdapterStatus(OpenModel):
    """The published adapter; set only after its manifest was read back and every digest matched."""

    uri: Text = Field(description="URI of the adapter.")
    manifest_sha256: Annotated[str, Field(max_length=64)] = Field(description="SHA-256 of manifest.json.")
    size_bytes: int = Field(ge=0, description="Total size of the files, in bytes.")
    served_name: Annotated[str, Field(max_length=256)] | None = Field(None, description="Base model's served name.")
    rank: int | None = Field(None, ge=0, description="Rank of the adapter.")
    unservable: Text | None = Field(None, description="Why an AdapterServer can't serve it, if known.")


class CheckpointStatus(OpenModel):
    """The latest complete checkpoint."""

    uri: Text = Field(description="URI of the checkpoint.")
    step: int = Field(ge=0, description="Optimizer step of the checkpoint.")


MAX_ATTEMPTS: Final = 20
"""The most attempts in the attempt history; the totals count all attempts."""
MAX_GENERATIONS: Final = 3
"""The attempts of a multi-node job whose pods are all in the history, if these are more than MAX_ATTEMPTS pods."""


class AttemptStatus(OpenModel):
    """One pod that was started."""

    uid: Annotated[str, Field(max_length=64)] = Field(description="UID of the pod.")
    pod: Annotated[str, Field(max_length=253)] = Field(description="Name of the pod.")
    node: Annotated[str, Field(max_length=253)] | None = Field(None, description="Node that the pod ran on.")
    start_time: Timestamp = Field(description="When its container started.")
    end_time: Timestamp | None = Field(None, description="When its container ended, if known.")
    reason: Reason | None = Field(
        None,
        description="How the attempt ended: Succeeded, Suspended or a failure reason. Before endTime: why Tunery is "
        "stopping the pod.",
    )
    exit_code: int | None = Field(None, description="Exit code of its container, if known.")
    seconds: int | None = Field(None, ge=0, description="Run time of the container, in seconds.")
    gpu_seconds: int | None = Field(None, ge=0, description="Its seconds, multiplied by its GPUs.")
    index: int | None = Field(None, ge=0, description="Index of the pod, from 0; only with several nodes.")
    attempt: int | None = Field(None, ge=1, description="Attempt of the pod, from 1; only with several nodes.")


class InputReference(OpenModel):
    """A LoRAJob whose adapter or checkpoints are used, as it was when ready; it may be deleted later."""

    name: Annotated[str, Field(max_length=253)] = Field(description="Name of the LoRAJob.")
    uid: Annotated[str, Field(max_length=64)] = Field(description="UID of the LoRAJob.")
    uri: Text = Field(description="URI of its adapter, or for resumeFrom of its checkpoints.")
    manifest_sha256: Annotated[str, Field(max_length=64)] | None = Field(None, description="SHA-256 of manifest.json.")
    output_secret: Annotated[str, Field(max_length=253)] | None = Field(None, description="Secret for the adapter.")
    model_uri: Text | None = Field(None, description="URI of its base model.")
    model_secret: Annotated[str, Field(max_length=253)] | None = Field(None, description="Secret for the base model.")


class CommonStatus(OpenModel):
    """The status that all kinds share."""

    observed_generation: int | None = Field(
        None, ge=UNOBSERVED, description="The metadata.generation that this status is based on; -1: not read yet."
    )
    spec_version: Annotated[str, Field(max_length=32)] | None = Field(
        None, description="API version whose rules and defaults were applied to the spec."
    )
    observed_retry: Annotated[str, Field(max_length=128)] | None = Field(
        None,
        description="The last value of the annotation tunery.dev/retry that the operator has handled. A new value "
        "restarts a failed object.",
    )
    phase: Annotated[str, Field(max_length=64)] | None = Field(
        None, description=f"One-word summary of the conditions: {enum_values(Phase)}."
    )
    reason: Reason | None = Field(
        None, description="Why the object failed, was stopped or waits, in CamelCase. Unset: the phase needs no reason."
    )
    conditions: list[Condition] | None = Field(
        None,
        max_length=MAX_CONDITIONS,
        description=f"The conditions, one for each type: {enum_values(ConditionType)}.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    start_time: Timestamp | None = Field(None, description="When the first pod of the main work started.")
    completion_time: Timestamp | None = Field(None, description="When the object succeeded, failed or was stopped.")
    attempts: int | None = Field(None, ge=0, description="Number of attempts; with several nodes, not of pods.")
    run_seconds: int | None = Field(
        None, ge=0, description="Total run time of the finished attempts in seconds, for any number of pods."
    )
    gpu_seconds: int | None = Field(
        None, ge=0, description="Total run time of the finished pods in seconds, each multiplied by its GPUs."
    )
    attempt_history: list[AttemptStatus] | None = Field(
        None,
        max_length=64 * MAX_GENERATIONS,
        description=f"The pods of the latest attempts, oldest first: at most {MAX_ATTEMPTS} pods, or all pods of the "
        f"latest {MAX_GENERATIONS} attempts if these are more.",
    )
    input_references: list[InputReference] | None = Field(
        None, max_length=32, description="The LoRAJobs whose results are used, as they were when all were ready."
    )
    job_name: Annotated[str, Field(max_length=63)] | None = Field(None, description="The Job that does the work.")
    pod_name: Annotated[str, Field(max_length=253)] | None = Field(
        None,
        description="Name of the latest pod, even if it is still pending. With several nodes: the pod with index 0, "
        "which reports.",
    )
    queue: Annotated[str, Field(max_length=63)] | None = Field(None, description="Kueue's LocalQueue, if used.")
    failure: FailureStatus | None = Field(None, description="Why the object failed or is blocked, and how to fix it.")


class LoRAJobStatus(CommonStatus):
    """The status of a LoRAJob."""

    adapter: AdapterStatus | None = Field(None, description="The published adapter.")
    pods: Annotated[str, Field(max_length=16)] | None = Field(
        None, description="Running pods, such as 4/4; only with several nodes."
    )
    progress: ProgressStatus | None = Field(None, description="The progress of the training.")
    metrics: MetricsStatus | None = Field(None, description="The latest metrics.")
    evaluations: list[EvaluationStatus] | None = Field(
        None,
        max_length=MAX_EVALUATIONS,
        description=f"The latest evaluations, at most {MAX_EVALUATIONS}, oldest first.",
    )
    dataset: DatasetStatus | None = Field(None, description="What preflight found in the data set.")
    memory: MemoryStatus | None = Field(None, description="Device memory, estimated and used.")
    estimate: EstimateStatus | None = Field(None, description="Estimated memory by part, steps and tokens of the run.")
    disk: DiskStatus | None = Field(None, description="Disk space of training, as estimated by preflight.")
    resolved: ResolvedStatus | None = Field(None, description="The values that Tunery chose for unset fields.")
    findings: list[FindingStatus] | None = Field(
        None, max_length=MAX_FINDINGS, description="Findings of the diagnosis, most severe first; one of each type."
    )
    checks: list[CheckStatus] | None = Field(
        None, max_length=MAX_CHECKS, description="The checklist: preflight, then training."
    )
    checkpoint: CheckpointStatus | None = Field(None, description="The latest complete checkpoint.")
    curve: CurveStatus | None = Field(None, description="The loss curve.")
    stopped: StoppedStatus | None = Field(None, description="Set once the job was stopped permanently.")
    rejected_adapter: AdapterStatus | None = Field(
        None,
        description="The trained adapter if it missed evaluation.minImprovement. It is published next to the output, "
        "for inspection only.",
    )


class MergeInputStatus(InputAdapterStatus):
    """One input adapter of a merge."""

    rank: int | None = Field(None, ge=0, description="Rank of the adapter.")
    weight: Number | None = Field(None, description="Weight of the adapter.")
    eval_loss: Number | None = Field(None, description="Loss of the adapter on the data set of spec.evaluation.")


class VerificationStatus(OpenModel):
    """The difference between the written result and the result computed from the inputs."""

    max_error: Number = Field(description="Largest relative error.")
    method: Annotated[str, Field(max_length=256)] = Field(description="What was compared.")


class AdapterMergeStatus(CommonStatus):
    """The status of an AdapterMerge."""

    adapter: AdapterStatus | None = Field(None, description="The published result.")
    progress: ProgressStatus | None = Field(
        None,
        description="The progress of downloads: in phase Downloading, percentText is the percentage of the base model "
        "or data downloaded.",
    )
    inputs: list[MergeInputStatus] | None = Field(None, max_length=32, description="The input adapters.")
    verification: VerificationStatus | None = Field(None, description="The check of the result against its inputs.")
    metrics: MetricsStatus | None = Field(
        None,
        description="Losses on the data of spec.evaluation: evalLoss of the result, baseEvalLoss of the base model.",
    )
    dataset: DatasetStatus | None = Field(None, description="What was found in the data set of spec.evaluation.")
    device: Annotated[str, Field(max_length=256)] | None = Field(
        None,
        description="The device of the evaluation: the GPU with its driver and CUDA version, or the CPU. The merge "
        "itself runs on the CPU.",
    )
    rank: int | None = Field(None, ge=0, description="Rank of the result.")
    rank_error: Number | None = Field(None, description="Largest relative error by the reduced rank.")
