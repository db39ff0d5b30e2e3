"""Define the contract between operator and trainer: run.json in, a termination message and progress out."""

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
    MAX_EVALUATIONS,
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
"""What a pod says that it does while base model, adapter and data come to its disk; see TrainerStatus.doing."""


class Task(StrEnum):
    """What a container is asked to do; the word after `python -m tunery_trainer`."""

    PREFLIGHT = "preflight"
    TRAIN = "train"
    MERGE = "merge"
    PUBLISH_BEST = "publish-best"
    """Publish the best trial's adapter as the result of its sweep, then remove those that are not kept; on CPU."""
    REPORT = "report"
    """Say again what this very object has published; on CPU, and nothing is written."""
    PUBLISH = "publish"
    """Publish what is best in the newest checkpoint of a run that was stopped; on CPU, without the base's weights."""
    BATCH = "batch"
    """Answer a file of requests; the word after `python -m tunery_server`, which knows REPORT, too."""


class Purpose(StrEnum):
    """What a mounted Secret or volume is for; an adapter of a merge has `adapter-<index>` instead."""

    MODEL = "model"
    DATASET = "dataset"
    EVALUATION = "evaluation"
    """The data set of dataset.evaluation.uri; opened by dataset's Secret."""
    OUTPUT = "output"
    CONTINUE_FROM = "continue-from"
    RESUME_FROM = "resume-from"
    CACHE = "cache"
    """The claim of the cache; no URI leads there."""
    WANDB = "wandb"
    MLFLOW = "mlflow"
    INPUT = "input"
    """The requests of a batch."""
    API_KEY = "api-key"
    """Of the server that a batch asks."""


class RunIdentity(OpenModel):
    """Whose run this is; it goes into the manifest."""

    kind: str
    namespace: str
    name: str
    uid: str
    sweep: str | None = None
    """The name of the LoRASweep that it is a trial of; None: of none."""


class MountedSecret(OpenModel):
    """A Secret, mounted as a folder of files (optional: the folder may be empty)."""

    name: str
    path: str
    field: str
    """The field of the spec that names it, for messages."""


class DiskLimit(OpenModel):
    """What the container's disk may hold in all."""

    bytes: int
    field: str
    """What sets it, for messages: a field of the spec, or of the platform's."""


class CacheMount(OpenModel):
    """The claim that jobs of the namespace keep base models and prepared data in."""

    path: str
    max_bytes: int | None = None
    """What it may hold; None: what its file system has."""


class ResolvedAdapter(OpenModel):
    """An adapter that a reference was resolved to."""

    uri: str
    manifest_sha256: str | None = None
    """Digest that the LoRAJob's status vouches for; None for a plain URI."""
    sha256: str | None = None
    """Digest of what preflight has read at a plain URI: nothing else is trained on."""
    revision: str | None = None
    """The commit that preflight resolved, for hf:// adapters."""


class SearchedParameter(OpenModel):
    """One parameter of what a sweep searched, as cards and pictures show it."""

    path: str
    words: str
    """Its values, for people: `0.00001 to 0.01, by factors`."""
    log: bool = False
    """Equal factors are equally far apart."""
    choices: list[str] | None = None


class LoRASweepRun(OpenModel):
    """What is known of a sweep at its end. No trial is under way any more."""

    trials: list[TrialStatus] = Field(min_length=1, max_length=MAX_TRIAL_ROWS)
    best: int
    """The number of the trial whose adapter is the result."""
    trials_uri: str
    """The place below which the trials published; names.trials_uri says which that must be."""
    keep_adapters: int = Field(1, ge=1)
    overwrite: bool = False
    """spec.output.overwrite."""
    seed: int
    sampler: str
    space: list[SearchedParameter] = Field(default_factory=list)
    rungs: list[float] = Field(default_factory=list)
    """Shares of the steps at which trials were compared; none where their place among the others ends no trial."""
    importance: list[ParameterImportance] = Field(default_factory=list)
    end_reason: str | None = None
    gpu_seconds_saved: int | None = None


