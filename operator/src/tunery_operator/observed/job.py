"""Read a batch Job into a view: its spec, its conditions, and the annotations that the operator has written."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tunery_api.names import (
    DONE_LABEL,
    KUEUE_LABELS,
    PLAN_ANNOTATION,
    PROGRESS_CA_ANNOTATION,
    ROLE_LABEL,
    SETTINGS_ANNOTATION,
    SUSPENDED_BY_ANNOTATION,
)
from tunery_operator.observed.metadata import Key, controller_key, controller_of, parse_time

_PODSET_LABEL: Final = "kueue.x-k8s.io/podset"
_WORKLOAD_ANNOTATION: Final = "kueue.x-k8s.io/workload"
"""Kueue puts these into the pod template of a Job when it admits it, and takes them out when it suspends it."""


@dataclass(frozen=True, slots=True)
class JobView:
    """One batch Job."""

    name: str
    namespace: str
    uid: str
    version: str
    owner_uid: str
    role: str
    suspend: bool
    parallelism: int
    """Pods that it may have at a time; 0 if a user has changed it."""
    queue: str | None
    """The queue in the Job's own label."""
    suspended_by_us: bool
    settings: str | None
    """Digest of the owner's mutable settings that it was built from."""
    plan: str | None
    """Digest of the platform's settings that it was built with; None: an earlier operator built it."""
    authority: str | None
    """Digest of the certificate authority that its pods trust; None: they report no progress."""
    admitted: bool
    """Kueue has admitted it."""
    created: str
    """RFC 3339 in UTC: sorts as text."""
    started_at: datetime | None
    """When it was last started or resumed."""
    active: int
    """Pods that have not ended, as the Job controller counts them."""
    succeeded: int
    failed: int
    retries: int | None
    """How many attempts may fail before the last one; None: unset. The Job controller enforces it for a Job of one pod,
    the operator for a Job of several, of which the Job controller counts pods."""
    complete: bool
    failed_reason: str | None
    """The reason of the Failed condition; None while there is none."""
    failed_message: str
    ended_at: datetime | None
    """When the Job completed or failed."""
    done: bool
    """The status has its result."""
    nodes: int = 1
    """Pods that train together, each with an index; 1: one pod without an index."""
    failed_indexes_allowed: int | None = None
    """spec.maxFailedIndexes; None: unset."""
    failed_indexes: str = ""
    """The indexes that have failed and are not retried, such as "1,3-5"."""
    completed_indexes: str = ""
    """The indexes of which a pod has succeeded, such as "1,3-5"."""
    owner: Key | None = None
    """The object of our kinds that controls it; None: another object does, or none."""
    deleting: bool = False

    @property
    def finished(self) -> bool:
        """Return whether the Job is Complete or Failed."""
        return self.complete or self.failed_reason is not None

    @property
    def lacks_first(self) -> bool:
        """Return whether index 0 has failed and is not retried."""
        return self.failed_indexes.replace("-", ",").split(",")[0] == "0"

    @property
    def lacks_another(self) -> bool:
        """Return whether an index other than 0 has failed and is not retried."""
        return self.failed_indexes not in ("", "0")

    @property
    def makes_no_other(self) -> bool:
        """Return whether an index other than 0 gets no further pod, whether it failed or completed."""
        return self.lacks_another or self.completed_indexes not in ("", "0")


def parse_job(body: Mapping[str, Any]) -> JobView:
    """Return the view of a Job of the API server."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    labels, annotations = meta.get("labels") or {}, meta.get("annotations") or {}
    template = spec.get("template") or {}
    true = {c.get("type"): c for c in status.get("conditions") or () if c.get("status") == "True"}
    failed = true.get("Failed")
    last_word = failed or true.get("Complete") or {}
    return JobView(
        name=meta["name"],
        namespace=sys.intern(meta["namespace"]),
        uid=meta["uid"],
        version=meta.get("resourceVersion", ""),
        owner_uid=controller_of(body).get("uid", ""),
        role=labels.get(ROLE_LABEL, ""),
        suspend=bool(spec.get("suspend")),
        parallelism=int(spec.get("parallelism", 1)),
        queue=labels.get(KUEUE_LABELS[0]) or None,
        suspended_by_us=SUSPENDED_BY_ANNOTATION in annotations,
        settings=annotations.get(SETTINGS_ANNOTATION),
        plan=annotations.get(PLAN_ANNOTATION),
        authority=_authority(template.get("metadata") or {}),
        admitted=_admitted(template.get("metadata") or {}),
        created=meta.get("creationTimestamp") or "",
        started_at=parse_time(status.get("startTime")),
        active=int(status.get("active") or 0),
        succeeded=int(status.get("succeeded") or 0),
        failed=int(status.get("failed") or 0),
        retries=spec.get("backoffLimitPerIndex", spec.get("backoffLimit")),
        complete="Complete" in true,
        failed_reason=failed.get("reason") or "Unknown" if failed else None,
        failed_message=failed.get("message") or "" if failed else "",
        ended_at=parse_time(status.get("completionTime")) or parse_time(last_word.get("lastTransitionTime")),
        done=labels.get(DONE_LABEL) == "true",
        nodes=int(spec.get("completions") or 1) if spec.get("completionMode") == "Indexed" else 1,
        failed_indexes_allowed=spec.get("maxFailedIndexes"),
        failed_indexes=status.get("failedIndexes") or "",
        completed_indexes=status.get("completedIndexes") or "",
        owner=controller_key(body),
        deleting="deletionTimestamp" in meta,
    )


def _authority(template_meta: Mapping[str, Any]) -> str | None:
    pem = (template_meta.get("annotations") or {}).get(PROGRESS_CA_ANNOTATION)
    return None if pem is None else ca_digest(pem)


def _admitted(template_meta: Mapping[str, Any]) -> bool:
    labels, annotations = template_meta.get("labels") or {}, template_meta.get("annotations") or {}
    return _PODSET_LABEL in labels or _WORKLOAD_ANNOTATION in annotations


def ca_digest(ca_pem: str) -> str:
    """Return the digest of a certificate authority's PEM."""
    return hashlib.sha256(ca_pem.encode()).hexdigest()[:16]
