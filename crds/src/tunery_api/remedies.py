"""Define remedies, the ways to fix a failure, as data, with the default ones of each reason."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from tunery_api.fields import OpenModel
from tunery_api.reasons import FailureReason
from tunery_api.redact import redact

MAX_REMEDIES: Final = 4
"""The most remedies of one failure."""
MAX_FACTS: Final = 4
"""The most facts of one failure."""
MAX_REMEDY_FIELDS: Final = 8
MAX_FIELD: Final = 128
"""The most characters of a field path."""
MAX_REMEDY: Final = 640
"""The most bytes of a remedy's text."""


class Action(StrEnum):
    """What the user does after the fix."""

    RETRY = "Retry"
    """The fix is outside of the object. A blocked object then continues; a failed one can be retried."""
    EDIT = "Edit"
    """The fix is a mutable field of the object, followed by a retry."""
    RECREATE = "Recreate"
    """The fix is an immutable field: it needs a new object."""


class Remedy(OpenModel):
    """One way to fix a failure."""

    action: str = Field(
        max_length=32,
        description="What follows the fix. Retry: the fix is outside of the object. Edit: change a field in place. "
        "Recreate: the fix needs a new object.",
    )
    """An Action, or one of a later version."""
    text: str = Field(max_length=MAX_REMEDY, description="How to fix the failure, as an imperative.")
    """Without its consequence and the full stop, such as `Raise training.maxLength`."""
    fields: list[Annotated[str, Field(max_length=MAX_FIELD)]] = Field(
        default_factory=list, max_length=MAX_REMEDY_FIELDS, description="Fields of the spec to change."
    )
    """Paths without `spec.`."""


def retry(text: str) -> Remedy:
    """Return a remedy outside of the object."""
    return _remedy(Action.RETRY, text)


def edit(text: str, *fields: str) -> Remedy:
    """Return a remedy that changes fields in place."""
    return _remedy(Action.EDIT, text, *fields)


def recreate(text: str, *fields: str) -> Remedy:
    """Return a remedy that needs a new object with other values of these fields."""
    return _remedy(Action.RECREATE, text, *fields)


def _remedy(action: Action, text: str, *fields: str) -> Remedy:
    """Return a remedy whose text is redacted and at most MAX_REMEDY bytes long."""
    return Remedy(action=action, text=redact(text, MAX_REMEDY), fields=list(fields))


_R = FailureReason
_MEMORY: Final = edit("Raise resources.memory", "resources.memory")
_SCHEDULING: Final = edit("Use scheduling to keep the job off that node", "scheduling")
_CHECK_GPU: Final = retry("Check the GPU of that node: driver, container toolkit, and device plugin")
WITHOUT_GPU: Final = recreate("Set resources.gpus: 0 to compute on the CPU", "resources.gpus")
INTO_MODEL: Final = retry("Merge it alone with an AdapterMerge into: Model, and serve that with its own AdapterServer")

