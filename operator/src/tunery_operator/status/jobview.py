"""What the operator keeps of a Job: the few fields that a verdict needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunery_api.names import ROLE_LABEL


@dataclass(frozen=True, slots=True)
class JobView:
    """One batch Job."""

    name: str
    uid: str
    version: str
    owner_uid: str
    role: str
    suspend: bool
    active_deadline_seconds: int | None
    started: int
    """Pods that the Job controller counts: active, succeeded, failed."""
    active: int
    complete: bool
    failed_reason: str | None
    """The reason of the Failed condition; None while there is none."""
    failed_message: str

    @property
    def finished(self) -> bool:
        """Tell whether the Job controller has said its last word."""
        return self.complete or self.failed_reason is not None


def parse_job(body: Mapping[str, Any]) -> JobView:
    """Return the view of a Job of the API server."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    true = {c.get("type"): c for c in status.get("conditions") or () if c.get("status") == "True"}
    failed = true.get("Failed")
    counts = [int(status.get(name) or 0) for name in ("active", "succeeded", "failed")]
    return JobView(
        name=meta["name"],
        uid=meta["uid"],
        version=meta.get("resourceVersion", ""),
        owner_uid=controller_of(body).get("uid", ""),
        role=(meta.get("labels") or {}).get(ROLE_LABEL, ""),
        suspend=bool(spec.get("suspend")),
        active_deadline_seconds=spec.get("activeDeadlineSeconds"),
        started=sum(counts),
        active=counts[0],
        complete="Complete" in true,
        failed_reason=failed.get("reason") or "Unknown" if failed else None,
        failed_message=failed.get("message") or "" if failed else "",
    )


def controller_of(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the owner reference of an object's controller; empty where it has none."""
    references = body["metadata"].get("ownerReferences") or ()
    return next((reference for reference in references if reference.get("controller")), {})
