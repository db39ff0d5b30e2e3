"""Decide whether an object stops for good, by its spec or by its deadline, and show the stop in its status."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tunery_api.lorajob import OnStop
from tunery_api.reasons import FailureReason
from tunery_api.redact import redact
from tunery_api.runspec import RunResult
from tunery_api.status import ConditionStatus, ConditionType
from tunery_operator.observed.attempt import Attempt
from tunery_operator.status.builder import StatusBuilder
from tunery_operator.status.conditions import PUBLISHING, STOPPING
from tunery_operator.status.deadline import deadline_left
from tunery_operator.status.diagnosis import job_failure
from tunery_operator.status.findings import close_checks
from tunery_operator.status.main_job import show_missing_job, show_pod
from tunery_operator.status.reports import steps_fields
from tunery_operator.status.results import (
    forget_checkpoint,
    published,
    record_checkpoint,
    record_progress,
    record_termination_message,
    succeeded_pod,
    take_published,
    take_result,
)
from tunery_operator.status.snapshot import Snapshot
from tunery_operator.status.suspension import terminating

REQUESTED: Final = "StopRequested"
"""Reason of Stopped where spec.stop is set."""
_TOO_LONG: Final = "its pods had run for as long as spec.activeDeadlineSeconds allowed"
"""Without the number, which may have changed since."""
_STOPPED: Final = ConditionType.STOPPED
_NOTHING_USABLE: Final = frozenset({FailureReason.NOT_IMPROVED.value, FailureReason.CHECKPOINT_MISSING.value})
"""Why nothing is published at the output, without a fault."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A requested stop."""

    reason: str
    """StopRequested or DeadlineExceeded."""
    why: str
    publishes: bool
    """Whether the weights so far are published, if there are any."""


def stop_of(snapshot: Snapshot) -> Stop | None:
    """Return why an object that has not ended must stop for good; None: it continues.

    None also if the Job is complete or the object was deleted. A stop by the deadline that has begun continues even if
    the deadline is raised.
    """
    if snapshot.blocking_finalizers or (snapshot.main is not None and snapshot.main.job.complete):
        return None
    if snapshot.stop is not None:
        publishes = snapshot.on_stop != OnStop.DISCARD.value and _has_trained(snapshot)
        return Stop(REQUESTED, snapshot.stop, publishes)
    if snapshot.on_stop != OnStop.PUBLISH.value:
        return None
    left = deadline_left(snapshot)
    if not _stop_has_begun(snapshot) and (left is None or left > 0):
        return None
    return Stop(FailureReason.DEADLINE_EXCEEDED.value, _TOO_LONG, _has_trained(snapshot))


def _has_trained(snapshot: Snapshot) -> bool:
    """Return whether any pod started that may have stored a checkpoint."""
    status = snapshot.status
    pods = [*snapshot.leftovers, *(snapshot.main.pods if snapshot.main is not None else ())]
    started = any(pod.started_at for pod in pods) or any(pod.started_at for pod in snapshot.lost_pods)
    return started or bool(status.get("attempts") or status.get("checkpoint"))


def _stop_has_begun(snapshot: Snapshot) -> bool:
    conditions = snapshot.status.get("conditions") or ()
    stopping = (ConditionType.STOPPED.value, ConditionStatus.FALSE.value)
    return any((condition["type"], condition["status"]) == stopping for condition in conditions)


def check_stop(builder: StatusBuilder) -> bool:
    """Follow an object that is being stopped to its end; True: the checks that follow are skipped."""
    stop = stop_of(builder.snapshot)
    if stop is None:
        builder.conditions.drop(_STOPPED)
        return False
    _show_main(builder)
    pending = next(terminating(builder.snapshot), None)
    if pending is not None:
        builder.conditions.set(_STOPPED, False, STOPPING, f"{stop.why}; {pending}")
    elif stop.publishes:
        _check_publishing(builder, stop)
    else:
        _end_without_adapter(builder, stop, _nothing_published_text(builder), _last_step(builder))
    return True


def _end(builder: StatusBuilder, stop: Stop, text: str, ended: datetime | None = None) -> None:
    close_checks(builder)
    builder.end_stopped(stop.reason, f"{stop.why}; {text}", ended)


def _end_without_adapter(builder: StatusBuilder, stop: Stop, text: str, step: int | None) -> None:
    """End without an adapter at the output, with the last step if it is known."""
    if step is None:
        _end(builder, stop, text)
        return
    _show_last_step(builder, step)
    _end(builder, stop, f"stopped after step {step}; {text}")


def _last_step(builder: StatusBuilder) -> int | None:
    """Return the last step of the reports and checkpoints; None if there is none."""
    steps = [(builder.fields.get(name) or {}).get("step") for name in ("progress", "checkpoint")]
    return max((step for step in steps if step is not None), default=None)


