"""Compute the status of one object: checks in order, and the first that ends the object is the last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tunery_api.failures import Failure
from tunery_api.kinds import Kind
from tunery_api.reasons import FailureReason
from tunery_api.remedies import MAX_FIELD, MAX_REMEDY_FIELDS, Remedy, edit, recreate, retry
from tunery_api.serverstatus import ServerPhase
from tunery_api.status import ConditionType
from tunery_operator.observed.event import RESUMED
from tunery_operator.observed.metadata import retry_mark
from tunery_operator.planning.inputs import FailedInput, NoCheckpoint, UnfinishedInput
from tunery_operator.status.attempts import close_attempts, record_attempts
from tunery_operator.status.builder import StatusBuilder
from tunery_operator.status.conditions import STOPPING
from tunery_operator.status.deadline import check_deadline
from tunery_operator.status.diagnosis import failure
from tunery_operator.status.main_job import check_main_job
from tunery_operator.status.preflight import check_preflight
from tunery_operator.status.results import set_unservable
from tunery_operator.status.snapshot import Snapshot
from tunery_operator.status.stop import check_stop, stop_of
from tunery_operator.status.suspension import terminating
from tunery_operator.status.sweep import check_search, omit_removed_adapters

Check = Callable[[StatusBuilder], bool]
"""Changes the builder; True: the checks that follow are skipped."""
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
"""The remedies by the state of a server that Tunery does not change."""
SCHEDULING: Final = "spec.scheduling"
"""A field that may be corrected in place."""


def compute_status(snapshot: Snapshot) -> dict[str, Any]:
    """Return the status that an object should have now."""
    builder = StatusBuilder(snapshot)
    for check in CHECKS:
        if check(builder):
            break
    if builder.ended:
        omit_removed_adapters(builder)
        close_attempts(builder, builder.conditions.reason(ConditionType.SUCCEEDED) or "Ended")
        # An object that has ended can be neither suspended nor resumed.
        builder.conditions.drop(ConditionType.SUSPENDED)
        if not builder.conditions.is_true(ConditionType.STOPPED):
            builder.conditions.drop(ConditionType.STOPPED)
    else:
        set_blocked(builder)
    set_unservable(builder)
    return builder.finish()


def _check_spec(builder: StatusBuilder) -> bool:
    errors = builder.snapshot.errors
    if errors or _answers_retry(builder.snapshot):
        builder.put(observedRetry=retry_mark(builder.snapshot.retry))
    if errors:
        text = "; ".join(str(error) for error in errors)
        builder.conditions.set(ConditionType.VALIDATED, False, FailureReason.INVALID_SPEC.value, text)
        of_trial = builder.snapshot.owner.sweep is not None
        in_place = not of_trial and all(error.path.startswith(SCHEDULING) for error in errors)
        paths = [error.path.removeprefix("spec.") for error in errors]
        fields = [path for path in paths if len(path) <= MAX_FIELD][:MAX_REMEDY_FIELDS]
        remedy = edit if in_place else recreate
        builder.fail_for(
            FailureReason.INVALID_SPEC, text, remedy(f"Correct {', '.join(fields) or 'the named field'}", *fields)
        )
        return True
    builder.conditions.set(ConditionType.VALIDATED, True, "SpecValid")
    if builder.snapshot.main is None:
        builder.put(queue=builder.snapshot.queue)
    if builder.snapshot.method is not None:
        builder.fields["resolved"] = {"method": builder.snapshot.method, **(builder.fields.get("resolved") or {})}
    return False


def _answers_retry(snapshot: Snapshot) -> bool:
    """Return whether the object answers a requested retry by continuing.

    A sweep that fails and waits for its trials does not yet: it is retried once it has failed.
    """
    search = snapshot.search
    return snapshot.kind is not Kind.LORASWEEP or (search is not None and search.decision.fail is None)


def _check_names(builder: StatusBuilder) -> bool:
    if builder.snapshot.conflict is None:
        return False
    builder.fail_for(FailureReason.NAME_CONFLICT, builder.snapshot.conflict)
    return True


def _check_inputs(builder: StatusBuilder) -> bool:
    inputs = builder.snapshot.inputs
    failed = next((item for item in inputs if isinstance(item, FailedInput)), None)
    if failed is not None:
        text = f"LoRAJob {failed.name}, which this waits for, {failed.how}"
        builder.conditions.set(ConditionType.INPUTS_READY, False, failed.reason.value, text)
        builder.fail_for(failed.reason, text, failed.remedy)
        return True
    no_checkpoint = next((item for item in inputs if isinstance(item, NoCheckpoint)), None)
    if no_checkpoint is not None:
        text = f"spec.resumeFrom: LoRAJob {no_checkpoint.name} {no_checkpoint.why}"
        builder.conditions.set(ConditionType.INPUTS_READY, False, FailureReason.CHECKPOINT_MISSING.value, text)
        builder.fail_for(FailureReason.CHECKPOINT_MISSING, text)
        return True
    waiting = [item for item in inputs if isinstance(item, UnfinishedInput)]
    if waiting:
        # A reason of its own, so that the deletion of an input is an event.
        reason = "WaitingForInputs" if all(item.exists for item in waiting) else "InputMissing"
        text = "; ".join(f"{item.kind.value} {item.name} {item.state}" for item in waiting)
        builder.conditions.set(ConditionType.INPUTS_READY, False, reason, text)
        remedies = next((found for item in waiting if (found := _server_remedies(builder, item))), ())
        if remedies:
            # Also as failure, so that `kubectl get` shows a misspelt name: a server rarely follows its batch.
            builder.show_blocker(failure(FailureReason.SERVER_UNAVAILABLE, text, *remedies))
        return True
    if inputs or builder.conditions.is_false(ConditionType.INPUTS_READY):
        builder.conditions.set(ConditionType.INPUTS_READY, True, "InputsReady")
    return False


def _server_remedies(builder: StatusBuilder, item: UnfinishedInput) -> tuple[Remedy, ...]:
    """Return what to do so that a server answers; empty if waiting is enough, or if the input is no server."""
    if item.kind is not Kind.ADAPTERSERVER:
        return ()
    if not item.exists:
        return _NO_SERVER
    text = _SERVER_REMEDIES.get(item.state)
    if text is None:
        return ()
    return (retry(text.format(name=item.name, namespace=builder.snapshot.owner.key.namespace)),)


def _check_suspension(builder: StatusBuilder) -> bool:
    suspended = ConditionType.SUSPENDED
    if stop_of(builder.snapshot) is not None:
        # An object that stops for good is no longer suspended.
        builder.conditions.drop(suspended)
        return False
    if not builder.snapshot.suspend:
        if builder.conditions.status(suspended) is not None:
            builder.conditions.set(suspended, False, RESUMED, "spec.suspend is false")
        return False
    pending = next(terminating(builder.snapshot), None)
    finalizers = builder.snapshot.blocking_finalizers
    why = f"it was deleted, but finalizer {', '.join(finalizers)} keeps it" if finalizers else "spec.suspend is true"
    if pending is not None:
        builder.conditions.set(suspended, False, STOPPING, f"{why}; {pending}")
    else:
        suffix = "" if finalizers else "; set it to false to resume"
        builder.conditions.set(suspended, True, "Suspended", why + suffix)
    return False


CHECKS: Final[tuple[Check, ...]] = (
    _check_spec,
    _check_names,
    _check_suspension,
    record_attempts,
    check_stop,
    _check_inputs,
    check_search,
    check_preflight,
    check_main_job,
    check_deadline,
)


def set_blocked(builder: StatusBuilder) -> None:
    """Show why the next Job cannot be created or changed, if so."""
    found = _current_blocker(builder.snapshot)
    if found is not None:
        builder.show_blocker(found)
        _set_stage(builder, str(found.reason), found.message)
    elif builder.snapshot.waiting_for is not None:
        _set_stage(builder, builder.snapshot.waiting_reason, f"waits for {builder.snapshot.waiting_for}")


def _current_blocker(snapshot: Snapshot) -> Failure | None:
    if snapshot.rejection is not None:
        return snapshot.rejection
    if snapshot.planning_errors and _needs_plan(snapshot):
        text = "; ".join(str(error) for error in snapshot.planning_errors)
        return failure(FailureReason.PLATFORM_CHANGED, f"this was accepted, but can no longer be planned: {text}")
    return None


def _needs_plan(snapshot: Snapshot) -> bool:
    """Return whether a Job must be created: the first, or one for a changed spec."""
    main = snapshot.main
    return main is None or (not main.job.finished and main.job.settings not in (None, snapshot.owner.settings))


def _is_stopping(snapshot: Snapshot) -> bool:
    """Return whether all that must end before an object is suspended has been deleted or suspended."""
    attempts = [attempt for attempt in (snapshot.preflight, snapshot.main) if attempt is not None]
    return all(attempt.job.finished or attempt.job.suspend for attempt in attempts)


def _set_stage(builder: StatusBuilder, reason: str, message: str) -> None:
    """Set the condition of the next step to blocked; a pod that runs continues."""
    snapshot, running, preflight = builder.snapshot, ConditionType.RUNNING, ConditionType.PREFLIGHT
    if builder.conditions.reason(ConditionType.SUSPENDED) == STOPPING and not _is_stopping(snapshot):
        # A Job that can't be stopped is not stopping.
        builder.conditions.set(ConditionType.SUSPENDED, False, reason, message)
    if snapshot.kind is Kind.LORASWEEP and snapshot.main is None and snapshot.waiting_for is None:
        _set_searching(builder, reason, message)
        return
    before_work = snapshot.running.has_preflight and not builder.conditions.is_true(preflight)
    if before_work:
        builder.conditions.set(preflight, None, reason, message)
    elif builder.conditions.status(running) != "True":
        builder.conditions.set(running, False, reason, message)


def _set_searching(builder: StatusBuilder, reason: str, message: str) -> None:
    """Show what blocks a sweep without a Job, unless the search itself shows it."""
    if builder.snapshot.search is None:
        ended = builder.conditions.is_false(ConditionType.SEARCHING)
        builder.conditions.set(ConditionType.SEARCHING, False if ended else None, reason, message)
