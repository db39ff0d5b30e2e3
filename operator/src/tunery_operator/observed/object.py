"""Provide views of Tunery objects: an active one has its complete body, an ended one a few fields."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from tunery_api.adapterserver import AdapterSelector
from tunery_api.kinds import ADAPTER_KINDS, JOB_KINDS, Kind
from tunery_api.names import FETCH_ANNOTATION, RETRY_ANNOTATION
from tunery_api.serverstatus import ServerCondition
from tunery_api.status import FINAL_PHASES, ConditionStatus, Phase
from tunery_api.sweepstatus import FINAL_TRIAL_STATES
from tunery_operator.observed.metadata import Key, controller_key, controller_of, parse_time, retry_mark, time_to_live
from tunery_operator.observed.published_result import PublishedResult, parse_published_result

_REFERENCES: Final = {
    "loraJobRef": Kind.LORAJOB,
    "adapterMergeRef": Kind.ADAPTERMERGE,
    "serverRef": Kind.ADAPTERSERVER,
}


class TrialView(NamedTuple):
    """What a LoRASweep needs of one of its trials."""

    sweep: Key
    sweep_uid: str
    facts: tuple[Any, ...]
    """The sweep is reconciled when one of these changes."""


@dataclass(frozen=True, slots=True)
class ObjectView:
    """One Tunery object. 100,000 ended ones take little memory."""

    key: Key
    uid: str
    version: str
    phase: str
    body: dict[str, Any] | None
    """The object while it is active; None once it has ended. No caller changes it."""
    expires: float | None = None
    """When the time to live of an ended object ends, in seconds since 1970; None: never."""
    available: bool = False
    """A replica of a server answers requests: its phase alone does not show that."""
    published: PublishedResult | None = None
    """What a LoRAJob or AdapterMerge has published for servers."""
    trial: TrialView | None = None
    fetch: str | None = None
    """The annotation that requests to serve its results, active or ended."""
    references: tuple[Key, ...] = ()
    """The objects that an active object names: it is reconciled when the phase of one changes."""
    selector: AdapterSelector | None = None
    """The labels by which a server selects adapters; None: it selects none, or its selector is not valid."""

    @property
    def namespace(self) -> str:
        """The namespace."""
        return self.key.namespace

    @property
    def name(self) -> str:
        """The name."""
        return self.key.name

    @property
    def active(self) -> bool:
        """Return whether the object has not ended."""
        return self.body is not None


def parse_object(kind: Kind, body: dict[str, Any], default_ttl: int | None = None) -> ObjectView:
    """Return the view of an object of the API server; `default_ttl` is the platform's time to live in seconds."""
    meta, status = body["metadata"], body.get("status") or {}
    meta.pop("managedFields", None)  # half of the memory of an object
    active = not _has_ended(kind, body)
    key = Key(kind, sys.intern(meta["namespace"]), meta["name"])
    return ObjectView(
        key=key,
        uid=meta["uid"],
        version=meta.get("resourceVersion", ""),
        phase=sys.intern(status.get("phase") or Phase.PENDING.value),
        body=body if active else None,
        expires=None if active else _expires(body, default_ttl),
        available=_is_available(status),
        published=parse_published_result(kind, body) if kind in ADAPTER_KINDS else None,
        trial=_trial(body) if kind is Kind.LORAJOB else None,
        fetch=(meta.get("annotations") or {}).get(FETCH_ANNOTATION) if kind in JOB_KINDS else None,
        references=tuple(dict.fromkeys(_references(key, body))) if active else (),
        selector=_selector(body) if kind is Kind.ADAPTERSERVER else None,
    )


def _has_ended(kind: Kind, body: Mapping[str, Any]) -> bool:
    """Return whether nothing is left to do: the object has ended, and the status answers a retry and a changed spec.

    A server never ends, whatever its phase. Until the status has the generation of a changed spec, tools show the
    object as unsettled, and `kubectl wait` hangs.
    """
    status = body.get("status") or {}
    if kind not in JOB_KINDS or status.get("phase") not in FINAL_PHASES:
        return False
    generation = body["metadata"].get("generation")
    if status.get("observedGeneration", generation) != generation:
        return False
    mark = retry_mark((body["metadata"].get("annotations") or {}).get(RETRY_ANNOTATION))
    return mark in (None, status.get("observedRetry"))


def _expires(body: Mapping[str, Any], default_ttl: int | None) -> float | None:
    ttl = time_to_live(body, default_ttl)
    ended = parse_time((body.get("status") or {}).get("completionTime"))
    return None if ended is None or ttl is None else ended.timestamp() + ttl


def _is_available(status: Mapping[str, Any]) -> bool:
    available = (c for c in status.get("conditions") or () if c.get("type") == ServerCondition.AVAILABLE.value)
    return any(c.get("status") == ConditionStatus.TRUE.value for c in available)


def _trial(body: Mapping[str, Any]) -> TrialView | None:
    sweep = controller_key(body)
    if sweep is None or sweep.kind is not Kind.LORASWEEP:
        return None
    return TrialView(sweep, str(controller_of(body).get("uid")), _facts(body))


def _facts(body: Mapping[str, Any]) -> tuple[Any, ...]:
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    return (
        meta["uid"],
        "deletionTimestamp" in meta,
        tuple(meta.get("finalizers") or ()),
        status.get("phase"),
        len(status.get("evaluations") or ()),
        tuple((each.get("type"), each.get("severity")) for each in status.get("findings") or ()),
        (status.get("failure") or {}).get("reason"),
        status.get("attempts"),
        spec.get("stop"),
        spec.get("suspend"),
    )


def _references(key: Key, body: Mapping[str, Any]) -> Iterator[Key]:
    """Yield the objects that a spec names, and the trials of a sweep that its status does not show as ended.

    The spec may not be valid.
    """
    spec, rows = body.get("spec") or {}, (body.get("status") or {}).get("trials") or ()
    sources = [spec, *(spec.get("adapters") or ()), spec.get("continueFrom"), spec.get("resumeFrom")]
    for source in sources:
        for field, kind in _REFERENCES.items():
            reference = source.get(field) if isinstance(source, Mapping) else None
            if isinstance(reference, Mapping) and reference.get("name"):
                yield Key(kind, key.namespace, reference["name"])
    if key.kind is Kind.LORASWEEP:
        yield from (Key(Kind.LORAJOB, key.namespace, row["name"]) for row in rows if _is_open(row))


def _is_open(row: Mapping[str, Any]) -> bool:
    return "name" in row and row.get("state") not in FINAL_TRIAL_STATES


def _selector(body: Mapping[str, Any]) -> AdapterSelector | None:
    try:
        return AdapterSelector.model_validate((body.get("spec") or {})["adapterSelector"])
    except (KeyError, ValidationError):
        return None
