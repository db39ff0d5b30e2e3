"""Decide how an object ends whose Job is complete, and write the reports and the published result into the status."""

from __future__ import annotations

from typing import Any, Final

from tunery_api.adapterserver import ENGINE_RANKS
from tunery_api.kinds import Kind
from tunery_api.measured import MetricsStatus, change_text
from tunery_api.names import trials_uri
from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_api.runspec import AnswersReport, RunResult, TrainerStatus
from tunery_api.serving import method_problem, rank_problem
from tunery_api.status import ConditionType
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.pod import PodView
from tunery_operator.status.builder import StatusBuilder
from tunery_operator.status.conditions import RESULT_LOOKUP
from tunery_operator.status.diagnosis import failure, job_failure
from tunery_operator.status.events import CHECKPOINT_NOT_STORED, RANK_TOO_LOW, REMOVAL_UNKNOWN, TRIALS_LEFT
from tunery_operator.status.findings import explain_rejection, record_findings
from tunery_operator.status.reports import (
    changed_enough,
    metrics_fields,
    number,
    parse_result,
    progress_fields,
    steps_fields,
)
from tunery_operator.status.snapshot import Snapshot

_RESULT_PARTS: Final = ("metrics", "dataset", "memory", "resolved")
_UPLOADED: Final = {"adapter": ConditionType.ADAPTER_UPLOADED, "output": ConditionType.OUTPUT_UPLOADED}
"""The condition by the status field of the published result."""
_FIELD: Final = "unservable"


def record_progress(builder: StatusBuilder) -> None:
    """Write the latest report of the running pod."""
    report = builder.snapshot.progress
    has_field = builder.snapshot.definition.has_status_field
    if report is not None and report.device and has_field("device"):
        builder.put(device=report.device)
    if report is None or not has_field("progress"):
        return
    if report.device and has_field("resolved"):
        builder.merge("resolved", {"device": report.device})
    fields = progress_fields(report)
    if changed_enough(builder.fields.get("progress") or {}, fields):
        builder.merge("progress", fields)
    if report.answers is not None:
        _take_answers(builder, report.answers)
    if has_field("metrics"):
        builder.merge("metrics", metrics_fields(report))
    if _is_of_this_attempt(builder):
        record_findings(builder, report.findings, report.checks)
    if report.evaluations and has_field("evaluations"):
        builder.put(evaluations=[each.to_json_dict() for each in report.evaluations])
    _take_curve(builder, report)
    unstored = report.checkpoint_error if has_field("checkpoint") and _is_of_this_attempt(builder) else None
    if report.checkpoint is not None and has_field("checkpoint"):
        _take_checkpoint(builder, report.checkpoint.to_json_dict(), clears_unstored=not unstored)
    if unstored:
        _show_not_stored(builder, unstored)


def _take_curve(builder: StatusBuilder, report: TrainerStatus) -> None:
    """Write the loss curve and its location; a report without them keeps them."""
    if not builder.snapshot.definition.has_status_field("curve"):
        return
    points = [each.to_json_dict() for each in report.curve_points or ()]
    found = {"uri": report.curve} if report.curve is not None else {}
    builder.merge("curve", found | ({"points": points} if points else {}))


def _show_not_stored(builder: StatusBuilder, why: str) -> None:
    """Show that the latest checkpoint was not stored, and from where the next attempt would resume."""
    newest = builder.fields.get("checkpoint")
    resumes = (
        f"would resume from step {newest['step']}, {newest['uri']}" if newest else "would start from the beginning"
    )
    text = f"{why}; the next attempt {resumes}"
    builder.conditions.set(ConditionType.CHECKPOINT_SAVED, False, CHECKPOINT_NOT_STORED, text)


def _is_of_this_attempt(builder: StatusBuilder) -> bool:
    """Return whether the newest pod has sent the report: an older pod may send its last report late."""
    main = builder.snapshot.main
    return main is None or main.last is None or main.last.uid == builder.snapshot.reporter


def record_checkpoint(builder: StatusBuilder, pod: PodView | None) -> None:
    """Record the checkpoint that a pod wrote as it was deleted."""
    result = parse_result(pod.termination_message) if pod is not None else None
    has_checkpoint = builder.snapshot.definition.has_status_field("checkpoint")
    if result is not None and result.checkpoint is not None and has_checkpoint:
        _take_checkpoint(builder, result.checkpoint.to_json_dict())


def _take_checkpoint(builder: StatusBuilder, checkpoint: dict[str, Any], *, clears_unstored: bool = True) -> None:
    """Set the newest checkpoint; a report may be older than a pod's termination message.

    `clears_unstored` is False if the same report says that a newer checkpoint could not be stored: otherwise the
    condition would change twice in each reconcile.
    """
    known = builder.fields.get("checkpoint") or {}
    newer = known != checkpoint and checkpoint["step"] >= known.get("step", 0)
    unstored = builder.conditions.reason(ConditionType.CHECKPOINT_SAVED) == CHECKPOINT_NOT_STORED
    if newer or (clears_unstored and unstored and known == checkpoint):
        builder.put(checkpoint=checkpoint)
        text = f"step {checkpoint['step']} at {checkpoint['uri']}"
        builder.conditions.set(ConditionType.CHECKPOINT_SAVED, True, "CheckpointSaved", text)


