"""Define the contract between operator and trainer: run.json as input, termination message and progress as output."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import AfterValidator, Field, field_validator

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.batchinference import MODELS_SHOWN, AnsweredBy, BatchInferenceSpec, OutputStatus
from tunery_api.failures import Failure
from tunery_api.fields import OpenModel, Text
from tunery_api.findings import MAX_CHECKS, MAX_FINDINGS, CheckStatus, FindingStatus
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.measured import (
    MAX_CURVE_POINTS,
    MAX_EVALUATIONS,
    CurvePoint,
    DatasetStatus,
    DiskStatus,
    EstimateStatus,
    EvaluationStatus,
    MemoryStatus,
    MetricsStatus,
    parse_finite,
)
from tunery_api.names import WORK_DIR
from tunery_api.redact import redact
from tunery_api.status import (
    AdapterStatus,
    CheckpointStatus,
    MergeInputStatus,
    Phase,
    ResolvedStatus,
    Timestamp,
    VerificationStatus,
)
from tunery_api.sweepstatus import MAX_TRIAL_ROWS, ParameterImportance, TrialStatus

DOWNLOADING: Final = "downloading"
"""The value of TrainerStatus.doing while base model, adapter and data are downloaded."""


class Task(StrEnum):
    """The task of a container: the subcommand of `python -m tunery_trainer`."""

    PREFLIGHT = "preflight"
    TRAIN = "train"
    MERGE = "merge"
    PUBLISH_BEST = "publish-best"
    """Publish the best trial's adapter as the sweep's result, then delete the others beyond keepAdapters. Runs on
    CPU."""
    REPORT = "report"
    """Report again what this object has published. Runs on CPU and writes nothing."""
    PUBLISH = "publish"
    """Publish the best weights of a stopped run's latest checkpoint. Runs on CPU without the base model's weights."""
    BATCH = "batch"
    """Answer a file of requests: a subcommand of `python -m tunery_server`, which has REPORT too."""
    FETCH = "fetch"
    """Serve what an object has published, on request: a subcommand of `python -m tunery_server`. Runs on CPU and writes
    nothing. It isn't part of the object's work."""


class Purpose(StrEnum):
    """The purpose of a mounted Secret or volume; an adapter of a merge has `adapter-<index>` instead."""

    MODEL = "model"
    DATASET = "dataset"
    EVALUATION = "evaluation"
    """The data set of dataset.evaluation.uri; dataset.secretRef grants access to it."""
    OUTPUT = "output"
    CONTINUE_FROM = "continue-from"
    RESUME_FROM = "resume-from"
    CACHE = "cache"
    """The PersistentVolumeClaim of the cache; no URI uses it."""
    WANDB = "wandb"
    MLFLOW = "mlflow"
    INPUT = "input"
    """The requests of a batch."""
    API_KEY = "api-key"
    """The API key for the AdapterServer of a batch."""


class RunIdentity(OpenModel):
    """The object that a run belongs to; it is recorded in the manifest."""

    kind: str
    namespace: str
    name: str
    uid: str
    sweep: str | None = None
    """The name of the trial's LoRASweep. None: the object isn't a trial."""


class MountedSecret(OpenModel):
    """A Secret that is mounted as a folder of files. It is optional: the folder may be empty."""

    name: str
    path: str
    field: str
    """The spec field that names it, for messages."""


class DiskLimit(OpenModel):
    """The total disk space that a container may use."""

    bytes: int
    field: str
    """The field of the spec or the platform settings that sets it, for messages."""


class CacheMount(OpenModel):
    """The volume with the cache of base models and prepared data of a namespace."""

    path: str
    max_bytes: int | None = None
    """The size limit of the cache. None: the size of its file system."""


class ResolvedAdapter(OpenModel):
    """The adapter of a resolved reference."""

    uri: str
    manifest_sha256: str | None = None
    """SHA-256 from the LoRAJob's status; None for a plain URI."""
    sha256: str | None = None
    """SHA-256 of what preflight has read at a plain URI; the run rejects any other content."""
    revision: str | None = None
    """The commit that preflight resolved, for hf:// adapters."""


class SearchedParameter(OpenModel):
    """One searched parameter of a sweep, for model cards and charts."""

    path: str
    words: str
    """Its values in readable form, such as `0.00001 to 0.01, by factors`."""
    log: bool = False
    """Charts use a logarithmic scale."""
    choices: list[str] | None = None


