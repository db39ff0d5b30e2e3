"""The status of one object: checks in order, and the first that has the last word ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tunery_api.kinds import Kind
from tunery_api.reasons import FailureReason
from tunery_api.remedies import MAX_FIELD, MAX_REMEDY_FIELDS, Remedy, edit, recreate, retry
from tunery_api.serverstatus import ServerPhase
from tunery_api.status import ConditionType
from tunery_operator.observed.event import RESUMED
from tunery_operator.observed.metadata import retry_mark
from tunery_operator.planning.inputs import FailedInput, NoCheckpoint, UnfinishedInput
from tunery_operator.status.blocker import set_blocked
from tunery_operator.status.builder import StatusBuilder
from tunery_operator.status.deadline import check_deadline
from tunery_operator.status.diagnosis import failure
from tunery_operator.status.ledger import close_ledger, keep_ledger
from tunery_operator.status.main_job import check_main_job
from tunery_operator.status.phase import STOPPING
from tunery_operator.status.preflight import check_preflight
from tunery_operator.status.servable import tell_unservable
from tunery_operator.status.snapshot import Snapshot
from tunery_operator.status.stop import stop_of
from tunery_operator.status.stopping import check_stop
from tunery_operator.status.sweep import check_search, tell_removed
from tunery_operator.status.terminating import terminating

Check = Callable[[StatusBuilder], bool]
"""Changes the draft; True: this was the last word, and what follows does not count."""


def compute_status(snapshot: Snapshot) -> dict[str, Any]:
    """Return the status that an object should have now."""
    draft = StatusBuilder(snapshot)
    for check in CHECKS:
        if check(draft):
            break
    if draft.ended:
        tell_removed(draft)
        close_ledger(draft, draft.conditions.reason(ConditionType.SUCCEEDED) or "Ended")
        # Nothing is left that it could stop or let go on.
        draft.conditions.drop(ConditionType.SUSPENDED)
        if not draft.conditions.is_true(ConditionType.STOPPED):
            draft.conditions.drop(ConditionType.STOPPED)
    else:
        set_blocked(draft)
    tell_unservable(draft)
    return draft.finish()


_NO_SERVER: Final = (
    retry("Create that AdapterServer"),
    recreate("Name another AdapterServer in serverRef", "serverRef"),
)
_SERVER_REMEDIES: Final = {
    UnfinishedInput.of_server(ServerPhase.STOPPED): "Scale it up: kubectl scale adapterserver {name} -n {namespace} "
    "--replicas=1",
    UnfinishedInput.of_server(ServerPhase.INVALID): "Correct its spec: kubectl describe adapterserver {name} -n "
    "{namespace} shows the error",
}
"""By the state of a server that only a person can change."""
SCHEDULING: Final = "spec.scheduling"
"""A field that may be corrected in place."""


def _check_spec(draft: StatusBuilder) -> bool:
    errors = draft.snapshot.errors
    if errors or _answers_retry(draft.snapshot):
        draft.put(observedRetry=retry_mark(draft.snapshot.retry))
    if errors:
        text = "; ".join(str(error) for error in errors)
        draft.conditions.set(ConditionType.VALIDATED, False, FailureReason.INVALID_SPEC.value, text)
        of_trial = draft.snapshot.owner.sweep is not None
        in_place = not of_trial and all(error.path.startswith(SCHEDULING) for error in errors)
        paths = [error.path.removeprefix("spec.") for error in errors]
        fields = [path for path in paths if len(path) <= MAX_FIELD][:MAX_REMEDY_FIELDS]
        remedy = edit if in_place else recreate
        draft.fail_for(
            FailureReason.INVALID_SPEC, text, remedy(f"Correct {', '.join(fields) or 'the named field'}", *fields)
        )
        return True
    draft.conditions.set(ConditionType.VALIDATED, True, "SpecValid")
    if draft.snapshot.main is None:
        draft.put(queue=draft.snapshot.queue)
    if draft.snapshot.method is not None:
        draft.fields["resolved"] = {"method": draft.snapshot.method, **(draft.fields.get("resolved") or {})}
    return False


def _answers_retry(snapshot: Snapshot) -> bool:
    """Tell whether going on is the answer to who asks for another try.

    A sweep that fails and waits for its trials has none yet: it is tried again once it has failed.
    """
    search = snapshot.search
    return snapshot.kind is not Kind.LORASWEEP or (search is not None and search.decision.fail is None)


def _check_names(draft: StatusBuilder) -> bool:
    if draft.snapshot.conflict is None:
        return False
    draft.fail_for(FailureReason.NAME_CONFLICT, draft.snapshot.conflict)
    return True


def _check_inputs(draft: StatusBuilder) -> bool:
    inputs = draft.snapshot.inputs
    failed = next((item for item in inputs if isinstance(item, FailedInput)), None)
    if failed is not None:
        text = f"LoRAJob {failed.name}, which this waits for, {failed.how}"
        draft.conditions.set(ConditionType.INPUTS_READY, False, FailureReason.ADAPTER_MISSING.value, text)
        draft.fail_for(FailureReason.ADAPTER_MISSING, text, failed.remedy)
        return True
    bare = next((item for item in inputs if isinstance(item, NoCheckpoint)), None)
    if bare is not None:
        text = f"spec.resumeFrom: LoRAJob {bare.name} {bare.why}"
        draft.conditions.set(ConditionType.INPUTS_READY, False, FailureReason.CHECKPOINT_MISSING.value, text)
        draft.fail_for(FailureReason.CHECKPOINT_MISSING, text)
        return True
    waiting = [item for item in inputs if isinstance(item, UnfinishedInput)]
    if waiting:
        # A reason of its own, so that one that was deleted is an event.
        reason = "WaitingForInputs" if all(item.exists for item in waiting) else "InputMissing"
        text = "; ".join(f"{item.kind.value} {item.name} {item.state}" for item in waiting)
        draft.conditions.set(ConditionType.INPUTS_READY, False, reason, text)
        remedies = next((found for item in waiting if (found := _server_remedies(draft, item))), ())
        if remedies:
            # Beside the condition, so that a misspelt name is seen in a list: a server is seldom made after its batch.
            draft.show_blocker(failure(FailureReason.SERVER_UNAVAILABLE, text, *remedies))
        return True
    if inputs or draft.conditions.is_false(ConditionType.INPUTS_READY):
        draft.conditions.set(ConditionType.INPUTS_READY, True, "InputsReady")
    return False


def _server_remedies(draft: StatusBuilder, item: UnfinishedInput) -> tuple[Remedy, ...]:
    """Return what a person has to do before a server answers; nothing where waiting is enough, or it is no server."""
    if item.kind is not Kind.ADAPTERSERVER:
        return ()
    if not item.exists:
        return _NO_SERVER
    text = _SERVER_REMEDIES.get(item.state)
    if text is None:
        return ()
    return (retry(text.format(name=item.name, namespace=draft.snapshot.owner.key.namespace)),)


def _check_suspension(draft: StatusBuilder) -> bool:
    suspended = ConditionType.SUSPENDED
    if stop_of(draft.snapshot) is not None:
        # What ends for good is not held any more.
        draft.conditions.drop(suspended)
        return False
    if not draft.snapshot.suspend:
        if draft.conditions.status(suspended) is not None:
            draft.conditions.set(suspended, False, RESUMED, "spec.suspend is false")
        return False
    still = next(terminating(draft.snapshot), None)
    kept = draft.snapshot.kept_by
    why = f"it was deleted, and is kept by the finalizer {', '.join(kept)}" if kept else "spec.suspend is true"
    if still is not None:
        draft.conditions.set(suspended, False, STOPPING, f"{why}; {still}")
    else:
        does = "" if kept else "; set it to false to go on"
        draft.conditions.set(suspended, True, "Suspended", why + does)
    return False


CHECKS: Final[tuple[Check, ...]] = (
    _check_spec,
    _check_names,
    _check_suspension,
    keep_ledger,
    check_stop,
    _check_inputs,
    check_search,
    check_preflight,
    check_main_job,
    check_deadline,
)
