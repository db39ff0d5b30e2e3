"""What to do, where a reason's own advice speaks of a job that ends: a server goes on, and its spec may change."""

from __future__ import annotations

from typing import Final

from tunery_api.reasons import FailureReason, advice_for
from tunery_api.runspec import Failure

_R = FailureReason

_HINTS: Final[dict[str, str]] = {
    _R.INVALID_SPEC: "Correct the named field and apply the manifest again; what was served before goes on meanwhile.",
    _R.PLATFORM_CHANGED: "Change the named field, or ask whoever runs Tunery to restore the named setting; what was "
    "served before goes on meanwhile.",
    _R.NAME_CONFLICT: "Delete or rename the object that bears the named name, or give the server another one.",
    _R.SECRET_NOT_FOUND: "Create the Secret with the named keys in the namespace of the server; the replicas see it "
    "within 90 seconds. A store that is not AWS's own needs AWS_ENDPOINT_URL in it, too.",
    _R.MODEL_NOT_FOUND: "Put the model there; another spec.model needs a new server.",
    _R.MODEL_UNSUPPORTED: "Use a causal language model in safetensors format that the engine knows, in a new server.",
    _R.STORAGE_ACCESS_DENIED: "Correct the keys in the named Secret, or give them the right to read the named place.",
    _R.STORAGE_NOT_FOUND: "Create the bucket, or correct the endpoint in the Secret or the place in spec.adapters; "
    "another bucket of the model needs a new server.",
    _R.IMAGE_PULL_FAILED: "Check the image's name and that the nodes can pull it; the replica starts as soon as they "
    "can.",
    _R.UNSCHEDULABLE: "Free or add a node that offers what is asked for: the replica starts by itself. resources and "
    "scheduling of the server may change.",
    _R.OUT_OF_MEMORY: "Raise spec.resources.memory; the container was killed for using more.",
    _R.KILLED: "Nothing to do if it comes back and stays. Else kubectl describe pod tells whether its kubelet ended it "
    "as one that did not answer; look at what ends processes on the node, and raise spec.resources.memory: not every "
    "kill for memory is told as one.",
    _R.DISK_FULL: "Raise spec.resources.ephemeralStorage: the base model and the adapters lie there.",
    _R.NODE_PRESSURE: "Nothing to do if its successor starts; else look at what else uses up that node.",
    _R.QUOTA_EXCEEDED: "Free or raise the namespace's ResourceQuota that the message names; the replica is made as "
    "soon as it fits.",
    _R.CREATE_REFUSED: "Do what the cluster's answer asks (a policy, a right, a limit); the server goes on once it is "
    "accepted.",
    _R.POD_REFUSED: "Create or correct what the cluster's answer names; the server goes on once its pods are accepted.",
    _R.INTERNAL_ERROR: "This is a defect of Tunery: please report it with the log of the container that is named.",
}
REPLACE_IN_PLACE: Final = (
    "Free or add a node that offers what is asked for; where there is none to spare, set spec.rollout to "
    "{maxSurge: 0, maxUnavailable: 1}: then a replica ends before its successor starts."
)
"""Where a rollout waits for room that its own predecessors take."""


def hint_for(failure: Failure) -> str:
    """Return what to do about a failure; see hint_of."""
    return hint_of(str(failure.reason), failure.hint)


def hint_of(reason: str, hint: str | None) -> str:
    """Return what to do: what whoever failed says itself, else what is known of the reason.

    A replica that says no more than the reason's own advice says it as to a job, of which a new one would be made.
    """
    usual = advice_for(reason).hint
    own = hint if hint != usual else None
    return own or _HINTS.get(reason) or usual
