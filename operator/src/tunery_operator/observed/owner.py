"""One of our objects as it is named, and what its children are told of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from tunery_api.fields import number_text
from tunery_api.kinds import Kind
from tunery_api.names import API_VERSION, TOPOLOGY_ANNOTATIONS, child_name
from tunery_operator.observed.job import controller_of

_TRIAL_SUFFIX: Final = re.compile(r"-([0-9]{3,}|final)$")
_MAX_RETRY: Final = 128
"""Characters of status.observedRetry."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Names one object to reconcile."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.value} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Owner:
    """The object that children belong to."""

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
    """Name of the LoRASweep that this is a trial of, by owner and name; None: of none."""

    @property
    def api_version(self) -> str:
        """The group and version that owner references name."""
        return API_VERSION


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
    """Return whose trial an object is: a copy of a trial under another name is owned by the sweep, and none of its."""
    controller = controller_of(body)
    if controller.get("kind") != Kind.LORASWEEP.value:
        return None
    sweep, name = str(controller.get("name")), body["metadata"]["name"]
    suffix = _TRIAL_SUFFIX.search(name)
    return sweep if suffix and child_name(sweep, suffix[1]) == name else None


def settings_digest(spec: Mapping[str, Any], annotations: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return a digest of what a raw spec says in the fields that may change while no pod runs.

    Of several nodes that is how near they are to each other, too: a Job that waits in a queue for what there is not,
    has to follow.
    """
    resources = spec.get("resources") or {}
    quantities = (number_text(resources.get(name)) for name in ("memory", "ephemeralStorage"))
    near = [annotations.get(name) or None for name in TOPOLOGY_ANNOTATIONS]
    together = near if (resources.get("nodes") or 1) > 1 and any(near) else ()
    fields = [spec.get("retries"), spec.get("scheduling"), *quantities, *together]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def retry_mark(retry: str | None) -> str | None:
    """Return how status.observedRetry remembers a value of the annotation."""
    if retry is None or len(retry) <= _MAX_RETRY:
        return retry
    return hashlib.sha256(retry.encode()).hexdigest()