REMEDIES: Final[dict[FailureReason, tuple[Remedy, ...]]] = {
    _R.INVALID_SPEC: (recreate("Correct the named field"),),
    _R.SECRET_NOT_FOUND: (
        retry(
            "Create the Secret with the named keys in this namespace; a store outside AWS also needs AWS_ENDPOINT_URL"
        ),
        recreate("Name another Secret"),
    ),
    _R.MODEL_NOT_FOUND: (
        retry("Upload the model to that location"),
        recreate("Set another model.uri or model.revision", "model.uri", "model.revision"),
    ),
    _R.MODEL_GATED: (retry("Accept the model's terms on its hub page, with the account of HF_TOKEN"),),
    _R.MODEL_UNSUPPORTED: (
        recreate("Use a causal language model in safetensors format that needs no custom code", "model.uri"),
    ),
    _R.DATASET_NOT_FOUND: (
        retry("Upload the data to that location"),
        recreate("Set another dataset.uri or dataset.split", "dataset.uri", "dataset.split"),
    ),
    _R.DATASET_INVALID: (
        retry("Correct the named lines of the data set"),
        recreate("Set dataset.columns, or raise dataset.maxInvalidRows", "dataset.columns", "dataset.maxInvalidRows"),
    ),
    _R.STORAGE_ACCESS_DENIED: (
        retry("Correct the keys in the named Secret, or grant them read and write access to the named location"),
    ),
    _R.STORAGE_NOT_FOUND: (
        retry("Create the bucket, or correct AWS_ENDPOINT_URL in the Secret"),
        recreate("Name another bucket"),
    ),
    _R.STORAGE_UNAVAILABLE: (retry("Check that the storage endpoint is up and reachable from this namespace"),),
    _R.OUTPUT_EXISTS: (
        retry("Remove the existing files"),
        recreate("Set another output.uri, or output.overwrite: true", "output.uri", "output.overwrite"),
    ),
    _R.WONT_FIT: (
        recreate(
            "Lower training.batchSize or training.maxLength, use QLoRA, or request a GPU with more memory",
            "training.batchSize",
            "training.maxLength",
            "method",
        ),
    ),
    _R.IMAGE_PULL_FAILED: (retry("Check the image's name, and that the nodes can pull it"),),
    _R.UNSCHEDULABLE: (
        retry("Free or add a node that offers what the pod requests"),
        edit("Change scheduling, resources.memory, or resources.ephemeralStorage", "scheduling", "resources.memory"),
        recreate("Request other GPUs or CPU", "resources.gpus", "resources.cpu"),
    ),
    _R.GPU_UNAVAILABLE: (
        _CHECK_GPU,
        edit(
            "Use scheduling to keep the job off that node, or to set the runtimeClassName that GPUs need", "scheduling"
        ),
        WITHOUT_GPU,
    ),
    _R.GPU_FAULT: (_CHECK_GPU, _SCHEDULING),
    _R.GPU_OUT_OF_MEMORY: (
        recreate(
            "Lower training.maxLength, use QLoRA, or request a GPU with more memory; "
            "Tunery lowers training.batchSize itself",
            "training.maxLength",
            "method",
        ),
    ),
    _R.PEER_LOST: (
        retry("Check the network between the nodes of the job's pods; status.attemptHistory lists the nodes"),
    ),
    _R.OUT_OF_MEMORY: (_MEMORY,),
    _R.KILLED: (
        retry("Check what ends processes on the node"),
        edit("Raise resources.memory, as not every node reports a kill for memory", "resources.memory"),
    ),
    _R.DISK_FULL: (edit("Raise resources.ephemeralStorage", "resources.ephemeralStorage"),),
    _R.LOSS_DIVERGED: (
        recreate(
            "Lower training.learningRate or raise training.warmup, and check the data",
            "training.learningRate",
            "training.warmup",
        ),
    ),
    _R.NOT_IMPROVED: (
        recreate(
            "Train longer, raise lora.rank, or lower evaluation.minImprovement, and check the data",
            "training.epochs",
            "lora.rank",
            "evaluation.minImprovement",
        ),
    ),
    _R.ADAPTER_MISSING: (
        retry("Publish the named adapter there, with its manifest.json or as PEFT saves it"),
        recreate("Name another adapter"),
    ),
    _R.ADAPTER_CORRUPT: (retry("Publish the named adapter again: its files differ from its manifest"),),
    _R.ADAPTER_UNSUPPORTED: (INTO_MODEL,),
    _R.RANK_TOO_HIGH: (edit("Raise engine.maxRank, or train an adapter of a lower rank", "engine.maxRank"),),
    _R.BASE_MISMATCH: (
        recreate("Name the base model that the adapter was trained on, or another adapter", "model.uri"),
    ),
    _R.TOO_MANY_ADAPTERS: (
        edit(
            "Raise engine.maxLoadedAdapters, remove keepLoaded from some adapters, or use a second server",
            "engine.maxLoadedAdapters",
        ),
    ),
    _R.ENGINE_REFUSED: (retry("Fix what the engine reports in the message; Tunery tries again every five minutes"),),
    _R.PROBE_FAILED: (retry("Train and publish the adapter again: its answers are those of a broken adapter"),),
    _R.ENGINE_FAILED: (
        edit("Check the log of the container engine, and change resources or engine", "resources", "engine"),
    ),
    _R.ENGINE_UNSUPPORTED: (
        edit("Set engine.image to a newer vLLM; the message names the oldest supported version", "engine.image"),
    ),
    _R.INPUT_INVALID: (retry("Correct the named lines of the input"), recreate("Set another input.uri", "input.uri")),
    _R.REQUESTS_FAILED: (
        retry("Check the named lines and the server; answered requests are not sent again"),
        recreate("Raise maxErrors", "maxErrors"),
    ),
    _R.SERVER_UNAVAILABLE: (retry("Check the status of the AdapterServer that serverRef names"),),
    _R.SERVER_ACCESS_DENIED: (retry("Put an API key that the server accepts into the Secret of apiKeySecretRef"),),
    _R.CHECKPOINT_MISSING: (
        recreate(
            "Set resumeFrom to a LoRAJob or a location with a complete checkpoint, or omit it to train from the start",
            "resumeFrom",
        ),
    ),
    _R.NAME_CONFLICT: (retry("Delete or rename the object with the named name"),),
    _R.QUOTA_EXCEEDED: (retry("Free or raise the ResourceQuota that the message names"),),
    _R.CREATE_REFUSED: (retry("Fix what the API server's answer names: a policy, a permission, or a limit"),),
    _R.CLUSTER_UNAVAILABLE: (retry("Wait: Tunery tries again until the API server answers"),),
    _R.POD_REFUSED: (retry("Create or correct what the API server's answer names"),),
    _R.MOUNT_FAILED: (retry("Create or free the volume that the message names"),),
    _R.CONTAINER_REFUSED: (retry("Correct what the node's answer names"),),
    _R.PLATFORM_CHANGED: (
        retry("Ask a cluster admin to restore the named setting"),
        edit("Change the named field back"),
    ),
    _R.FIELD_CONTESTED: (
        retry("Find the policy or controller that changes the named field, and exempt Tunery's Jobs from it"),
    ),
    _R.NODE_PRESSURE: (retry("Check which other workloads use up the named node"),),
    _R.NODE_LOST: (retry("Check the node, or wait for another one"),),
    _R.DEADLINE_EXCEEDED: (
        edit("Raise activeDeadlineSeconds by the time that is still needed", "activeDeadlineSeconds"),
    ),
    _R.RETRIES_EXHAUSTED: (
        retry("Fix what the message of the last attempt names"),
        edit("Raise retries", "retries"),
    ),
    _R.BUDGET_EXHAUSTED: (
        edit("Raise budget or activeDeadlineSeconds", "budget", "activeDeadlineSeconds"),
        recreate("Make shorter trials"),
    ),
    _R.INTERNAL_ERROR: (retry("Report this as a bug in Tunery, with the pod's log"),),
}
"""The default remedies of each reason; a test checks that it is complete."""

_UNKNOWN: Final = (retry("Look up this reason in the docs of the Tunery version that reported it"),)


def remedies_for(reason: str) -> tuple[Remedy, ...]:
    """Return the default remedies of a reason, even for one of a later version."""
    try:
        return REMEDIES[FailureReason(reason)]
    except ValueError:
        return _UNKNOWN


def is_fixable(remedies: tuple[Remedy, ...] | list[Remedy]) -> bool:
    """Return whether the object itself can be retried after a fix."""
    return any(remedy.action != Action.RECREATE for remedy in remedies)
