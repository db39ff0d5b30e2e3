"""Why a job failed: every reason, whether trying again can help, what the user should do, and the exit codes."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final, NamedTuple


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


class Advice(NamedTuple):
    """What is known about a reason apart from the message of one failure."""

    retryable: bool
    """True where the same spec may succeed later; a retry is then worth its GPU time."""
    hint: str
    """One sentence for the user: what to do."""
    mendable: bool = True
    """The job itself can be tried again once that is done; False: only another spec can help."""


_R = FailureReason
NO_GPU: Final = "Where the cluster has no GPU that works, resources.gpus: 0 in a new job computes on the CPU."

ADVICE: Final[dict[FailureReason, Advice]] = {
    _R.INVALID_SPEC: Advice(False, "Correct the named field and apply the manifest under a new name.", mendable=False),
    _R.SECRET_NOT_FOUND: Advice(
        False,
        "Create the Secret with the named keys in the namespace of the job; a store that is not AWS's own needs "
        "AWS_ENDPOINT_URL in it, too. If the manifest names the wrong Secret, delete the job and apply it corrected.",
    ),
    _R.MODEL_NOT_FOUND: Advice(
        False, "Put the model there; another spec.model.uri or spec.model.revision needs a new job."
    ),
    _R.MODEL_GATED: Advice(
        False,
        "Accept the model's terms on its hub page, with the account whose HF_TOKEN spec.model.secretRef has.",
    ),
    _R.MODEL_UNSUPPORTED: Advice(
        False,
        "Use a causal language model in safetensors format that needs no code of its own, in a new job.",
        mendable=False,
    ),
    _R.DATASET_NOT_FOUND: Advice(
        False, "Put the data there; another spec.dataset.uri or spec.dataset.split needs a new job."
    ),
    _R.DATASET_INVALID: Advice(
        False,
        "Mend the named lines of the data set, and retry. Where another content is asked for (sha256), put that there "
        "first. Other columns than the usual need spec.dataset.columns, and more bad lines a higher "
        "spec.dataset.maxInvalidRows, in a new job.",
    ),
    _R.STORAGE_ACCESS_DENIED: Advice(
        False, "Correct the keys in the named Secret, or give them the right to read and write the named place."
    ),
    _R.STORAGE_NOT_FOUND: Advice(
        False,
        "Create the bucket, or correct the endpoint in the Secret. If the manifest names the wrong bucket, delete the "
        "job and apply it corrected.",
    ),
    _R.STORAGE_UNAVAILABLE: Advice(True, "Check that the storage endpoint is up and reachable from the namespace."),
    _R.OUTPUT_EXISTS: Advice(
        False, "Remove what is there; another spec.output.uri, or spec.output.overwrite: true, needs a new job."
    ),
    _R.WONT_FIT: Advice(
        False,
        "Lower training.batchSize or training.maxLength, use QLoRA, or ask for a GPU with more memory, in a new job.",
    ),
    _R.IMAGE_PULL_FAILED: Advice(
        True, "Check the image's name and that the nodes can pull it; the job goes on as soon as they can."
    ),
    _R.UNSCHEDULABLE: Advice(
        True,
        "Free or add a node that offers what is asked for: the job goes on by itself. spec.scheduling, resources.memory"
        " and resources.ephemeralStorage may change as it waits; other GPUs or cpu need a new job.",
    ),
    _R.GPU_UNAVAILABLE: Advice(
        False,
        "Have the node's GPU looked at: driver, container toolkit, device plugin. spec.scheduling, which may change "
        "while no pod runs, keeps the job off that node, or names the RuntimeClass that GPUs need (runtimeClassName). "
        f"{NO_GPU}",
    ),
    _R.GPU_FAULT: Advice(
        True,
        "Keep the job off the node with spec.scheduling, which may change while no pod runs, and have its GPU looked "
        "at. If it came once only, a retry alone may go well.",
    ),
    _R.GPU_OUT_OF_MEMORY: Advice(
        False,
        "Lower training.maxLength, use QLoRA, or take a GPU with more memory, in a new job; training.batchSize is "
        "lowered by itself.",
        mendable=False,
    ),
    _R.PEER_LOST: Advice(
        True,
        "Look at what stands between the pods of the job, which reach each other by TCP: node N is the pod of that "
        "index in status.attemptHistory, which has its machine, too; where two nodes are named, look at both. Once the "
        "job has failed its pods may be gone: their logs are where your cluster collects logs.",
    ),
    _R.OUT_OF_MEMORY: Advice(
        True,
        "Raise spec.resources.memory, which may change while no pod runs; the container was killed for using more.",
    ),
    _R.KILLED: Advice(
        True,
        "Look at what ends processes on the node, and raise spec.resources.memory, which may change while no pod runs: "
        "not every kill for memory is told as one. If it came once only, a retry alone may go well.",
    ),
    _R.DISK_FULL: Advice(False, "Raise spec.resources.ephemeralStorage, which may change while no pod runs."),
    _R.LOSS_DIVERGED: Advice(
        False,
        "Lower training.learningRate or raise training.warmup in a new job, and look at the data.",
        mendable=False,
    ),
    _R.NOT_IMPROVED: Advice(
        False,
        "Train longer or with a higher rank, or lower evaluation.minImprovement, in a new job; look at the data.",
        mendable=False,
    ),
    _R.ADAPTER_MISSING: Advice(
        False,
        "Publish the named adapter there, with its manifest.json, or correct where it is named; a merge and "
        "continueFrom take a folder as PEFT saves it, too.",
    ),
    _R.ADAPTER_CORRUPT: Advice(
        False, "Publish the named adapter again: what lies there is damaged, or not what its manifest lists."
    ),
    _R.ADAPTER_UNSUPPORTED: Advice(
        False, "Merge it alone with an AdapterMerge into: Model, and serve that as the model of a server of its own."
    ),
    _R.RANK_TOO_HIGH: Advice(False, "Raise engine.maxRank of the server, or make an adapter of a lower rank."),
    _R.BASE_MISMATCH: Advice(
        False, "Serve it from an AdapterServer of the base model that it was trained on, or train it on this one."
    ),
    _R.TOO_MANY_ADAPTERS: Advice(
        False,
        "Serve the rest from a second server; of those with keepLoaded, raise engine.maxLoadedAdapters or take it from "
        "some.",
    ),
    _R.ENGINE_REFUSED: Advice(
        True, "Look at the engine's own words in the message; it is tried again every five minutes."
    ),
    _R.PROBE_FAILED: Advice(
        False, "Look at the adapter: it does not answer as one that has learned something; train and publish it again."
    ),
    _R.ENGINE_FAILED: Advice(
        True, "Look at the log of the container engine; resources, and engine of the server, may be changed."
    ),
    _R.ENGINE_UNSUPPORTED: Advice(
        False, "Use an image of a newer vLLM, in engine.image or as the platform's; the message names the oldest."
    ),
    _R.INPUT_INVALID: Advice(
        False, "Mend the named lines of the input and retry; another spec.input.uri needs a new object."
    ),
    _R.REQUESTS_FAILED: Advice(
        False,
        "Look at the named lines and at the server, and retry: what was answered is not asked again, unless the "
        "input has changed, which is asked anew as a whole. More lines that may fail, spec.maxErrors, need a new "
        "object.",
    ),
    _R.SERVER_UNAVAILABLE: Advice(
        True,
        "Look at the status of the AdapterServer that spec.serverRef names; what was answered is not asked again.",
    ),
    _R.SERVER_ACCESS_DENIED: Advice(
        False,
        "Put an API key that the server lets in into the Secret of spec.apiKeySecretRef, and retry; what was answered "
        "is not asked again.",
    ),
    _R.CHECKPOINT_MISSING: Advice(
        False,
        "Name a LoRAJob or a place with a complete checkpoint in spec.resumeFrom, or leave it out to train from the "
        "start, in a new job.",
        mendable=False,
    ),
    _R.NAME_CONFLICT: Advice(False, "Delete or rename the object that bears the named name."),
    _R.QUOTA_EXCEEDED: Advice(
        True, "Free or raise the namespace's ResourceQuota that the message names; the job goes on as soon as it fits."
    ),
    _R.CREATE_REFUSED: Advice(
        True, "Do what the cluster's answer asks (a policy, a right, a limit); the job goes on once it is accepted."
    ),
    _R.CLUSTER_UNAVAILABLE: Advice(True, "Nothing to do here: it is tried again until the API server answers."),
    _R.POD_REFUSED: Advice(
        True, "Create or correct what the cluster's answer names; the job goes on once its pod is accepted."
    ),
    _R.MOUNT_FAILED: Advice(
        True, "Create or free the volume that the message names; the pod starts as soon as it can be mounted."
    ),
    _R.CONTAINER_REFUSED: Advice(
        True, "Correct what the node's answer names; the container starts as soon as the node accepts it."
    ),
    _R.PLATFORM_CHANGED: Advice(
        True,
        "Put the named field back if it was changed; else ask whoever runs Tunery to restore the named setting. The job"
        " goes on by itself then.",
    ),
    _R.FIELD_CONTESTED: Advice(
        True, "Find what else changes the named field of the Job, a policy or a controller, and exempt Tunery's Jobs."
    ),
    _R.NODE_PRESSURE: Advice(
        True, "Look at what else uses up the node that is named. If it came once only, a retry alone may go well."
    ),
    _R.NODE_LOST: Advice(True, "Look at the node; once it is back, or another one is there, a retry goes well."),
    _R.DEADLINE_EXCEEDED: Advice(False, "Raise spec.activeDeadlineSeconds by what is still needed."),
    _R.RETRIES_EXHAUSTED: Advice(
        False,
        "Mend what the message of the last attempt says, or raise spec.retries, which may change while no pod runs.",
    ),
    _R.BUDGET_EXHAUSTED: Advice(
        False,
        "Raise spec.budget or spec.activeDeadlineSeconds, which may change at any time, or make shorter trials "
        "in a new sweep.",
    ),
    _R.INTERNAL_ERROR: Advice(True, "This is a defect of Tunery: please report it with the job's log."),
}
"""One entry for each reason; a test keeps it complete."""

_UNKNOWN: Final = Advice(True, "This reason is of another version of Tunery; look it up in that version's docs.")


def advice_for(reason: str) -> Advice:
    """Return what is known about a reason, also about one that a later version may have added."""
    try:
        return ADVICE[FailureReason(reason)]
    except ValueError:
        return _UNKNOWN


class ExitCode(IntEnum):
    """Documented in docs/operations.md; the train Job's podFailurePolicy speaks of USER_ERROR."""

    OK = 0
    BUG = 1
    USER_ERROR = 64
    """The user must act: no retry can help (sysexits' EX_USAGE)."""
    DATA_ERROR = 65
    """Of `check` alone: rows cannot be used (sysexits' EX_DATAERR)."""
    RETRYABLE = 75
    """May heal by itself: worth a retry (sysexits' EX_TEMPFAIL)."""
    PEER_LOST = 76
    """Another process of those that train together is gone, and says why itself (sysexits' EX_PROTOCOL)."""
    KILLED = 137
    """SIGKILL, often the kernel's for too much memory; OOMKilled beside it says so."""
    TERMINATED = 143
    """Told to stop (SIGTERM) before the last step; a checkpoint was written."""


def exit_code_for(reason: FailureReason) -> ExitCode:
    """Return the code a container ends with when it fails for `reason`."""
    if reason is FailureReason.INTERNAL_ERROR:
        return ExitCode.BUG
    return ExitCode.RETRYABLE if ADVICE[reason].retryable else ExitCode.USER_ERROR