class RunSpec(OpenModel):
    """Everything a container needs to know; nothing in it is secret. Exactly one of the specs is set."""

    identity: RunIdentity
    lora_job: LoRAJobSpec | None = None
    adapter_merge: AdapterMergeSpec | None = None
    batch_inference: BatchInferenceSpec | None = None
    lora_sweep: LoRASweepRun | None = None
    """Of a sweep its end, not its spec: what it published is all that is left to do."""
    server_url: str | None = None
    """For a batch: the base URL of the server that is asked, such as http://support-server.team-a.svc:8000/v1."""
    output_uri: str
    """The exact place of the result."""
    checkpoint_uri: str | None = None
    """The prefix below which `step-000200/` folders lie."""
    report_uri: str | None = None
    """The folder for the data report of a run that publishes nothing, or has not yet."""
    resume_uri: str | None = None
    """For resumeFrom: one checkpoint of another object, or the prefix of all of them."""
    also_free: str | None = None
    """The place of a sweep's own result, where the preflight of its first trial looks whether it may be published."""
    model_revision: str | None = None
    """The commit that preflight resolved, for hf:// models."""
    adapters: list[ResolvedAdapter] = Field(default_factory=list)
    """For a merge: one for each of spec.adapters, in order. For continueFrom: exactly one."""
    secrets: dict[str, MountedSecret] = Field(default_factory=dict)
    """By purpose."""
    volumes: dict[str, str] = Field(default_factory=dict)
    """Mounted claims and ConfigMaps, by purpose: the folder that the URI's path is relative to."""
    gpu_memory_bytes: int | None = None
    """Memory of one GPU, where the platform told; None: not known before the pod starts."""
    memory_bytes: int | None = None
    """Memory limit of the container."""
    disk: DiskLimit | None = None
    cache: CacheMount | None = None
    image: str | None = None
    """The image the container runs, for lineage."""
    work_dir: str = WORK_DIR
    stop: str | None = None
    """Why the run was stopped, for the task that publishes what it had."""
    local: bool = False
    """True for `python -m tunery_trainer run`: file:// URIs are allowed, secrets come from the environment."""


class AnswersReport(OpenModel):
    """How far a batch is, all attempts together."""

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
    """What the container did when a signal ended it, which is not a failure."""
    adapter: AdapterStatus | None = None
    output: OutputStatus | None = None
    """Published answers of a batch, as `adapter` is."""
    answers: AnswersReport | None = None
    rejected_adapter: AdapterStatus | None = None
    """With NotImproved: published like `adapter`, at another URI, and marked as rejected."""
    stopped_after_step: int | None = None
    """With `adapter` of a stopped run: the steps that it took. None: the run was complete."""
    steps: int | None = None
    """Optimizer steps that were taken."""
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
    """What the automatic rank of a merge costs, if that is too much."""
    not_removed: Annotated[str, Field(max_length=1024)] | None = None
    """At the end of a sweep: why files of its trials were not removed; empty: all were. None: of the pod that removes
    them, all were; of a report, not checked."""


def _check_finite(text: str) -> str:
    if parse_finite(text) is None:
        raise ValueError("must be a finite number")
    return text


def _finite_only(evaluations: list[EvaluationStatus]) -> list[EvaluationStatus]:
    return [each for each in evaluations if parse_finite(each.loss) is not None]


def _redacted(limit: int) -> AfterValidator:
    """Return a validator that redacts credentials and shortens the text to `limit` bytes."""
    return AfterValidator(lambda text: redact(text, limit))


_Finite = Annotated[str, AfterValidator(_check_finite)]


class ProgressMetric(OpenModel):
    """One metric of the KubeflowCallback protocol; value is a number in a string."""

    name: Annotated[str, Field(max_length=64)]
    value: Annotated[_Finite, Field(max_length=64)]


class TrainerStatus(OpenModel):
    """What a pod posts every few seconds: the protocol of transformers' KubeflowCallback.

    `step`, `totalSteps`, `epoch`, `tokensPerSecond`, `phase`, `doing`, `percent`, `device`, `checkpoint`,
    `checkpointError`, `curve`, `evaluations`, `findings` and `checks` are additions of Tunery and may be missing.
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
    """What it does or waits for now, where the phase alone does not tell."""
    percent: int | None = Field(None, ge=0, le=100)
    """How much of `doing` is done; None where nobody knows how much there is."""
    device: Annotated[str, Field(max_length=256), _redacted(256)] | None = None
    """What it computes on."""
    answers: AnswersReport | None = None
    checkpoint: CheckpointStatus | None = None
    checkpoint_error: Annotated[str, Field(max_length=1024), _redacted(400)] | None = None
    """Why the newest checkpoint could not be stored; None: it was, or there was none yet."""
    curve: Annotated[Text, _redacted(1024)] | None = None
    """Where curve.jsonl lies, once it was stored; None: nothing is said of it."""
    findings: list[FindingStatus] | None = Field(None, max_length=MAX_FINDINGS)
    """All that hold now; None: nothing is said of them."""
    checks: list[CheckStatus] | None = Field(None, max_length=MAX_CHECKS)
    evaluations: Annotated[list[EvaluationStatus], AfterValidator(_finite_only)] | None = Field(
        None, max_length=MAX_EVALUATIONS
    )
    """All of them each time, so that a report that is lost does no harm."""

    @field_validator("phase", mode="before")
    @classmethod
    def _known(cls, phase: object) -> object:
        """A phase of a later version says no more than none."""
        return phase if phase in [known.value for known in Phase] else None


class ProgressUpdate(OpenModel):
    """The body of a progress post."""

    trainer_status: TrainerStatus
