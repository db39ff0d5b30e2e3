"""The preflight of a LoRAJob: passed, failed with its reason, or still under way."""

from __future__ import annotations

from tunery_api.reasons import FailureReason
from tunery_api.runspec import PreflightReport
from tunery_api.status import ConditionType
from tunery_operator.plan.model import Kind
from tunery_operator.status.diagnosis import job_failure, obstacle, parse_report
from tunery_operator.status.draft import Draft
from tunery_operator.status.snapshot import Attempt, Snapshot

_PREFLIGHT = ConditionType.PREFLIGHT


def needs_rerun(snapshot: Snapshot) -> bool:
    """Tell whether a complete preflight Job's report can be read nowhere, so that it must be made once more."""
    attempt = snapshot.preflight
    if attempt is None or not attempt.job.complete:
        return False
    return attempt.last is None or parse_report(attempt.last.termination_message) is None


def check_preflight(draft: Draft) -> bool:
    """Judge the preflight Job; True while nothing may follow it."""
    snapshot = draft.snapshot
    if snapshot.kind is not Kind.LORAJOB or draft.conditions.is_true(_PREFLIGHT):
        return False
    if not snapshot.preflight_needed:
        draft.conditions.set(_PREFLIGHT, True, "PreflightSkipped", "spec.preflight is Skip")
        return False
    attempt = snapshot.preflight
    if attempt is None:
        draft.conditions.set(_PREFLIGHT, None, "PreflightPending")
        return True
    if attempt.job.failed_reason is not None:
        failure = job_failure(attempt, max(1, len(attempt.pods)))
        draft.conditions.set(_PREFLIGHT, False, failure["reason"], failure["message"])
        draft.fail(failure)
        return True
    if attempt.job.complete:
        return _check_report(draft, attempt)
    _show_progress(draft, attempt)
    return True


def _check_report(draft: Draft, attempt: Attempt) -> bool:
    pod = attempt.last
    report = parse_report(pod.termination_message) if pod else None
    if report is None or report.failure is not None:
        text = f"the preflight pod {pod.name if pod else ''} ended well but left no report"
        draft.conditions.set(_PREFLIGHT, False, FailureReason.INTERNAL_ERROR.value, text)
        draft.fail_for(FailureReason.INTERNAL_ERROR, text)
        return True
    _take_over(draft, report)
    rows = report.dataset.rows if report.dataset else None
    text = "data, model, credentials and output are as they should be" + (f"; {rows} rows" if rows else "")
    draft.conditions.set(_PREFLIGHT, True, "PreflightPassed", text)
    return False


def _take_over(draft: Draft, report: PreflightReport) -> None:
    for name in ("dataset", "memory", "resolved"):
        part = getattr(report, name)
        draft.merge(name, part.to_json_dict() if part else None)


def _show_progress(draft: Draft, attempt: Attempt) -> None:
    pod = attempt.last
    failure = obstacle(pod) if pod else None
    if failure is not None:
        draft.hinder(failure)
        draft.conditions.set(_PREFLIGHT, None, str(failure.reason), failure.message)
    elif pod is not None and pod.running:
        draft.conditions.set(_PREFLIGHT, None, "PreflightRunning", f"pod {pod.name} checks data, model and output")
    else:
        draft.conditions.set(_PREFLIGHT, None, "PreflightStarting", f"Job {attempt.job.name} was created")
