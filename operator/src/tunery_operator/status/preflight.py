"""Show the preflight of a LoRAJob in the status: running, passed, or failed."""

from __future__ import annotations

from typing import Final

from tunery_api.reasons import FailureReason
from tunery_api.runspec import PreflightReport
from tunery_api.status import ConditionType
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.pod import PodView
from tunery_operator.status.builder import StatusBuilder
from tunery_operator.status.diagnosis import failure, job_failure, pod_failure
from tunery_operator.status.findings import planned, record_findings
from tunery_operator.status.queue import check_queue, is_queued
from tunery_operator.status.reports import parse_report
from tunery_operator.status.results import succeeded_pod
from tunery_operator.status.retries import ends_its_job

PREFLIGHT_ONLY: Final = "PreflightOnly"
"""Reason of Succeeded=True if spec.preflight is Only."""
_PREFLIGHT: Final = ConditionType.PREFLIGHT
_PREFLIGHT_RUNNING: Final = "PreflightRunning"


def check_preflight(builder: StatusBuilder) -> bool:
    """Show the preflight Job; return True until another Job may follow."""
    if _is_settled(builder):
        return _check_preflight_only(builder)
    return _check_job(builder) or _check_preflight_only(builder)


def _is_settled(builder: StatusBuilder) -> bool:
    return not builder.snapshot.running.has_preflight or builder.conditions.is_true(_PREFLIGHT)


def _check_preflight_only(builder: StatusBuilder) -> bool:
    """End an object whose spec.preflight is Only and whose preflight has passed."""
    snapshot = builder.snapshot
    if not snapshot.preflight_only:
        return False
    pod = snapshot.preflight.last if snapshot.preflight is not None else None
    text = "preflight has passed; spec.preflight is Only, so nothing is trained"
    builder.succeed(text, pod.finished_at if pod is not None else None, PREFLIGHT_ONLY)
    return True


def _check_job(builder: StatusBuilder) -> bool:
    snapshot = builder.snapshot
    if not snapshot.preflight_needed:
        builder.conditions.set(_PREFLIGHT, True, "PreflightSkipped", "spec.preflight is Skip")
        return False
    attempt = snapshot.preflight
    if attempt is None:
        builder.conditions.set(_PREFLIGHT, None, "PreflightPending")
        return True
    builder.put(queue=attempt.job.queue or snapshot.queue)
    check_queue(builder, attempt.job)
    if attempt.job.complete:
        return _check_report(builder, attempt)
    if attempt.job.failed_reason is not None:
        found, exit_code = job_failure(attempt, builder.snapshot.platform)
        report = parse_report(attempt.last.termination_message) if attempt.last is not None else None
        if report is not None:
            _record_report(builder, report)
        builder.conditions.set(_PREFLIGHT, False, str(found.reason), found.message)
        ended = attempt.last.finished_at if attempt.last is not None else None
        builder.fail(found, ended=ended or attempt.job.ended_at, exit_code=exit_code)
        return True
    if not _check_deadline(builder, attempt):
        _show_progress(builder, attempt)
    return True


def _check_report(builder: StatusBuilder, attempt: Attempt) -> bool:
    pod = succeeded_pod(attempt)
    if pod is None:
        text = f"the pod of Job {attempt.job.name} is gone, and its report with it; it runs again"
        builder.conditions.set(_PREFLIGHT, None, "PreflightRepeated", text)
        return True
    report = parse_report(pod.termination_message)
    if report is None or report.failure is not None:
        text = f"preflight pod {pod.name} succeeded but left no report"
        found = (report.failure if report else None) or failure(FailureReason.INTERNAL_ERROR, text)
        builder.conditions.set(_PREFLIGHT, False, str(found.reason), found.message)
        builder.fail(found, ended=pod.finished_at or attempt.job.ended_at)
        return True
    _record_report(builder, report)
    rows = report.dataset.rows if report.dataset else None
    text = "preflight checked data, model, credentials, and output" + (f"; {rows} rows" if rows else "")
    builder.conditions.set(_PREFLIGHT, True, "PreflightPassed", text)
    return False


def _record_report(builder: StatusBuilder, report: PreflightReport) -> None:
    if report.dataset is not None:
        # Replaces the report of an earlier preflight: its findings may have been fixed.
        builder.put(dataset=report.dataset.to_json_dict())
    for name in ("memory", "estimate", "disk", "resolved"):
        part = getattr(report, name)
        builder.merge(name, part.to_json_dict() if part else None)
    record_findings(builder, None, planned(report.checks or ()))


def _check_deadline(builder: StatusBuilder, attempt: Attempt) -> bool:
    """End the object if preflight alone runs for longer than the deadline."""
    limit = builder.snapshot.deadline_seconds
    ran = sum(_seconds(builder, pod) for pod in attempt.pods)
    if limit is None or ran < limit:
        return False
    text = f"preflight has run for longer than spec.activeDeadlineSeconds, {limit} s"
    builder.conditions.set(_PREFLIGHT, False, FailureReason.DEADLINE_EXCEEDED.value, text)
    builder.fail(failure(FailureReason.DEADLINE_EXCEEDED, text))
    return True


def _seconds(builder: StatusBuilder, pod: PodView) -> float:
    if pod.started_at is None:
        return 0.0
    return ((pod.finished_at or builder.snapshot.now) - pod.started_at).total_seconds()


def _show_progress(builder: StatusBuilder, attempt: Attempt) -> None:
    pod, job = attempt.last, attempt.job
    found = None if job.suspend else builder.blocker(attempt)
    if found is not None:
        builder.show_blocker(found)
        builder.conditions.set(_PREFLIGHT, None, str(found.reason), found.message)
    elif pod is not None and pod.running:
        builder.conditions.set(_PREFLIGHT, None, _PREFLIGHT_RUNNING, f"pod {pod.name} checks data, model and output")
    elif pod is not None and (pod.finished or pod.finished_at is not None):
        _show_ended_pod(builder, attempt, pod)
    elif is_queued(job):
        builder.conditions.set(_PREFLIGHT, None, "PreflightQueued", f"Job {job.name} waits in queue {job.queue}")
    else:
        builder.conditions.set(_PREFLIGHT, None, "PreflightStarting", f"Job {job.name} waits for its pod to start")


def _show_ended_pod(builder: StatusBuilder, attempt: Attempt, pod: PodView) -> None:
    """Show the end of a pod whose Job has not ended: the Job ends seconds later, unless another attempt follows."""
    if pod.phase == "Succeeded" or pod.exit_code == 0:
        builder.conditions.set(_PREFLIGHT, None, _PREFLIGHT_RUNNING, f"pod {pod.name} has succeeded")
        return
    found = pod_failure(pod)
    last = ends_its_job(builder, attempt, pod)
    text = f"attempt {len(attempt.pods)} of preflight failed{', and is not retried' if last else ''}"
    builder.conditions.set(
        _PREFLIGHT, None, _PREFLIGHT_RUNNING if last else "AttemptFailed", f"{text}: {found.reason}: {found.message}"
    )
