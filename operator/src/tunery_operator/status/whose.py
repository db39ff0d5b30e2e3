"""Whose it is to mend what keeps a pod from running: the platform's, where its chart alone says it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Final

from tunery_api.fields import parse_quantity
from tunery_api.reasons import FailureReason
from tunery_api.runspec import Failure
from tunery_operator.plan.platform_says import (
    AUTHORITIES,
    CACHE,
    DOOR,
    ENGINE_IMAGE,
    IMAGE,
    OWN_CLAIMS,
    OWN_NODES,
    OWN_RESOURCES,
    Value,
)
from tunery_operator.plan.server_names import ENGINE

_R = FailureReason
_CLASSES: Final = {"priorityClassName": "PriorityClass", "runtimeClassName": "RuntimeClass"}
_SELECTED: Final = "node affinity/selector"
"""What the scheduler says of nodes that have not the labels."""
_TAINTED: Final = "untolerated taint"
_CLAIMS: Final = "persistentvolumeclaim"
_UNBOUND: Final = "unbound"
_CONSTRAINT: Final = "security context constraint"
_IDS: Final = ("runAsUser", "runAsGroup", "fsGroup")
_LIMIT: Final = (" usage per ", "limitrange", "LimitRange")
"""What a LimitRange says."""
_ASKED: Final = re.compile(r"\b(?:limit|request) is ([0-9][^\s,\]]*)")
"""In it, what was asked for."""
_NO_PROGRAM: Final = re.compile(r'\bexec: "[^"]+": ')
"""What a runtime says of an image that has not the program which is to be started in it."""
_GOES_ON: Final = " It goes on by itself then."


def named(found: Failure, says: Mapping[str, Value], *, checks: bool = False, ended: bool = False) -> Failure:
    """Return a failure with the value of the chart that it comes from, where it is sure to come from one.

    `says` is what the platform says of that pod and the manifest does not; `checks`: its resources are the platform's,
    too; `ended`: nothing goes on by itself.
    """
    hint = _hint(found, says, checks=checks)
    if hint is None:
        return found
    return found.model_copy(update={"hint": hint.removesuffix(_GOES_ON) if ended else hint})


def _hint(found: Failure, says: Mapping[str, Value], *, checks: bool) -> str | None:
    if found.reason == _R.UNSCHEDULABLE:
        return _no_claim(found.message, says) or _no_such_node(found.message, says, checks=checks)
    if found.reason == _R.POD_REFUSED:
        value = _refused(found.message, says, checks=checks)
        return _of_platform(value) if value is not None else _limited_door(found.message, says)
    if found.reason in (_R.IMAGE_PULL_FAILED, _R.CONTAINER_REFUSED):
        return _of_image(found, says)
    bundle = says.get(AUTHORITIES)
    if found.reason == _R.MOUNT_FAILED and bundle is not None and f'"volume-{AUTHORITIES}"' in found.message:
        return (
            f"Create ConfigMap {bundle.content} in this namespace, with the authorities under the key that "
            f"{bundle.name} of the chart says; it is the platform that has pods trust them.{_GOES_ON}"
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
        f"the values of its chart, or to create or allow in the cluster what its answer names.{_GOES_ON}"
    )


def _limited_door(message: str, says: Mapping[str, Value]) -> str | None:
    """Return what to do where a limit may be against what a server's door has; None where it is the engine's."""
    door, own = says.get(DOOR), says.get(OWN_RESOURCES)
    if door is None or own is None or not any(each in message for each in _LIMIT):
        return None
    asked = _amounts(_ASKED.findall(message))
    of_door, of_engine = asked & _amounts(door.content.split(", ")), asked & _amounts(own.content.split(", "))
    if of_engine and not of_door:
        return None
    if of_door and not of_engine:
        return _of_platform(door.name)
    return (
        "The limit may be against either container, or both together: the engine has spec.resources of the manifest, "
        f"which may change; the door has {door.content} by {door.name} of the chart, which whoever runs Tunery may "
        f"change. Lower the one that is too large, or have the limit raised.{_GOES_ON}"
    )


def _amounts(texts: Iterable[str]) -> set[Decimal]:
    """Return the amounts that texts of others name, however they are written."""
    found: set[Decimal] = set()
    for text in texts:
        with contextlib.suppress(ValueError, ArithmeticError):
            found.add(parse_quantity(text))
    return found


def _of_image(found: Failure, says: Mapping[str, Value]) -> str | None:
    """Return what to do about an image that is the platform's; None where it is the manifest's, or not at fault."""
    of_engine = found.message.startswith(f"container {ENGINE} of ")
    image = says.get(ENGINE_IMAGE if of_engine else IMAGE)
    if image is None:
        return None
    if found.reason == _R.IMAGE_PULL_FAILED:
        return (
            "The image is the platform's, not the manifest's: see that the nodes can pull it, with the Secrets in this "
            "namespace that trainer.pullSecrets of the chart names, or ask whoever runs Tunery to correct "
            f"{image.name} in the values of its chart.{_GOES_ON}"
        )
    if _NO_PROGRAM.search(found.message) is None:
        return None
    return (
        f"Image {image.content} has not the program that is started in it. It is the platform's, not the manifest's: "
        f"ask whoever runs Tunery to correct {image.name} in the values of its chart.{_GOES_ON}"
    )


def _no_claim(message: str, says: Mapping[str, Value]) -> str | None:
    """Return what to do where the claim of the platform's cache is missing, or may be the one that is not bound."""
    cache, own, text = says.get(CACHE), says.get(OWN_CLAIMS), message.lower()
    if cache is None or _CLAIMS not in text:
        return None
    whose = f"{cache.name} of the chart has its pods mount that, not the manifest"
    if f'"{cache.content}"' in text:
        return (
            f"Create, or mend, PersistentVolumeClaim {cache.content} in this namespace: {whose}. Where there is to be "
            f"none, ask whoever runs Tunery.{_GOES_ON}"
        )
    if _UNBOUND not in text:
        return None
    others = f", or {own.content}, which the manifest names" if own is not None else ""
    return (
        f"See why a claim of this namespace is not bound: {cache.content}{others}. Of {cache.content}: {whose}; where "
        f"there is to be none, ask whoever runs Tunery.{_GOES_ON}"
    )


def _no_such_node(message: str, says: Mapping[str, Value], *, checks: bool) -> str | None:
    """Return whose demand no node meets; None where the platform demands nothing of nodes."""
    selector, own = says.get("nodeSelector"), says.get(OWN_NODES)
    if selector is None or _SELECTED not in message:
        return None
    more = "preflight.tolerations of the chart and " if checks else ""
    taint = (
        f" Where a taint keeps nodes away, {more}spec.scheduling.tolerations may change." if _TAINTED in message else ""
    )
    if own is None:
        return (
            f"Free or add a node that has {selector.content} and offers what is asked for: it goes on by itself. "
            f"{selector.name} of the chart asks for that, not the manifest, which cannot take it away: ask whoever "
            f"runs Tunery where no node is to have it.{taint} What the manifest itself asks for may change as it waits."
        )
    return (
        f"Free or add a node that has {own.content} and {selector.content}, and offers what is asked for: it goes on "
        f"by itself. The manifest asks for {own.content} ({own.name}, which may change as it waits); {selector.name} "
        f"of the chart asks for {selector.content}, which the manifest cannot take away: ask whoever runs Tunery where "
        f"no node is to have it.{taint}"
    )