def _nothing_published_text(builder: StatusBuilder) -> str:
    sweep = builder.snapshot.owner.sweep
    if builder.fields.get("attempts") and sweep is not None:
        return f"nothing is published, and its checkpoints stay until LoRASweep {sweep} has published its best"
    if builder.fields.get("attempts"):
        uri = (builder.fields.get("checkpoint") or {}).get("uri")
        newest = f", the latest at {uri}" if uri else ""
        return f"spec.onStop is Discard: nothing is published, and its checkpoints stay{newest}"
    return "no pod had begun to train, so there is nothing to publish"


def _show_main(builder: StatusBuilder) -> None:
    attempt = builder.snapshot.main
    if attempt is None:
        show_missing_job(builder)
        return
    record_progress(builder)
    record_checkpoint(builder, attempt.last)
    if not attempt.job.finished:
        show_pod(builder, attempt)


def _check_publishing(builder: StatusBuilder, stop: Stop) -> None:
    attempt = builder.snapshot.publishing
    if attempt is None:
        _set_stopping(builder, stop, f"a Job will {_publishing_text(builder)}")
    elif attempt.job.complete:
        _check_published(builder, stop, attempt)
    elif attempt.job.failed_reason is not None:
        _check_unpublished(builder, stop, attempt)
    else:
        _show_publishing(builder, stop, attempt)


def _show_publishing(builder: StatusBuilder, stop: Stop, attempt: Attempt) -> None:
    found = builder.blocker(attempt) if not attempt.job.suspend else None
    text = f"Job {attempt.job.name} will {_publishing_text(builder)}"
    if found is None:
        _set_stopping(builder, stop, text)
        return
    builder.show_blocker(found)
    _set_stopping(builder, stop, f"{text}, and its pod does not run yet: {found.message}", str(found.reason))


def _publishing_text(builder: StatusBuilder) -> str:
    """Return what the publishing Job does: there may be a checkpoint that no pod has reported."""
    step = (builder.fields.get("checkpoint") or {}).get("step")
    if step is None:
        return "check whether a checkpoint was stored, as none was reported, and publish its best weights"
    return f"publish the best weights of the latest checkpoint, of step {step}"


def _set_stopping(builder: StatusBuilder, stop: Stop, text: str, reason: str = PUBLISHING) -> None:
    builder.conditions.set(_STOPPED, False, reason, f"{stop.why}; {text}")


def _check_published(builder: StatusBuilder, stop: Stop, attempt: Attempt) -> None:
    pod, result, name = succeeded_pod(attempt), published(builder.snapshot, attempt), attempt.job.name
    if pod is None:
        _set_stopping(
            builder, stop, f"the pod of Job {name} is gone, and its termination message with it; it runs again"
        )
    elif result is None:
        builder.fail_for(
            FailureReason.INTERNAL_ERROR, f"pod {pod.name} succeeded, but does not report what it published"
        )
    else:
        take_result(builder, result)
        text = take_published(builder, result)
        forget_checkpoint(builder, result)
        ended = pod.finished_at or attempt.job.ended_at
        if result.stopped_after_step is None:
            # Its last pod had published the complete run before the stop.
            builder.succeed(text, ended)
        else:
            _show_last_step(builder, result.stopped_after_step)
            _end(builder, stop, f"{_stopped_after_text(result)}, {text}", ended)


def _show_last_step(builder: StatusBuilder, step: int) -> None:
    """Show the last step: the last report may be a step older than the pod's end."""
    builder.merge("stopped", {"afterStep": step})
    total = (builder.fields.get("progress") or {}).get("totalSteps")
    builder.merge("progress", steps_fields(step, total) if total else None)


def _stopped_after_text(result: RunResult) -> str:
    loss = result.metrics.eval_loss if result.metrics is not None else None
    measured = f"evaluation loss {loss}" if loss is not None else "evaluation loss not measured"
    of = next((each.step for each in reversed(result.evaluations or []) if each.loss == loss), None)
    # The best evaluated weights are published, not the last ones.
    older = f" of the weights of step {of}" if of not in (None, result.stopped_after_step) else ""
    return f"stopped after step {result.stopped_after_step}, {measured}{older}"


def _check_unpublished(builder: StatusBuilder, stop: Stop, attempt: Attempt) -> None:
    """End without an adapter: as stopped if the user requested it and nothing was worth publishing, else as failed."""
    result = record_termination_message(builder, attempt)
    found, exit_code = job_failure(attempt, builder.snapshot.platform)
    if str(found.reason) not in _NOTHING_USABLE:
        text = f"{stop.why}; what was trained could not be published: {found.message}"
        builder.fail(found.model_copy(update={"message": redact(text)}), exit_code=exit_code)
    elif stop.reason == REQUESTED:
        step = result.stopped_after_step if result is not None else None
        _end_without_adapter(builder, stop, found.message, _last_step(builder) if step is None else step)
    else:
        builder.fail_for(FailureReason.DEADLINE_EXCEEDED, f"{stop.why}; {found.message}")