class LoRASweepRun(OpenModel):
    """The results of a sweep whose trials have all ended."""

    trials: list[TrialStatus] = Field(min_length=1, max_length=MAX_TRIAL_ROWS)
    best: int
    """The number of the trial whose adapter is published."""
    trials_uri: str
    """The URI below which the trials published, as computed by names.trials_uri."""
    keep_adapters: int = Field(1, ge=1)
    overwrite: bool = False
    """The value of spec.output.overwrite."""
    seed: int
    sampler: str
    space: list[SearchedParameter] = Field(default_factory=list)
    rungs: list[float] = Field(default_factory=list)
    """Shares of the steps at which trials were compared; empty if the pruner doesn't compare trials."""
    importance: list[ParameterImportance] = Field(default_factory=list)
    end_reason: str | None = None
    gpu_seconds_saved: int | None = None


class FetchRun(OpenModel):
    """What the task FETCH serves, and to whom."""

    token_sha256: str
    """SHA-256 of the bearer token, in hex."""
    result_uri: str | None = None
    """The URI of the published result in the status. None: nothing was published yet; output_uri is read instead."""
    manifest_sha256: str | None = None
    """SHA-256 of the manifest in the status. A result with another manifest isn't served."""


class RunSpec(OpenModel):
    """All settings of a container, without secrets. Exactly one of the specs, or `fetch`, is set."""

    identity: RunIdentity
    lora_job: LoRAJobSpec | None = None
    adapter_merge: AdapterMergeSpec | None = None
    batch_inference: BatchInferenceSpec | None = None
    lora_sweep: LoRASweepRun | None = None
    """The results of a sweep, not its spec: only publishing is left to do."""
    fetch: FetchRun | None = None
    server_url: str | None = None
    """For a batch: base URL of the AdapterServer, such as http://support-server.team-a.svc:8000/v1."""
    output_uri: str
    """The URI of the result."""
    checkpoint_uri: str | None = None
    """The URI of the folder with the `step-000200/` folders."""
    report_uri: str | None = None
    """The URI of the data report for a run that publishes nothing, or hasn't published yet."""
    resume_uri: str | None = None
    """For resumeFrom: the URI of one checkpoint of another object, or of the folder of all."""
    also_free: str | None = None
    """The URI of a sweep's result: the preflight of the first trial checks that it can be published there."""
    model_revision: str | None = None
    """The commit that preflight resolved, for hf:// models."""
    adapters: list[ResolvedAdapter] = Field(default_factory=list)
    """For a merge: one for each of spec.adapters, in order. For continueFrom: exactly one."""
    secrets: dict[str, MountedSecret] = Field(default_factory=dict)
    """By purpose."""
    volumes: dict[str, str] = Field(default_factory=dict)
    """The mount points of volumes and ConfigMaps by purpose; the URI's path is relative to them."""
    gpu_memory_bytes: int | None = None
    """Memory of one GPU, if the platform settings specify it. None: unknown before the pod starts."""
    memory_bytes: int | None = None
    """Memory limit of the container."""
    disk: DiskLimit | None = None
    cache: CacheMount | None = None
    image: str | None = None
    """The container's image, for lineage."""
    work_dir: str = WORK_DIR
    stop: str | None = None
    """Why the run was stopped, for the task that publishes its best weights."""
    local: bool = False
    """True for `python -m tunery_trainer run`: file:// URIs are allowed; secrets are environment variables."""


class AnswersReport(OpenModel):
    """The progress of a batch, summed over all attempts."""

    lines: int = Field(ge=0)
    answered: int = Field(0, ge=0)
    errors: int = Field(0, ge=0)
    prompt_tokens: int = Field(0, ge=0)
    completion_tokens: int = Field(0, ge=0)
    answered_by: list[AnsweredBy] = Field(default_factory=list, max_length=MODELS_SHOWN)


class PreflightReport(OpenModel):
    """The termination message of a preflight container, at most 4 KiB of JSON."""

    failure: Failure | None = None
    dataset: DatasetStatus | None = None
    memory: MemoryStatus | None = None
    estimate: EstimateStatus | None = None
    disk: DiskStatus | None = None
    resolved: ResolvedStatus | None = None
    checks: list[CheckStatus] | None = Field(None, max_length=MAX_CHECKS)


