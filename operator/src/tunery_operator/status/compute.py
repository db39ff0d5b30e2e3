"""The status of one object: checks in order, and the first that has the last word ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tunery_api.reasons import FailureReason
from tunery_api.status import ConditionType
from tunery_operator.plan.inputs import FailedInput, UnfinishedInput
from tunery_operator.status.draft import Draft
from tunery_operator.status.preflight import check_preflight
from tunery_operator.status.reopen import retry_mark
from tunery_operator.status.snapshot import Snapshot
from tunery_operator.status.work import check_work

Check = Callable[[Draft], bool]
"""Changes the draft; True: this was the last word, and what follows does not count."""


def compute_status(snapshot: Snapshot) -> dict[str, Any]:
    """Return the status that an object should have now."""
    draft = Draft(snapshot)
    for check in CHECKS:
        if check(draft):
            break
    return draft.finish()


def _check_spec(draft: Draft) -> bool:
    errors = draft.snapshot.errors
    if errors:
        text = "; ".join(str(error) for error in errors)
        draft.conditions.set(ConditionType.VALIDATED, False, FailureReason.INVALID_SPEC.value, text)
        draft.fail_for(FailureReason.INVALID_SPEC, text)
        return True
    draft.conditions.set(ConditionType.VALIDATED, True, "SpecValid")
    draft.put(queue=draft.snapshot.queue, observedRetry=retry_mark(draft.snapshot.retry))
    if draft.snapshot.method is not None:
        draft.fields["resolved"] = {"method": draft.snapshot.method, **(draft.fields.get("resolved") or {})}
    return False


def _check_names(draft: Draft) -> bool:
    if draft.snapshot.conflict is None:
        return False
    draft.fail_for(FailureReason.NAME_CONFLICT, draft.snapshot.conflict)
    return True


def _check_inputs(draft: Draft) -> bool:
    inputs = draft.snapshot.inputs
    failed = next((item for item in inputs if isinstance(item, FailedInput)), None)
    if failed is not None:
        text = f"LoRAJob {failed.name}, which this waits for, failed: {failed.reason}"
        draft.conditions.set(ConditionType.INPUTS_READY, False, FailureReason.ADAPTER_MISSING.value, text)
        draft.fail_for(FailureReason.ADAPTER_MISSING, text)
        return True
    waiting = [f"LoRAJob {item.name} {item.state}" for item in inputs if isinstance(item, UnfinishedInput)]
    if waiting:
        draft.conditions.set(ConditionType.INPUTS_READY, False, "WaitingForInputs", "; ".join(waiting))
        return True
    if inputs or draft.conditions.is_false(ConditionType.INPUTS_READY):
        draft.conditions.set(ConditionType.INPUTS_READY, True, "InputsReady")
    return False


def _check_suspension(draft: Draft) -> bool:
    if draft.snapshot.suspend:
        text = "spec.suspend is true; set it to false to go on"
        draft.conditions.set(ConditionType.SUSPENDED, True, "Suspended", text)
    elif draft.conditions.status(ConditionType.SUSPENDED) is not None:
        draft.conditions.set(ConditionType.SUSPENDED, False, "Resumed")
    return False


CHECKS: Final[tuple[Check, ...]] = (
    _check_spec,
    _check_names,
    _check_suspension,
    _check_inputs,
    check_preflight,
    check_work,
)