def decide_result(builder: StatusBuilder, attempt: Attempt) -> None:
    """Decide how an object ends whose Job is complete, by the termination message of its pod or of the report Job."""
    snapshot = builder.snapshot
    own = published(snapshot, attempt)
    result = own or published(snapshot, snapshot.report)
    if result is not None:
        take_result(builder, result)
        if own is None and result.not_removed is None:
            _tell_removal_unknown(builder, attempt, result)
        text = take_published(builder, result)
        forget_checkpoint(builder, result)
        pod = succeeded_pod(attempt)
        builder.succeed(text, pod.finished_at if pod is not None and pod.finished_at else attempt.job.ended_at)
    elif needs_report(snapshot):
        _look_up(builder, attempt)
    else:
        _fail_without_result(builder, attempt)


def _tell_removal_unknown(builder: StatusBuilder, attempt: Attempt, result: RunResult) -> None:
    """Show that it is unknown which adapters of trials remain, as the termination message is gone."""
    if builder.snapshot.kind is not Kind.LORASWEEP or result.adapter is None:
        return
    place = trials_uri(result.adapter.uri, builder.snapshot.owner.uid)
    text = (
        f"the termination message of Job {attempt.job.name} is gone, so it is unknown whether the other trials' "
        f"adapters were removed. Those that remain are below {place}"
    )
    builder.conditions.set(ConditionType.TRIALS_REMOVED, None, REMOVAL_UNKNOWN, text)


def take_published(builder: StatusBuilder, result: RunResult) -> str:
    """Write the published result, and return its message."""
    name = builder.snapshot.running.result
    block = getattr(result, name)
    builder.put(**{name: block.to_json_dict()})
    builder.forget_curve_file()
    text = f"published at {block.uri}, read back, and every digest matches"
    condition = _UPLOADED[name]
    builder.conditions.set(condition, True, condition.value, text)
    return text


def forget_checkpoint(builder: StatusBuilder, result: RunResult) -> None:
    """Remove the checkpoint from the status if the result names none: publishing has removed it."""
    saved = ConditionType.CHECKPOINT_SAVED
    if result.checkpoint is None and builder.conditions.reason(saved) in ("CheckpointSaved", CHECKPOINT_NOT_STORED):
        builder.put(checkpoint=None)
        builder.conditions.set(saved, False, "Removed", "the checkpoints were removed once the adapter was published")


def _look_up(builder: StatusBuilder, attempt: Attempt) -> None:
    report = builder.snapshot.report
    text = f"Job {attempt.job.name} is complete, but its termination message is gone; a Job reads the published files"
    builder.conditions.set(ConditionType.RUNNING, False, RESULT_LOOKUP, text)
    found = builder.blocker(report) if report is not None and not report.job.suspend else None
    if found is not None:
        builder.show_blocker(found)


def _fail_without_result(builder: StatusBuilder, attempt: Attempt) -> None:
    report, name = builder.snapshot.report, attempt.job.name
    reason: str = FailureReason.ADAPTER_MISSING
    text = f"Job {name} is complete, but its termination message is gone and nothing is published at the output"
    if report is not None and report.job.failed_reason is not None:
        found, _ = job_failure(report, builder.snapshot.platform)
        reason, text = found.reason, f"Job {name} is complete, but its result cannot be found: {found.message}"
    remedy = retry("Check what removed or replaced the published files; a retry publishes them again")
    builder.fail(failure(reason, text, remedy), ended=attempt.job.ended_at)


def record_termination_message(builder: StatusBuilder, attempt: Attempt) -> RunResult | None:
    """Write the partial result of a failed pod, and return it; None if it reports none."""
    result = parse_result(attempt.last.termination_message) if attempt.last else None
    if result is not None:
        take_result(builder, result)
    return result


def take_result(builder: StatusBuilder, result: RunResult) -> None:
    """Write the parts of a result that the status of this kind has."""
    has_field = builder.snapshot.definition.has_status_field
    for name in filter(has_field, _RESULT_PARTS):
        part = getattr(result, name)
        builder.merge(name, part.to_json_dict() if part else None)
    record_findings(builder, result.findings, result.checks)
    if result.checkpoint is not None and has_field("checkpoint"):
        _take_checkpoint(builder, result.checkpoint.to_json_dict())
    if has_field("rejected_adapter"):
        rejected = result.rejected_adapter
        builder.put(rejectedAdapter=rejected.to_json_dict() if rejected else None)
        if rejected:
            builder.forget_curve_file()
        explain_rejection(builder)
    if has_field("evaluations") and result.evaluations:
        builder.put(evaluations=[each.to_json_dict() for each in result.evaluations])
    if result.steps and has_field("progress"):
        _take_steps(builder, result.steps)
    if has_field("inputs"):
        _take_merge(builder, result)
    if result.answers is not None:
        _take_answers(builder, result.answers)
    if result.not_removed:
        builder.conditions.set(ConditionType.TRIALS_REMOVED, False, TRIALS_LEFT, result.not_removed)
    _check_evaluation(builder, result)


