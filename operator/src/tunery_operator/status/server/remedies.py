"""Define the usual remedies of a server, whose spec may change in place."""

from __future__ import annotations

from typing import Final

from tunery_api.failures import Failure, sentences
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy, edit, recreate, remedies_for, retry

_R = FailureReason
_SERVER: Final[dict[str, tuple[Remedy, ...]]] = {
    _R.INVALID_SPEC: (edit("Correct the named field and apply the manifest again"),),
    _R.PLATFORM_CHANGED: (
        edit("Change the named field"),
        retry("Ask a cluster admin to restore the named setting"),
    ),
    _R.MODEL_NOT_FOUND: (retry("Upload the model to that location"), recreate("Set another model.uri", "model.uri")),
    _R.MODEL_UNSUPPORTED: (
        recreate("Use a causal language model in safetensors format that the engine supports", "model.uri"),
    ),
    _R.STORAGE_NOT_FOUND: (
        retry("Create the bucket, or correct AWS_ENDPOINT_URL in the Secret"),
        edit("Correct the location in adapters", "adapters"),
    ),
    _R.UNSCHEDULABLE: (
        retry("Free or add a node that offers what the pod requests"),
        edit("Change resources or scheduling", "resources", "scheduling"),
    ),
    _R.KILLED: (
        retry("Check with kubectl describe pod what ended it"),
        edit("Raise resources.memory, as not every node reports a kill for memory", "resources.memory"),
    ),
    _R.NODE_PRESSURE: (retry("Check what else uses up that node, if the next pod does not start"),),
    _R.INTERNAL_ERROR: (retry("Report this as a bug in Tunery, with the log of the named container"),),
}
REPLACE_IN_PLACE: Final = (
    retry("Free or add a node that offers what the pod requests"),
    edit(
        "Set rollout to {maxSurge: 0, maxUnavailable: 1}, so that a replica ends before its successor starts", "rollout"
    ),
)
"""The remedies where a rollout waits for the room of its own predecessors."""


def of_server(failure: Failure) -> Failure:
    """Return a failure with the remedies of a server, where it has none of its own."""
    if failure.remedies:
        return failure
    remedies = _SERVER.get(str(failure.reason)) or remedies_for(failure.reason)
    return failure.model_copy(update={"remedies": list(remedies)})


def from_hint(hint: str | None) -> tuple[Remedy, ...]:
    """Return the remedy that a replica reports as a sentence; none where it reports none."""
    return (retry(hint.removesuffix(".")),) if hint else ()


def hint_of(reason: str, hint: str | None) -> str:
    """Return what to do about an adapter: the hint that a replica reports, else the usual remedies as sentences."""
    return hint or sentences(_SERVER.get(reason) or remedies_for(reason))
