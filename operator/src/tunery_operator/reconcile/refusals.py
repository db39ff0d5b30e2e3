"""One place that turns what the API server answers to a change of ours into words for the status."""

from __future__ import annotations

from typing import Final

from tunery_api.reasons import FailureReason
from tunery_operator.errors import ApiFailure, Rejected
from tunery_operator.kube.client import HttpError
from tunery_operator.reconcile.found_object import FoundObject
from tunery_operator.status.compute import SCHEDULING
from tunery_operator.status.snapshot import Refusal

_TOO_MANY_REQUESTS = 429
_PLACED: Final = tuple(f"spec.template.spec.{field}" for field in ("affinity", "nodeSelector", "tolerations"))
"""What of a child comes from spec.scheduling alone, or from the platform's own settings, which the chart checks."""

_NOT_MADE: Final = {"patch": "a change of what is there was refused", "delete": "a deletion was refused"}
"""What CreateRefused is about where nothing was to be made."""


def refusal_of(error: ApiFailure | Rejected) -> Refusal:
    """Return why a child could not be made, changed or deleted, with the server's own words."""
    reason = _reason(error)
    what = _NOT_MADE.get(error.verb) if isinstance(error, HttpError) else None
    named = what is not None and reason is FailureReason.CREATE_REFUSED
    return Refusal(reason, f"{what}: {error}" if named else str(error))


def _reason(error: ApiFailure | Rejected) -> FailureReason:
    if isinstance(error, Rejected):
        return FailureReason.CREATE_REFUSED
    if error.status in (0, _TOO_MANY_REQUESTS) or error.status >= 500:
        return FailureReason.CLUSTER_UNAVAILABLE
    if error.status == 403 and "exceeded quota" in str(error):
        return FailureReason.QUOTA_EXCEEDED
    return FailureReason.CREATE_REFUSED


def field_of(obj: FoundObject, error: Rejected) -> str:
    """Return the field of ours that a child's wrong fields come from, as far as that is sure."""
    asked = bool((obj.body.get("spec") or {}).get("scheduling"))
    return SCHEDULING if asked and all(field.startswith(_PLACED) for field in error.fields) else "spec"