def _take_steps(builder: StatusBuilder, steps: int) -> None:
    """Write the last step of a run whose last reports did not arrive."""
    shown = builder.fields.get("progress") or {}
    if int(shown.get("step") or 0) >= steps:
        return
    total = shown.get("totalSteps") or (builder.fields.get("resolved") or {}).get("steps") or steps
    left = {name: value for name, value in shown.items() if name not in ("eta", "etaSeconds", "epoch")}
    builder.put(progress={**left, **steps_fields(steps, total), "totalSteps": total})


def _take_merge(builder: StatusBuilder, result: RunResult) -> None:
    inputs = [item.to_json_dict() for item in result.inputs or ()]
    verification = result.verification.to_json_dict() if result.verification else None
    builder.put(inputs=inputs or None, verification=verification, rank=result.rank, rankError=result.rank_error)
    if result.rank_too_low:
        builder.conditions.set(ConditionType.RANK_SUFFICIENT, False, RANK_TOO_LOW, result.rank_too_low)


def _take_answers(builder: StatusBuilder, answers: AnswersReport) -> None:
    """Write how many lines of a batch are done, over all attempts."""
    if not builder.snapshot.definition.has_status_field("answered_by"):
        return
    counts = answers.model_dump(mode="json", by_alias=True, exclude_none=True)
    builder.put(**{**counts, "answeredBy": counts["answeredBy"] or None})
    if answers.lines:
        done = steps_fields(answers.answered + answers.errors, answers.lines)
        builder.merge("progress", {**done, "totalSteps": answers.lines})


def _check_evaluation(builder: StatusBuilder, result: RunResult) -> None:
    metrics = result.metrics
    if metrics is None or metrics.eval_loss is None:
        return
    text = f"evaluation loss {metrics.eval_loss}"
    text += f", the base model's {metrics.base_eval_loss}" if metrics.base_eval_loss else ""
    text += _change(metrics)
    text += f", reward accuracy {metrics.eval_reward_accuracy}" if metrics.eval_reward_accuracy else ""
    before = metrics.base_eval_reward_accuracy
    text += f", the base model's {before}" if before else ""
    builder.conditions.set(ConditionType.EVALUATED, True, "Evaluated", text)


def _change(metrics: MetricsStatus) -> str:
    improvement, error = number(metrics.improvement), number(metrics.improvement_error)
    return "" if improvement is None else f", {change_text(-improvement, error)}"


def succeeded_pod(attempt: Attempt) -> PodView | None:
    """Return the pod that completed a Job, the first of several, or None if it is gone."""
    return next((pod for pod in reversed(attempt.pods) if pod.phase == "Succeeded" and not pod.index), None)


def result_of(attempt: Attempt) -> RunResult | None:
    """Return the result of a complete Job, or None if the pod or its termination message is gone."""
    pod = succeeded_pod(attempt)
    return parse_result(pod.termination_message) if pod is not None else None


def published(snapshot: Snapshot, attempt: Attempt | None) -> RunResult | None:
    """Return the result of a Job that published what its kind publishes, or None."""
    result = result_of(attempt) if attempt is not None else None
    return result if result is not None and getattr(result, snapshot.running.result) is not None else None


def needs_report(snapshot: Snapshot) -> bool:
    """Return whether a complete Job's result is unknown, so that a report Job must read it from the bucket.

    True while the report Job runs, too; if its own termination message is gone, it is created again.
    """
    main, report = snapshot.main, snapshot.report
    if main is None or not main.job.complete or published(snapshot, main) is not None:
        return False
    return report is None or (report.job.failed_reason is None and result_of(report) is None)


def set_unservable(builder: StatusBuilder) -> None:
    """Add to the settings and to the result why no server can serve it, if so."""
    method = (builder.fields.get("resolved") or {}).get("method")
    for name in ("resolved", "adapter"):
        block = builder.fields.get(name)
        if block is None:
            continue
        problem = method_problem(method) or rank_problem(block.get("rank"), ENGINE_RANKS[-1])
        others = {field: value for field, value in block.items() if field != _FIELD}
        text = None if problem is None else f"{problem.message}. {problem.remedy.text}."
        builder.fields[name] = others if text is None else {**others, _FIELD: text}
