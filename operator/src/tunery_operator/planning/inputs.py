"""Resolve the inputs of an object to adapters, checkpoints or servers: ready, unfinished, or failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tunery_api.inputs import LocalReference
from tunery_api.kinds import Kind
from tunery_api.lorajob import PreflightPolicy
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy, recreate, retry
from tunery_api.runspec import ResolvedAdapter
from tunery_api.status import FINAL_PHASES, ConditionType
from tunery_operator.observed.published_result import removal_remedy, removal_text, removed_by


@dataclass(frozen=True, slots=True)
class ReadyInput:
    """An adapter that can be read now; `name` and `uid` are those of its LoRAJob, if it has one."""

    adapter: ResolvedAdapter
    name: str | None = None
    uid: str | None = None
    output_secret: LocalReference | None = None
    model_uri: str | None = None
    model_secret: LocalReference | None = None


@dataclass(frozen=True, slots=True)
class UnfinishedInput:
    """A LoRAJob that does not exist yet or has not ended yet; or a server that does not answer yet."""

    name: str
    state: str
    exists: bool = True
    kind: Kind = Kind.LORAJOB

    @staticmethod
    def of_server(phase: str) -> str:
        """Return the state of a server that exists and does not answer."""
        return f"is {phase}"


@dataclass(frozen=True, slots=True)
class ReadyServer:
    """A server that answers."""

    name: str


@dataclass(frozen=True, slots=True)
class FailedInput:
    """A LoRAJob that has ended without an adapter, or whose adapter cannot be used: what waits for it can never run."""

    name: str
    how: str
    """How it ended, or why its adapter cannot be used; follows its name in a message."""
    remedy: Remedy
    reason: FailureReason = FailureReason.ADAPTER_MISSING


@dataclass(frozen=True, slots=True)
class NoCheckpoint:
    """A LoRAJob that has ended without a checkpoint to resume from."""

    name: str
    why: str


_REMOVED: Final = "its checkpoints were removed once it, or the sweep whose trial it was, had published"
_MERGEABLE: Final = recreate("Name a LoRAJob whose method can be merged, such as LoRA", "adapters")
_NOTHING: Final = "trains nothing: its spec.preflight is Only"

AdapterInput = ReadyInput | UnfinishedInput | FailedInput | NoCheckpoint
Input = AdapterInput | ReadyServer


def plain_input(uri: str) -> ReadyInput:
    """Return the input of a URI, which is always ready."""
    return ReadyInput(ResolvedAdapter(uri=uri.rstrip("/")))


def with_checked_digest(adapter: ResolvedAdapter, status: Mapping[str, Any]) -> ResolvedAdapter:
    """Return an adapter given by a URI, with the digest and the commit that preflight has read."""
    seen = (status.get("resolved") or {}).get("continuedFrom") or {}
    if adapter.manifest_sha256 is not None or seen.get("uri") != adapter.uri:
        return adapter
    return adapter.model_copy(update={"sha256": seen.get("sha256"), "revision": seen.get("revision")})


def lorajob_input(
    name: str, body: Mapping[str, Any] | None, default_secret: str | None, unmergeable: Mapping[str, str] | None = None
) -> AdapterInput:
    """Return the adapter of the LoRAJob `name`; `body` is the object, None if it does not exist.

    `default_secret` is the platform's Secret for outputs whose manifest names none. For a merge, `unmergeable` has the
    methods that it cannot merge, each with the reason.
    """
    if body is None:
        return UnfinishedInput(name, "does not exist yet", exists=False)
    if _trains_nothing(body):
        return FailedInput(name, _NOTHING, recreate("Name a LoRAJob that trains"))
    status = body.get("status") or {}
    method = (status.get("resolved") or {}).get("method", "")
    if why := (unmergeable or {}).get(method):
        return FailedInput(name, f"has method {method}: its adapter {why}", _MERGEABLE, FailureReason.INVALID_SPEC)
    adapter = status.get("adapter")
    sweep = removed_by(body)
    if sweep is not None:
        return FailedInput(name, removal_text(sweep), recreate(removal_remedy(sweep)))
    if status.get("phase") in ("Succeeded", "Stopped") and adapter:
        return _ready(name, body, adapter, default_secret)
    if status.get("phase") == "Failed":
        reason = (status.get("failure") or {}).get("reason", "Failed")
        return FailedInput(name, f"failed: {reason}", retry(f"Fix LoRAJob {name} as its status says"))
    if status.get("phase") == "Stopped":
        remedy = recreate("Name another LoRAJob, or continue from the checkpoints of this one with resumeFrom")
        return FailedInput(name, "was stopped and has published no adapter", remedy)
    return UnfinishedInput(name, f"is {status.get('phase', 'Pending')}")


def checkpoint_input(name: str, body: Mapping[str, Any] | None, place: str | None) -> AdapterInput:
    """Return the folder of the checkpoints of the LoRAJob `name`, for resumeFrom, once that has ended.

    `place` is their location if the status of the LoRAJob has none; None: it has no checkpoints.
    """
    if body is None:
        state = "does not exist. If it was deleted, set resumeFrom.uri to its checkpoints"
        return UnfinishedInput(name, state, exists=False)
    if _trains_nothing(body):
        return NoCheckpoint(name, _NOTHING)
    status = body.get("status") or {}
    phase, newest = status.get("phase", "Pending"), (status.get("checkpoint") or {}).get("uri")
    if phase not in FINAL_PHASES:
        return UnfinishedInput(name, f"is {phase}")
    if newest is None and phase == "Succeeded":
        return NoCheckpoint(name, "has succeeded, and its checkpoints were removed; continueFrom continues its adapter")
    if newest is None and _were_removed(status):
        return NoCheckpoint(name, f"{'was stopped' if phase == 'Stopped' else 'has failed'}, and {_REMOVED}")
    # The folder of all checkpoints: a terminating pod may have stored a newer one.
    folder = newest.rstrip("/").rpartition("/")[0] if newest else place
    if folder is None:
        return NoCheckpoint(name, f"{'was stopped' if phase == 'Stopped' else 'has failed'} and left no checkpoint")
    return ReadyInput(ResolvedAdapter(uri=folder), name, body["metadata"]["uid"])


def _were_removed(status: Mapping[str, Any]) -> bool:
    conditions = status.get("conditions") or ()
    return any(
        (each.get("type"), each.get("reason")) == (ConditionType.CHECKPOINT_SAVED, "Removed") for each in conditions
    )


def _trains_nothing(body: Mapping[str, Any]) -> bool:
    return (body.get("spec") or {}).get("preflight") == PreflightPolicy.ONLY.value


def _ready(name: str, body: Mapping[str, Any], adapter: Mapping[str, Any], default_secret: str | None) -> ReadyInput:
    spec = body["spec"]
    resolved = ResolvedAdapter(uri=adapter["uri"], manifest_sha256=adapter["manifestSha256"])
    model = spec.get("model") or {}
    secret = _reference((spec.get("output") or {}).get("secretRef"))
    if secret is None and default_secret:
        secret = LocalReference(name=default_secret)
    uid = body["metadata"]["uid"]
    return ReadyInput(resolved, name, uid, secret, model.get("uri"), _reference(model.get("secretRef")))


def record(ready: ReadyInput) -> dict[str, Any]:
    """Return the entry of status.inputReferences for an input: it suffices if the LoRAJob is deleted."""
    entry = {
        "name": ready.name,
        "uid": ready.uid,
        "uri": ready.adapter.uri,
        "manifestSha256": ready.adapter.manifest_sha256,
        "outputSecret": ready.output_secret and ready.output_secret.name,
        "modelUri": ready.model_uri,
        "modelSecret": ready.model_secret and ready.model_secret.name,
    }
    return {name: value for name, value in entry.items() if value}


def parse_input_reference(entry: Mapping[str, Any]) -> ReadyInput:
    """Return the input of an entry of status.inputReferences."""
    return ReadyInput(
        ResolvedAdapter(uri=entry["uri"], manifest_sha256=entry.get("manifestSha256")),
        entry["name"],
        entry.get("uid"),
        _named(entry.get("outputSecret")),
        entry.get("modelUri"),
        _named(entry.get("modelSecret")),
    )


def _named(name: str | None) -> LocalReference | None:
    return LocalReference(name=name) if name else None


def _reference(value: Any) -> LocalReference | None:
    return _named(value.get("name")) if isinstance(value, dict) else None
