"""Read a trial from its LoRAJob, and merge it with the row of the status."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from tunery_api.errors import InvalidSpec
from tunery_api.failures import Failure
from tunery_api.findings import Severity
from tunery_api.lenient import without_invalid
from tunery_api.measured import EvaluationStatus, parse_finite
from tunery_api.names import ORIGIN_ANNOTATION, TRIAL_LABEL
from tunery_api.reasons import FailureReason
from tunery_api.redact import shorten
from tunery_api.remedies import recreate
from tunery_api.status import ConditionType, Phase
from tunery_api.sweepstatus import FINAL_TRIAL_STATES, TrialAdapter, TrialFailure, TrialState, TrialStatus
from tunery_api.training import DiagnosisAction
from tunery_search.dimensions import Values
from tunery_search.failures import Fault, classify_failure
from tunery_search.trials import (
    BY_HAND,
    DEFAULT_GPUS,
    FINAL_ORIGIN,
    MAX_WHY,
    STOPPED_BY_SWEEP,
    Live,
    Trial,
    eval_losses_of,
)

_REMOVED: Final = ("curve", "rejectedAdapter")
"""Facts about files that a sweep removes after it has published the best adapter."""
_MESSAGE: Final = 1024
_ORIGIN: Final = 64
_VALUE: Final = 256
"""Maximum characters of these texts in a row. A LoRAJob that was edited may have longer ones."""
_DIGITS: Final = 6
"""Maximum digits of a trial number."""
_RUNNING: Final = frozenset({Phase.TRAINING, Phase.EVALUATING, Phase.UPLOADING, Phase.STOPPING, Phase.SUSPENDING})
Body = Mapping[str, Any]
"""A LoRAJob as the API server returns it."""
ReadValues = Callable[[Mapping[str, Any]], Values]
"""Returns the values by path in the spec of a trial."""


def merge_trials(
    rows: Iterable[TrialStatus], children: Iterable[Body], read: ReadValues, unread: Container[int] = ()
) -> tuple[Trial, ...]:
    """Return every trial by number, from the status rows and the LoRAJobs of the sweep.

    A trial with a final state stays as it is, even after its LoRAJob is deleted. Any other trial without a LoRAJob was
    deleted. `children` must be complete, including LoRAJobs created since the status was written. The exception is
    `unread`, the numbers of LoRAJobs that could not be read: only their rows are used.
    """
    found = {row.number: Trial(row) for row in rows}
    by_number = {number: child for child in children if (number := trial_number(child)) is not None}
    for number, known in list(found.items()):
        if not known.has_ended and number not in by_number and number not in unread:
            gone = {"state": TrialState.DELETED.value, "why": "its LoRAJob was deleted before its end"}
            found[number] = Trial(known.row.model_copy(update=gone))
    for number, child in by_number.items():
        before = found.get(number)
        if before is None or not before.has_ended:
            found[number] = _with_first_origin(before, read_trial(child, read))
    return tuple(found[number] for number in sorted(found))


def _with_first_origin(before: Trial | None, now: Trial) -> Trial:
    """Return a trial with the origin that its row had first, as users may change the annotation."""
    if before is None or before.row.origin is None or before.row.origin == now.row.origin:
        return now
    return replace(now, row=now.row.model_copy(update={"origin": before.row.origin}))


def trial_number(child: Body) -> int | None:
    """Return the trial number of a LoRAJob. Return None if it has no valid label."""
    text = str((child["metadata"].get("labels") or {}).get(TRIAL_LABEL) or "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else None


def read_trial(child: Body, read: ReadValues) -> Trial:
    """Return the trial of a LoRAJob that has a trial label."""
    row = _row(child, read)
    return Trial(row, None if row.state in FINAL_TRIAL_STATES else _live(child, row))


def invalid_row(child: Body, read: ReadValues, error: InvalidSpec) -> TrialStatus:
    """Return the final row of a trial that wasn't created because its values are invalid together.

    It counts towards maxTrials, so that the search ends, but never fails the sweep.
    """
    row = _row(child, read)
    final = row.origin == FINAL_ORIGIN
    of = "spec.final with the best values" if final else "these values together"
    # The fields are those of spec.template.
    text = "; ".join(f"{each.path.removeprefix('spec.')}: {each.message}" for each in error.errors)
    fix = recreate("Change final", "final") if final else recreate("Give a parameter a condition (when)", "parameters")
    message = shorten(f"{of}: {text}", _MESSAGE)
    failure = Failure(reason=FailureReason.INVALID_SPEC, message=message, remedies=[fix])
    return row.model_copy(update={"state": TrialState.INFEASIBLE.value, **_failure_fields(failure)})


def _row(child: Body, read: ReadValues) -> TrialStatus:
    metadata, status = child["metadata"], child.get("status") or {}
    values = read(child["spec"])
    steps = _steps(status)
    state = _state_fields(child, values, steps)
    final = state["state"] in FINAL_TRIAL_STATES
    return TrialStatus(
        number=trial_number(child) or 0,
        name=metadata["name"],
        uid=metadata.get("uid"),
        origin=_origin(metadata),
        base_value=_number_text(_metrics(status).get("baseEvalLoss")),
        parameters={path: value[:_VALUE] for path, value in values.items()},
        trainable_parameters=(status.get("resolved") or {}).get("trainableParameters"),
        steps=steps,
        evaluations=_evaluations(status) or None if final else None,
        gpu_seconds=status.get("gpuSeconds"),
        run_seconds=status.get("runSeconds"),
        **state,
    )


def _origin(metadata: Mapping[str, Any]) -> str | None:
    """Return the origin of a trial, truncated, as users may change the annotation."""
    origin = (metadata.get("annotations") or {}).get(ORIGIN_ANNOTATION)
    return None if origin is None else str(origin)[:_ORIGIN]


def _state_fields(child: Body, values: Values, steps: int | None) -> dict[str, Any]:
    """Return the state of a trial and the fields that depend on it."""
    status = child.get("status") or {}
    phase = status.get("phase")
    if phase == Phase.SUCCEEDED:
        return _complete(status)
    if phase == Phase.STOPPED:
        return _pruned(status, steps, _stop_why(child))
    if phase == Phase.FAILED:
        return _failed(child, values, steps)
    runs = phase in _RUNNING or any(_open_attempts(status))
    return {"state": (TrialState.RUNNING if runs else TrialState.WAITING).value}


def _complete(status: Mapping[str, Any]) -> dict[str, Any]:
    value, adapter = _value(status), status.get("adapter")
    if value is None:
        why = "it succeeded, but its held-out loss is unknown"
        return {"state": TrialState.FAILED.value, "why": why}
    published = adapter and TrialAdapter(uri=adapter["uri"], manifest_sha256=adapter["manifestSha256"])
    return {"state": TrialState.COMPLETE.value, "value": value, "adapter": published or None}


def _pruned(status: Mapping[str, Any], steps: int | None, why: str) -> dict[str, Any]:
    best = min(_evaluations(status), key=lambda each: float(each.loss), default=None)
    return {
        "state": TrialState.PRUNED.value,
        "value": best.loss if best else None,
        "at": _share_done(status, steps),
        "why": shorten(why, MAX_WHY),
    }


def _stop_why(child: Body) -> str:
    """Return why a trial stopped. Without `stop`, its deadline stopped it."""
    why = child["spec"].get("stop")
    if why is None:
        return "it exceeded activeDeadlineSeconds"
    text = str(why)
    return text.removeprefix(STOPPED_BY_SWEEP) if text.startswith(STOPPED_BY_SWEEP) else BY_HAND + text


def _failed(child: Body, values: Values, steps: int | None) -> dict[str, Any]:
    status = child["status"]
    failure = _failure(status) or Failure(reason=FailureReason.INTERNAL_ERROR, message="")
    reason = str(failure.reason)
    details = _failure_fields(failure)
    fields = {path for remedy in failure.remedies for path in remedy.fields}
    fault = classify_failure(reason, values, fields, ran=bool(status.get("runSeconds")))
    if reason == FailureReason.NOT_IMPROVED:
        value = _value(status)
        if value is None or (
            _problem(status) is not None and _ends_itself(child) and not _has_run_all_steps(status, steps)
        ):
            return {**_pruned(status, steps, ""), **details}
        # The trial was measured like any other; only its adapter is of no use.
        return {"state": TrialState.COMPLETE.value, "value": value, **details}
    state = TrialState.INFEASIBLE if fault is Fault.PARAMETERS else TrialState.FAILED
    at = _share_done(status, steps) if state is TrialState.INFEASIBLE else None
    return {"state": state.value, "at": at, **details}


def _failure(status: Mapping[str, Any]) -> Failure | None:
    """Return the failure in a status, without fields that this version can't read. Return None without a failure."""
    shown = status.get("failure")
    if not shown:
        return None
    bare = {"reason": FailureReason.INTERNAL_ERROR.value, "message": ""}
    return Failure.model_validate(without_invalid(Failure, {**bare, **shown}) or bare)


