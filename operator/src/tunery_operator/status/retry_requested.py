"""A Failed object that is to be tried again: the annotation tunery.dev/retry has a new value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tunery_api.status import ConditionType, Phase
from tunery_operator.views.owner import retry_mark

_ENDED: Final = ("failure", "completionTime", "rejectedAdapter")
_JUDGED_AGAIN: Final = frozenset({ConditionType.FAILED.value, ConditionType.RUNNING.value})


def reopened(status: Mapping[str, Any], retry: str | None) -> dict[str, Any] | None:
    """Return the status of a Failed object that is to be tried again; None where it is not.

    What it has reached stays: preflight, inputs, checkpoint, the attempts and what they cost.
    """
    mark = retry_mark(retry)
    if status.get("phase") != Phase.FAILED.value or mark is None or mark == status.get("observedRetry"):
        return None
    fields = {name: value for name, value in status.items() if name not in _ENDED}
    conditions = [c for c in status.get("conditions") or () if not _is_judged_again(c)]
    if "trials" in fields:
        # Of a sweep: what has failed before the cause was mended fails it no more.
        fields["forgiven"] = 1 + max((row["number"] for row in fields["trials"]), default=-1)
        fields.pop("endReason", None)
    return {**fields, "conditions": conditions, "observedRetry": mark, "phase": Phase.PENDING.value}


def _is_judged_again(condition: Mapping[str, Any]) -> bool:
    return condition["type"] in _JUDGED_AGAIN or condition["status"] == "False"
