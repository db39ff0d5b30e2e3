"""The Job that trains or merges: queued, starting, running, retried, done."""

from __future__ import annotations

from typing import Any

from tunery_api.reasons import FailureReason
from tunery_api.runspec import RunResult
from tunery_api.status import ConditionType, Phase
from tunery_operator.plan.model import Kind
from tunery_operator.status.attempts import count_attempts
from tunery_operator.status.diagnosis import job_failure, obstacle, parse_result, pod_failure
from tunery_operator.status.draft import Draft
from tunery_operator.status.phase import FINISHING, POD_STARTED
from tunery_operator.status.podview import PodView
from tunery_operator.status.progress import changed_enough, metrics_fields, progress_fields
from tunery_operator.status.snapshot import Attempt, Snapshot

_RESULT_PARTS = ("metrics", "dataset", "memory", "resolved", "checkpoint")


def needs_report(snapshot: Snapshot) -> bool:
    """Tell whether a complete Job's result can be read nowhere, so that a report Job must ask the bucket for it."""
    work, report = snapshot.work, snapshot.report
    if work is None or not work.job.complete or _result_of(work) is not None:
        return False
    return report is None or (report.job.failed_reason is None and _result_of(report) is None)


def _result_of(attempt: Attempt) -> RunResult | None:
    """Return what the pod of a complete Job said, or None where the pod or its words are gone."""
    pod = next((pod for pod in reversed(attempt.pods) if pod.phase == "Succeeded"), None)
    return parse_result(pod.termination_message) if pod is not None else None


def check_work(draft: Draft) -> bool:
    """Judge the train or merge Job; True once it has ended."""
    attempt = draft.snapshot.work
    if attempt is None:
        return False
    draft.put(jobName=attempt.job.name)
    count_attempts(draft, attempt)
    _check_queue(draft, attempt)
    _take_progress(draft)
    if attempt.job.complete:
        _check_result(draft, attempt)
        return True
    if attempt.job.failed_reason is not None:
        _take_last_words(draft, attempt)
        draft.fail(job_failure(attempt, int(draft.fields.get("attempts") or 1)))
        return True
    _show_pod(draft, attempt)
    return False


def _check_queue(draft: Draft, attempt: Attempt) -> None:
    queue = draft.snapshot.queue
    if queue is None or draft.snapshot.suspend:
        return
    if attempt.job.suspend:
        draft.conditions.set(ConditionType.QUOTA_RESERVED, False, "WaitingForQuota", f"queue {queue} has no room yet")
    else:
        draft.conditions.set(ConditionType.QUOTA_RESERVED, True, "QuotaReserved", f"queue {queue}")


def _take_progress(draft: Draft) -> None:
    report = draft.snapshot.progress
    if report is None or draft.snapshot.kind is not Kind.LORAJOB:
        return
    fields = progress_fields(report)
    if changed_enough(draft.fields.get("progress") or {}, fields):
        draft.merge("progress", fields)
    draft.merge("metrics", metrics_fields(report))
    if report.checkpoint is not None:
        _take_checkpoint(draft, report.checkpoint.to_json_dict())


def _take_checkpoint(draft: Draft, checkpoint: dict[str, Any]) -> None:
    if draft.fields.get("checkpoint") != checkpoint:
        draft.put(checkpoint=checkpoint)
        text = f"step {checkpoint['step']} at {checkpoint['uri']}"
        draft.conditions.set(ConditionType.CHECKPOINT_SAVED, True, "CheckpointSaved", text)


def _check_result(draft: Draft, attempt: Attempt) -> None:
    pod = next((pod for pod in reversed(attempt.pods) if pod.phase == "Succeeded"), None)
    result = parse_result(pod.termination_message) if pod else None
    if result is None or result.adapter is None:
        why = "is gone, and its result with it" if pod is None else "said nothing of a published adapter"
        draft.fail_for(FailureReason.INTERNAL_ERROR, f"Job {attempt.job.name} is complete, but its pod {why}")
        return
    _take_result(draft, result)
    adapter = result.adapter.to_json_dict()
    draft.put(adapter=adapter)
    text = f"published at {adapter['uri']}, read back, and every digest matches"
    draft.conditions.set(ConditionType.ADAPTER_UPLOADED, True, "AdapterUploaded", text)
    draft.succeed(text)


def _take_last_words(draft: Draft, attempt: Attempt) -> None:
    result = parse_result(attempt.last.termination_message) if attempt.last else None
    if result is not None:
        _take_result(draft, result)


def _take_result(draft: Draft, result: RunResult) -> None:
    if draft.snapshot.kind is Kind.LORAJOB:
        for name in _RESULT_PARTS:
            part = getattr(result, name)
            draft.merge(name, part.to_json_dict() if part else None)
        _check_evaluation(draft, result)
        return
    inputs = [item.to_json_dict() for item in result.inputs or ()]
    verification = result.verification.to_json_dict() if result.verification else None
    draft.put(inputs=inputs or None, verification=verification, rank=result.rank, rankError=result.rank_error)


def _check_evaluation(draft: Draft, result: RunResult) -> None:
    metrics = result.metrics
    if metrics is None or metrics.eval_loss is None:
        return
    text = f"evaluation loss {metrics.eval_loss}"
    text += f", the base model's {metrics.base_eval_loss}" if metrics.base_eval_loss else ""
    draft.conditions.set(ConditionType.EVALUATED, True, "Evaluated", text)


def _show_pod(draft: Draft, attempt: Attempt) -> None:
    pod, running = attempt.last, ConditionType.RUNNING
    if pod is not None and pod.running and not (draft.snapshot.suspend and pod.deleting):
        draft.conditions.set(running, True, _activity(draft), f"pod {pod.name} on node {pod.node}")
        return
    if draft.snapshot.suspend or attempt.job.suspend:
        if draft.conditions.status(running) is not None:
            draft.conditions.set(running, False, "Stopped", "the Job is suspended and has no pod")
        return
    failure = obstacle(pod) if pod else None
    if failure is not None:
        draft.hinder(failure)
        draft.conditions.set(running, False, str(failure.reason), failure.message)
    elif pod is not None and (pod.finished or pod.finished_at is not None):
        _show_ended_pod(draft, pod)
    else:
        draft.conditions.set(running, False, "Starting", f"Job {attempt.job.name} was created")


def _show_ended_pod(draft: Draft, pod: PodView) -> None:
    # The container ends a moment before its pod does.
    if pod.phase == "Succeeded" or pod.exit_code == 0:
        draft.conditions.set(ConditionType.RUNNING, False, FINISHING, f"pod {pod.name} has ended well")
        return
    failure = pod_failure(pod)
    text = f"attempt {draft.fields.get('attempts', 1)} failed: {failure.reason}: {failure.message}"
    draft.conditions.set(ConditionType.RUNNING, False, "AttemptFailed", text)


def _activity(draft: Draft) -> str:
    """Return the reason of Running=True: what the pod says it does."""
    report = draft.snapshot.progress
    if report is None:
        known = draft.conditions.reason(ConditionType.RUNNING)
        return known if draft.conditions.is_true(ConditionType.RUNNING) and known else POD_STARTED
    if report.phase is Phase.STARTING:
        return POD_STARTED
    default = Phase.TRAINING if draft.snapshot.kind is Kind.LORAJOB else Phase.MERGING
    return (report.phase or default).value