def _failure_fields(failure: Failure) -> dict[str, Any]:
    """Return the row fields of a failure."""
    why = shorten(failure.message, MAX_WHY) or None
    return {"reason": str(failure.reason), "why": why, "failure": _details(failure)}


def _details(failure: Failure) -> TrialFailure | None:
    """Return what `reason` and `why` lack of a failure. Return None if they have all of it."""
    long = failure.message if len(failure.message.encode()) > MAX_WHY else None
    facts = {key: value for key, value in failure.facts.items() if key not in _REMOVED}
    if not (long or failure.remedies or facts):
        return None
    return TrialFailure(message=long, remedies=failure.remedies or None, facts=facts or None)


def _live(child: Body, row: TrialStatus) -> Live:
    spec, status = child["spec"], child.get("status") or {}
    gpus = (spec.get("resources") or {}).get("gpus")
    blocker = _blocker(row.name, status)
    return Live(
        eval_losses=eval_losses_of(_evaluations(status), row.steps),
        problem=_problem(status),
        stops_itself=_ends_itself(child),
        waiting=status.get("phase") in (Phase.QUEUED, Phase.WAITING) or blocker is not None,
        blocker=blocker,
        checked=is_checked(status),
        stopping=spec.get("stop") is not None,
        since=tuple(_open_attempts(status)),
        gpus=DEFAULT_GPUS if gpus is None else int(gpus),
        finalizers=_finalizers(child["metadata"]),
    )


