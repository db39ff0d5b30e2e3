"""A Failed object that is to be tried again: the annotation tunery.dev/retry has a new value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tunery_api.status import ConditionType, Phase
from tunery_operator.observed.metadata import retry_mark

_ENDED: Final = ("failure", "reason", "completionTime", "rejectedAdapter", "podName")
_JUDGED_AGAIN: Final = frozenset(
    type_.value
    for type_ in (ConditionType.FAILED, ConditionType.RUNNING, ConditionType.FINISHED, ConditionType.STALLED)
)


def unanswered(status: Mapping[str, Any], retry: str | None) -> str | None:
    """Return what status.observedRetry is to say where somebody has asked for another try; None where nobody has."""
    mark = retry_mark(retry)
    return None if mark == status.get("observedRetry") else mark


def refuses_retry(phase: str, *, of_trial: bool) -> bool:
    """Tell whether an object that has ended takes note of who asks for another try, and has none."""
    return of_trial or phase != Phase.FAILED.value


def reopened(status: Mapping[str, Any], retry: str | None) -> dict[str, Any] | None:
    """Return the status of a Failed object that is to be tried again; None where it is not.

    What it has reached stays: preflight, inputs, checkpoint, the attempts and what they cost.
    """
    mark = unanswered(status, retry)
    if status.get("phase") != Phase.FAILED.value or mark is None:
        return None
    fields = {name: value for name, value in status.items() if name not in _ENDED}
    conditions = [c for c in status.get("conditions") or () if not _is_judged_again(c)]
    if "trials" in fields:
        # Of a sweep: what has failed before the cause was mended fails it no more.
        fields["forgiven"] = 1 + max((row["number"] for row in fields["trials"]), default=-1)
        fields.pop("endReason", None)
        if not any("value" in row for row in fields["trials"]):
            # Nothing was measured: what was mended since may be the data itself.
            fields.pop("trialInputs", None)
    return {**fields, "conditions": conditions, "observedRetry": mark, "phase": Phase.PENDING.value}


def _is_judged_again(condition: Mapping[str, Any]) -> bool:
    return condition["type"] in _JUDGED_AGAIN or condition["status"] == "False"
