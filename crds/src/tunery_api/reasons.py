"""Define why an object fails: the reasons, whether a retry can help, and the exit codes."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final


class FailureReason(StrEnum):
    """The value of `status.failure.reason`, of conditions and of `PreflightReport`/`RunResult`."""

    INVALID_SPEC = "InvalidSpec"
    SECRET_NOT_FOUND = "SecretNotFound"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_GATED = "ModelGated"
    MODEL_UNSUPPORTED = "ModelUnsupported"
    DATASET_NOT_FOUND = "DatasetNotFound"
    DATASET_INVALID = "DatasetInvalid"
    STORAGE_ACCESS_DENIED = "StorageAccessDenied"
    STORAGE_NOT_FOUND = "StorageNotFound"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    OUTPUT_EXISTS = "OutputExists"
    WONT_FIT = "WontFit"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    UNSCHEDULABLE = "Unschedulable"
    GPU_UNAVAILABLE = "GPUUnavailable"
    GPU_FAULT = "GPUFault"
    GPU_OUT_OF_MEMORY = "GPUOutOfMemory"
    OUT_OF_MEMORY = "OutOfMemory"
    PEER_LOST = "PeerLost"
    KILLED = "Killed"
    DISK_FULL = "DiskFull"
    LOSS_DIVERGED = "LossDiverged"
    NOT_IMPROVED = "NotImproved"
    ADAPTER_MISSING = "AdapterMissing"
    ADAPTER_CORRUPT = "AdapterCorrupt"
    ADAPTER_UNSUPPORTED = "AdapterUnsupported"
    RANK_TOO_HIGH = "RankTooHigh"
    BASE_MISMATCH = "BaseMismatch"
    TOO_MANY_ADAPTERS = "TooManyAdapters"
    ENGINE_REFUSED = "EngineRefused"
    PROBE_FAILED = "ProbeFailed"
    ENGINE_FAILED = "EngineFailed"
    ENGINE_UNSUPPORTED = "EngineUnsupported"
    INPUT_INVALID = "InputInvalid"
    REQUESTS_FAILED = "RequestsFailed"
    SERVER_UNAVAILABLE = "ServerUnavailable"
    SERVER_ACCESS_DENIED = "ServerAccessDenied"
    CHECKPOINT_MISSING = "CheckpointMissing"
    NAME_CONFLICT = "NameConflict"
    QUOTA_EXCEEDED = "QuotaExceeded"
    CREATE_REFUSED = "CreateRefused"
    CLUSTER_UNAVAILABLE = "ClusterUnavailable"
    POD_REFUSED = "PodRefused"
    MOUNT_FAILED = "MountFailed"
    CONTAINER_REFUSED = "ContainerRefused"
    PLATFORM_CHANGED = "PlatformChanged"
    FIELD_CONTESTED = "FieldContested"
    NODE_PRESSURE = "NodePressure"
    NODE_LOST = "NodeLost"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    RETRIES_EXHAUSTED = "RetriesExhausted"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    INTERNAL_ERROR = "InternalError"


_R = FailureReason
RETRYABLE: Final = frozenset(
    {
        _R.STORAGE_UNAVAILABLE,
        _R.IMAGE_PULL_FAILED,
        _R.UNSCHEDULABLE,
        _R.GPU_FAULT,
        _R.PEER_LOST,
        _R.OUT_OF_MEMORY,
        _R.KILLED,
        _R.ENGINE_REFUSED,
        _R.ENGINE_FAILED,
        _R.SERVER_UNAVAILABLE,
        _R.QUOTA_EXCEEDED,
        _R.CREATE_REFUSED,
        _R.CLUSTER_UNAVAILABLE,
        _R.POD_REFUSED,
        _R.MOUNT_FAILED,
        _R.CONTAINER_REFUSED,
        _R.PLATFORM_CHANGED,
        _R.FIELD_CONTESTED,
        _R.NODE_PRESSURE,
        _R.NODE_LOST,
        _R.INTERNAL_ERROR,
    }
)
"""Reasons after which the same spec may succeed without a change, so a retry is worth its GPU time."""


def is_retryable(reason: str) -> bool:
    """Return whether a retry can help; True for a reason of a later version."""
    return reason in RETRYABLE or reason not in set(FailureReason)


class ExitCode(IntEnum):
    """The exit codes of containers, as in docs/operations.md. The train Job's podFailurePolicy uses USER_ERROR."""

    OK = 0
    BUG = 1
    USER_ERROR = 64
    """The user must act: no retry can help (sysexits' EX_USAGE)."""
    DATA_ERROR = 65
    """Only from the command `check`: some rows are invalid (sysexits' EX_DATAERR)."""
    RETRYABLE = 75
    """The failure may be temporary, so a retry can help (sysexits' EX_TEMPFAIL)."""
    PEER_LOST = 76
    """Another process of the training is gone and reports its own failure (sysexits' EX_PROTOCOL)."""
    KILLED = 137
    """SIGKILL, often by the kernel's OOM killer; the container's reason is then OOMKilled."""
    TERMINATED = 143
    """SIGTERM before the last step; a checkpoint was saved."""


def exit_code_for(reason: FailureReason) -> ExitCode:
    """Return the exit code of a container that fails for `reason`."""
    if reason is FailureReason.INTERNAL_ERROR:
        return ExitCode.BUG
    return ExitCode.RETRYABLE if reason in RETRYABLE else ExitCode.USER_ERROR