def _finalizers(metadata: Mapping[str, Any]) -> tuple[str, ...] | None:
    return tuple(metadata.get("finalizers") or ()) if "deletionTimestamp" in metadata else None


def _blocker(name: str, status: Mapping[str, Any]) -> Failure | None:
    failure = _failure(status)
    text = shorten(f"{name}: {failure.message or failure.reason}", _MESSAGE) if failure is not None else ""
    return failure and failure.model_copy(update={"message": text})


def _ends_itself(child: Body) -> bool:
    return (child["spec"].get("diagnosis") or {}).get("action") == DiagnosisAction.STOP


def _problem(status: Mapping[str, Any]) -> str | None:
    """Return the Problem that a run has found. Return None without one."""
    for each in status.get("findings") or ():
        if each.get("severity") == Severity.PROBLEM:
            return f"{each['type']}: {each['message']}" if each.get("message") else str(each["type"])
    return None


def is_checked(status: Mapping[str, Any]) -> bool:
    """Return whether a LoRAJob's preflight has passed or was skipped."""
    kind = ConditionType.PREFLIGHT
    return any(each["type"] == kind and each["status"] == "True" for each in status.get("conditions") or ())


def _open_attempts(status: Mapping[str, Any]) -> Iterable[datetime]:
    for each in status.get("attemptHistory") or ():
        if each.get("endTime") is None and each.get("seconds") is None:
            started = datetime.fromisoformat(each["startTime"])
            yield started if started.tzinfo else started.replace(tzinfo=UTC)


def _steps(status: Mapping[str, Any]) -> int | None:
    """Return the number of steps of a run: as the trainer reports it, or else as preflight computed it."""
    steps = (status.get("progress") or {}).get("totalSteps") or (status.get("resolved") or {}).get("steps")
    return int(steps) if steps else None


def _metrics(status: Mapping[str, Any]) -> Mapping[str, Any]:
    return status.get("metrics") or {}


def _evaluations(status: Mapping[str, Any]) -> list[EvaluationStatus]:
    """Return the evaluations with a finite loss, oldest first."""
    reported = status.get("evaluations") or ()
    return [
        EvaluationStatus(step=each["step"], loss=loss) for each in reported if (loss := _number_text(each.get("loss")))
    ]


def _value(status: Mapping[str, Any]) -> str | None:
    """Return the held-out loss of the run's published weights, as exactly as it is known.

    `metrics.evalLoss` is the loss of the best or the last weights, as evaluation.publish states. The result has six
    digits. If it was lost, the report has four; then use the matching evaluation, which has six.
    """
    text = _number_text(_metrics(status).get("evalLoss"))
    if text is None:
        return None
    losses = [each.loss for each in _evaluations(status)]
    rounded = (loss for loss in losses if f"{float(loss):.4g}" == text)
    return text if text in losses else next(rounded, text)


def _number_text(text: object) -> str | None:
    return None if parse_finite(text) is None else str(text)


def _has_run_all_steps(status: Mapping[str, Any], steps: int | None) -> bool:
    evaluations = _evaluations(status)
    return bool(steps and evaluations and evaluations[-1].step >= steps)


def _share_done(status: Mapping[str, Any], steps: int | None) -> str | None:
    """Return the share of its steps that a run has completed."""
    steps_done = [
        (status.get(name) or {}).get(field) for name, field in (("stopped", "afterStep"), ("progress", "step"))
    ]
    done = next((step for step in steps_done if step is not None), None)
    if done is None:
        done = max((each.step for each in _evaluations(status)), default=None)
    return f"{min(1.0, done / steps):.2g}" if done is not None and steps else None
