"""One place that turns what the API server answers to a change of ours into words for the status."""

from __future__ import annotations

from tunery_api.reasons import FailureReason
from tunery_operator.errors import ApiFailure
from tunery_operator.status.snapshot import Refusal

_TOO_MANY_REQUESTS = 429


def refusal_of(error: ApiFailure) -> Refusal:
    """Return why a child could not be made, changed or deleted, with the server's own words."""
    return Refusal(_reason(error), str(error))


def _reason(error: ApiFailure) -> FailureReason:
    if error.status in (0, _TOO_MANY_REQUESTS) or error.status >= 500:
        return FailureReason.CLUSTER_UNAVAILABLE
    if error.status == 403 and "exceeded quota" in str(error):
        return FailureReason.QUOTA_EXCEEDED
    return FailureReason.CREATE_REFUSED
