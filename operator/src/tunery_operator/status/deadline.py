"""The deadline of an object: the seconds in which its pods ran, and no others."""

from __future__ import annotations

from tunery_api.reasons import FailureReason
from tunery_operator.status.diagnosis import failure
from tunery_operator.status.draft import Draft
from tunery_operator.status.ledger import deadline_left


def check_deadline(draft: Draft) -> bool:
    """End the object once its pods have run for longer than they may; True then."""
    limit, left = draft.snapshot.deadline_seconds, deadline_left(draft.snapshot)
    if limit is None or left is None or left > 0:
        return False
    ran = int(limit - left)
    text = f"pods ran for {ran} s in all, and spec.activeDeadlineSeconds is {limit}; waiting is not counted"
    hint = f"Raise spec.activeDeadlineSeconds above {ran} s by what is still needed."
    draft.fail(failure(FailureReason.DEADLINE_EXCEEDED, text, hint))
    return True