class RunResult(OpenModel):
    """The termination message of a train, merge or publish-best container, at most 4 KiB of JSON.

    `adapter` is set only after the manifest was read back and every digest in it matched.
    """

    failure: Failure | None = None
    doing: str | None = None
    """What the container did when a signal ended it, which isn't a failure."""
    adapter: AdapterStatus | None = None
    output: OutputStatus | None = None
    """The published answers of a batch, as verified as `adapter`."""
    answers: AnswersReport | None = None
    rejected_adapter: AdapterStatus | None = None
    """With NotImproved: the adapter, published at another URI and marked as rejected."""
    stopped_after_step: int | None = None
    """With `adapter` of a stopped run: its last step. None: the run was complete."""
    steps: int | None = None
    """Optimizer steps done."""
    metrics: MetricsStatus | None = None
    evaluations: list[EvaluationStatus] | None = Field(None, max_length=MAX_EVALUATIONS)
    dataset: DatasetStatus | None = None
    memory: MemoryStatus | None = None
    resolved: ResolvedStatus | None = None
    findings: list[FindingStatus] | None = Field(None, max_length=MAX_FINDINGS)
    """None: not reported."""
    checks: list[CheckStatus] | None = Field(None, max_length=MAX_CHECKS)
    checkpoint: CheckpointStatus | None = None
    inputs: list[MergeInputStatus] | None = None
    verification: VerificationStatus | None = None
    rank: int | None = None
    rank_error: str | None = None
    rank_too_low: Annotated[str, Field(max_length=1024)] | None = None
    """The error that the automatic rank of a merge causes, if it is too large."""
    not_removed: Annotated[str, Field(max_length=1024)] | None = None
    """At the end of a sweep: why files of its trials weren't deleted. Empty: all were deleted. None: all were
    deleted, or in a report: unknown."""


def _check_finite(text: str) -> str:
    if parse_finite(text) is None:
        raise ValueError("must be a finite number")
    return text


def _finite_only(evaluations: list[EvaluationStatus]) -> list[EvaluationStatus]:
    return [each for each in evaluations if parse_finite(each.loss) is not None]


def _finite_points(points: list[CurvePoint]) -> list[CurvePoint]:
    """Return the points whose losses are finite numbers."""
    losses = ((each, [loss for loss in (each.loss, each.eval_loss) if loss is not None]) for each in points)
    return [each for each, found in losses if all(parse_finite(loss) is not None for loss in found)]


def _redacted(limit: int) -> AfterValidator:
    """Return a validator that redacts credentials and shortens the text to `limit` bytes."""
    return AfterValidator(lambda text: redact(text, limit))


_Finite = Annotated[str, AfterValidator(_check_finite)]


class ProgressMetric(OpenModel):
    """One metric in the KubeflowCallback protocol; the value is a number as a string."""

    name: Annotated[str, Field(max_length=64)]
    value: Annotated[_Finite, Field(max_length=64)]


class TrainerStatus(OpenModel):
    """The report that a pod sends every few seconds, in the protocol of transformers' KubeflowCallback.

    `step`, `totalSteps`, `epoch`, `tokensPerSecond`, `phase`, `doing`, `percent`, `device`, `checkpoint`,
    `checkpointError`, `curve`, `curvePoints`, `evaluations`, `findings` and `checks` are extensions of Tunery
    and may be missing.
    """

    progress_percentage: int | None = Field(None, ge=0, le=100)
    estimated_remaining_seconds: int | None = Field(None, ge=0)
    metrics: list[ProgressMetric] = Field(default_factory=list, max_length=64)
    last_updated_time: Timestamp | None = None
    step: int | None = Field(None, ge=0)
    total_steps: int | None = Field(None, ge=0)
    epoch: Annotated[_Finite, Field(max_length=32)] | None = None
    tokens_per_second: Annotated[_Finite, Field(max_length=32)] | None = None
    phase: Phase | None = None
    doing: Annotated[str, Field(max_length=512), _redacted(400)] | None = None
    """The current activity, or what the pod waits for, if the phase doesn't show it."""
    percent: int | None = Field(None, ge=0, le=100)
    """Percentage of `doing` that is done; None if the total is unknown."""
    device: Annotated[str, Field(max_length=256), _redacted(256)] | None = None
    """The device of the computation."""
    answers: AnswersReport | None = None
    checkpoint: CheckpointStatus | None = None
    checkpoint_error: Annotated[str, Field(max_length=1024), _redacted(400)] | None = None
    """Why the latest checkpoint couldn't be stored. None: it was stored, or there is none yet."""
    curve: Annotated[Text, _redacted(1024)] | None = None
    """URI of curve.jsonl, once it is stored. None: not reported."""
    curve_points: Annotated[list[CurvePoint], AfterValidator(_finite_points)] | None = Field(
        None, max_length=MAX_CURVE_POINTS
    )
    """The loss curve so far, in each report: a lost report does no harm. None: not reported."""
    findings: list[FindingStatus] | None = Field(None, max_length=MAX_FINDINGS)
    """All current findings. None: not reported."""
    checks: list[CheckStatus] | None = Field(None, max_length=MAX_CHECKS)
    evaluations: Annotated[list[EvaluationStatus], AfterValidator(_finite_only)] | None = Field(
        None, max_length=MAX_EVALUATIONS
    )
    """All evaluations, in each report: a lost report does no harm."""

    @field_validator("phase", mode="before")
    @classmethod
    def _known(cls, phase: object) -> object:
        """Return None for a phase of a later version."""
        return phase if phase in [known.value for known in Phase] else None


class ProgressUpdate(OpenModel):
    """The body of a progress post."""

    trainer_status: TrainerStatus
