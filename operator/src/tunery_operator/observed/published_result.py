"""Read the published result of a LoRAJob or AdapterMerge, which a server may serve; kept after the object has ended."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from tunery_api.adaptermerge import MergeTarget
from tunery_api.kinds import Kind
from tunery_operator.observed.event import ADAPTER_REMOVED
from tunery_operator.observed.metadata import controller_of

_NONE: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class PublishedResult:
    """One LoRAJob or AdapterMerge, as a server sees it."""

    kind: Kind
    name: str
    uid: str
    created: str
    """RFC 3339 in UTC: sorts as text."""
    labels: Mapping[str, str] = field(default_factory=dict)
    phase: str = "Pending"
    into: str | None = None
    """What an AdapterMerge makes; None for a LoRAJob."""
    uri: str | None = None
    """Where what it has published lies; None: nothing was published yet."""
    manifest_sha256: str | None = None
    served_name: str | None = None
    """The base model that it is for."""
    rank: int | None = None
    method: str | None = None
    """How a LoRAJob trained; None where it is not known."""
    size_bytes: int | None = None
    removed_by: str | None = None
    """The LoRASweep that has removed what it had published as one of its trials."""

    @property
    def source(self) -> str:
        """Kind and name of the object, such as LoRAJob/support-bot."""
        return f"{self.kind.value}/{self.name}"


def parse_published_result(kind: Kind, body: Mapping[str, Any]) -> PublishedResult:
    """Return the published result of a LoRAJob or AdapterMerge; equal strings are stored once."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    adapter = status.get("adapter") or {}
    return PublishedResult(
        kind=kind,
        name=meta["name"],
        uid=meta["uid"],
        created=sys.intern(meta.get("creationTimestamp") or ""),
        labels={sys.intern(name): sys.intern(value) for name, value in (meta.get("labels") or {}).items()} or _NONE,
        phase=sys.intern(status.get("phase") or "Pending"),
        into=(spec.get("into") or MergeTarget.ADAPTER.value) if kind is Kind.ADAPTERMERGE else None,
        uri=adapter.get("uri"),
        manifest_sha256=adapter.get("manifestSha256"),
        served_name=_shared(adapter.get("servedName")),
        rank=adapter.get("rank"),
        method=_shared((status.get("resolved") or {}).get("method")),
        size_bytes=adapter.get("sizeBytes"),
        removed_by=removed_by(body),
    )


def _shared(text: str | None) -> str | None:
    return None if text is None else sys.intern(text)


def removed_by(body: Mapping[str, Any]) -> str | None:
    """Return the LoRASweep that has removed what a trial of it had published; None where none has."""
    conditions = (body.get("status") or {}).get("conditions") or ()
    if not any(each.get("reason") == ADAPTER_REMOVED for each in conditions):
        return None
    return str(controller_of(body).get("name") or "that made it")


def removal_text(sweep: str) -> str:
    """Return what became of such an adapter, as what comes after the LoRAJob's name."""
    return f"was a trial of LoRASweep {sweep}, which has removed its adapter (spec.keepAdapters)"


def removal_remedy(sweep: str) -> str:
    """Return how to get an adapter in its place, as the text of a remedy."""
    return (
        f"Name the result of LoRASweep {sweep} by its uri (status.adapter.uri), or train with the values of that trial "
        "in a LoRAJob"
    )
