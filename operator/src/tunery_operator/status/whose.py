"""Whose it is to mend what keeps a pod from running: the platform's, where its chart alone says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tunery_api.reasons import FailureReason
from tunery_api.runspec import Failure
from tunery_operator.plan.placing import AUTHORITIES, Value

_R = FailureReason
_CLASSES: Final = {"priorityClassName": "PriorityClass", "runtimeClassName": "RuntimeClass"}
_SELECTED: Final = "node affinity/selector"
"""What the scheduler says of nodes that have not the labels."""
_CONSTRAINT: Final = "security context constraint"
_IDS: Final = ("runAsUser", "runAsGroup", "fsGroup")
_LIMIT: Final = (" usage per ", "limitrange", "LimitRange")
"""What a LimitRange says."""


def named(found: Failure, says: Mapping[str, Value], *, job: bool = True, checks: bool = False) -> Failure:
    """Return a failure with the value of the chart that it comes from, where it is sure to come from one.

    `says` is what the platform says of that pod and the manifest does not; `job`: its image is the platform's;
    `checks`: its resources are, too.
    """
    hint = _hint(found, says, job=job, checks=checks)
    return found if hint is None else found.model_copy(update={"hint": hint})


def _hint(found: Failure, says: Mapping[str, Value], *, job: bool, checks: bool) -> str | None:
    if found.reason == _R.UNSCHEDULABLE:
        selector = says.get("nodeSelector")
        return _no_such_node(selector) if selector is not None and _SELECTED in found.message else None
    if found.reason == _R.POD_REFUSED:
        value = _refused(found.message, says, checks=checks)
        return _of_platform(value) if value is not None else None
    if found.reason == _R.IMAGE_PULL_FAILED and job:
        return (
            "The image is the platform's, not the manifest's: see that the nodes can pull it, with the Secrets in this "
            "namespace that trainer.pullSecrets of the chart names, or ask whoever runs Tunery to correct "
            "trainer.image (of a BatchInference serving.server.image) in the values of its chart. It "
            "goes on by itself then."
        )
    bundle = says.get(AUTHORITIES)
    if found.reason == _R.MOUNT_FAILED and bundle is not None and f'"volume-{AUTHORITIES}"' in found.message:
        return (
            f"Create ConfigMap {bundle.content} in this namespace, with the authorities under the key that "
            f"{bundle.name} of the chart says; it is the platform that has pods trust them. It goes on by itself then."
        )
    return None


def _refused(message: str, says: Mapping[str, Value], *, checks: bool) -> str | None:
    """Return the name of the chart's value that the cluster finds wrong in a pod; None where it is none for sure."""
    for field, kind in _CLASSES.items():
        value = says.get(field)
        if value is not None and kind in message and value.content in message:
            return value.name
    if _CONSTRAINT in message and any(each in message for each in _IDS):
        return "trainer.securityContext"
    return "preflight.resources" if checks and any(each in message for each in _LIMIT) else None


def _of_platform(value: str) -> str:
    return (
        f"The manifest does not say this, the platform's settings do: ask whoever runs Tunery to correct {value} in "
        "the values of its chart, or to create or allow in the cluster what its answer names. It goes on by "
        "itself then."
    )


def _no_such_node(selector: Value) -> str:
    return (
        f"Free or add a node that has {selector.content} and offers what is asked for: it goes on by itself. "
        f"{selector.name} of the chart asks for that, not the manifest, which cannot take it away: ask whoever runs "
        "Tunery where no node is to have it. What the manifest itself asks for may change as it waits."
    )
