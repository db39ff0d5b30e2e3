"""Read the metadata of objects: their keys, owners, finalizers, time to live, and times as metav1.Time writes them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

from tunery_api.kinds import Kind
from tunery_api.names import API_VERSION, GROUP, TOPOLOGY_ANNOTATIONS, child_name

ORPHAN: Final = "orphan"
"""The finalizer of an object that is deleted without its children."""
_KINDS: Final = {kind.value: kind for kind in Kind}
_TRIAL_SUFFIX: Final = re.compile(r"-([0-9]{3,}|final)$")
_MAX_RETRY: Final = 128
"""Characters of status.observedRetry."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """The kind, namespace, and name of an object to reconcile."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.value} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Owner:
    """The object that controls children."""

    key: Key
    uid: str
    generation: int
    labels: Mapping[str, str]
    annotations: Mapping[str, str] = field(default_factory=dict)
    settings: str = ""
    """Digest of the fields of its spec that may change while no pod runs."""
    created: str = ""
    """RFC 3339 in UTC."""
    sweep: str | None = None
    """Name of the LoRASweep that this is a trial of, by owner and name; None: it is no trial."""

    @property
    def api_version(self) -> str:
        """The group and version that owner references name."""
        return API_VERSION


def controller_key(body: Mapping[str, Any]) -> Key | None:
    """Return the key of the object of our kinds that controls a child, or None."""
    reference = controller_of(body)
    kind = _KINDS.get(reference.get("kind", ""))
    if kind is None or not str(reference.get("apiVersion", "")).startswith(f"{GROUP}/"):
        return None
    return Key(kind, body["metadata"]["namespace"], reference["name"])


def parse_owner(kind: Kind, body: Mapping[str, Any]) -> Owner:
    """Return the owner that an object of the API server is."""
    meta = body["metadata"]
    key = Key(kind, meta["namespace"], meta["name"])
    labels, annotations = meta.get("labels") or {}, meta.get("annotations") or {}
    settings = settings_digest(body.get("spec") or {}, annotations)
    created = meta.get("creationTimestamp") or ""
    sweep = _sweep_of(body)
    return Owner(key, meta["uid"], int(meta.get("generation", 1)), labels, annotations, settings, created, sweep)


def _sweep_of(body: Mapping[str, Any]) -> str | None:
    """Return the sweep that an object is a trial of; a copy of a trial under another name is no trial."""
    controller = controller_of(body)
    if controller.get("kind") != Kind.LORASWEEP.value:
        return None
    sweep, name = str(controller.get("name")), body["metadata"]["name"]
    suffix = _TRIAL_SUFFIX.search(name)
    return sweep if suffix and child_name(sweep, suffix[1]) == name else None


def settings_digest(spec: Mapping[str, Any], annotations: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return a digest of the fields of a raw spec that may change while no pod runs.

    With several nodes, the topology annotations are included: a queued Job that no topology fits must follow a change.
    """
    resources = spec.get("resources") or {}
    given = (resources.get(name) for name in ("memory", "ephemeralStorage"))
    quantities = (None if quantity is None else str(quantity) for quantity in given)
    near = [annotations.get(name) or None for name in TOPOLOGY_ANNOTATIONS]
    together = near if (resources.get("nodes") or 1) > 1 and any(near) else ()
    fields = [spec.get("retries"), spec.get("scheduling"), *quantities, *together]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def retry_mark(retry: str | None) -> str | None:
    """Return the form in which status.observedRetry stores a value of the annotation."""
    if retry is None or len(retry) <= _MAX_RETRY:
        return retry
    return hashlib.sha256(retry.encode()).hexdigest()


def controller_of(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the owner reference of an object's controller; empty without one."""
    references = body["metadata"].get("ownerReferences") or ()
    return next((reference for reference in references if reference.get("controller")), {})


def foreign_finalizers(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the finalizers of an object, without the two of the garbage collector."""
    finalizers = body["metadata"].get("finalizers") or ()
    return tuple(name for name in finalizers if name not in (ORPHAN, "foregroundDeletion"))


def time_to_live(body: Mapping[str, Any], default: int | None) -> int | None:
    """Return for how many seconds an object exists after its end; None: until a user deletes it.

    A trial has no default of the platform: it is deleted with its sweep.
    """
    if controller_of(body).get("kind") == Kind.LORASWEEP.value:
        default = None
    ttl = (body.get("spec") or {}).get("ttlSecondsAfterFinished", default)
    return ttl if isinstance(ttl, int) else None


def parse_time(value: Any) -> datetime | None:
    """Return the time of an RFC 3339 string; None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def format_time(value: datetime) -> str:
    """Return the time as metav1.Time is written: UTC, whole seconds."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_duration(seconds: int) -> str:
    """Return a duration as kubectl writes it: 45s, 3m20s, 2h5m, 4d3h."""
    for size, unit, rest, rest_unit in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            left = seconds % size // rest
            return f"{seconds // size}{unit}" + (f"{left}{rest_unit}" if left else "")
    return f"{seconds}s"
