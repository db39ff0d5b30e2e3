"""What another LoRAJob offers to a merge or to continueFrom: ready, not yet, or never."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunery_api.inputs import LocalReference
from tunery_api.runspec import ResolvedAdapter


@dataclass(frozen=True, slots=True)
class ReadyInput:
    """An adapter that can be read now; `name` is the LoRAJob it comes from, if it comes from one."""

    adapter: ResolvedAdapter
    name: str | None = None
    output_secret: LocalReference | None = None
    model_uri: str | None = None
    model_secret: LocalReference | None = None


@dataclass(frozen=True, slots=True)
class UnfinishedInput:
    """A LoRAJob that does not exist yet or has not ended yet."""

    name: str
    state: str


@dataclass(frozen=True, slots=True)
class FailedInput:
    """A LoRAJob that failed: what waits for it can never run."""

    name: str
    reason: str


AdapterInput = ReadyInput | UnfinishedInput | FailedInput


def plain_input(uri: str) -> ReadyInput:
    """Return the input that a URI is: always ready."""
    return ReadyInput(ResolvedAdapter(uri=uri.rstrip("/")))


def lorajob_input(name: str, body: Mapping[str, Any] | None, default_secret: str) -> AdapterInput:
    """Return what the LoRAJob `name` offers; `body` is the object, or None where there is none.

    `default_secret` is the platform's Secret for outputs whose manifest names none.
    """
    if body is None:
        return UnfinishedInput(name, "does not exist yet")
    status = body.get("status") or {}
    adapter = status.get("adapter")
    if status.get("phase") == "Succeeded" and adapter:
        return _ready(name, body["spec"], adapter, default_secret)
    if status.get("phase") == "Failed":
        return FailedInput(name, (status.get("failure") or {}).get("reason", "Failed"))
    return UnfinishedInput(name, f"is {status.get('phase', 'Pending')}")


def _ready(name: str, spec: Mapping[str, Any], adapter: Mapping[str, Any], default_secret: str) -> ReadyInput:
    resolved = ResolvedAdapter(uri=adapter["uri"], manifest_sha256=adapter["manifestSha256"])
    model = spec.get("model") or {}
    secret = _reference((spec.get("output") or {}).get("secretRef"))
    if secret is None and default_secret:
        secret = LocalReference(name=default_secret)
    return ReadyInput(resolved, name, secret, model.get("uri"), _reference(model.get("secretRef")))


def _reference(value: Any) -> LocalReference | None:
    return LocalReference(name=value["name"]) if isinstance(value, dict) and value.get("name") else None
