"""Why a pod does not run, or ended badly: pods in, failures out."""

from __future__ import annotations

from typing import Any, Final

from pydantic import ValidationError

from tunery_api.reasons import FailureReason, advice_for
from tunery_api.runspec import Failure, PreflightReport, RunResult
from tunery_api.scrub import scrub
from tunery_operator.status.podview import PodView
from tunery_operator.status.snapshot import Attempt

_R = FailureReason
_IMAGE_REASONS: Final = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
_CONFIG_REASONS: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_LOST_NODE: Final = frozenset({"DeletionByTaintManager", "DeletionByPodGC"})


def obstacle(pod: PodView) -> Failure | None:
    """Return why a pod does not start, or None while nothing stands in its way; it may pass by itself."""
    if pod.finished:
        return None
    if pod.waiting_reason in _IMAGE_REASONS:
        return _failure(_R.IMAGE_PULL_FAILED, f"{pod.waiting_reason}: {pod.waiting_message or 'no further detail'}")
    if pod.waiting_reason in _CONFIG_REASONS:
        return _failure(_R.CONTAINER_REFUSED, f"{pod.waiting_reason}: {pod.waiting_message or 'no further detail'}")
    if pod.unschedulable is not None:
        return _failure(_R.UNSCHEDULABLE, f"no node fits: {pod.unschedulable}")
    if pod.status_reason == "NodeLost" or pod.disruption in _LOST_NODE:
        return _failure(_R.NODE_LOST, f"node {pod.node} of pod {pod.name} is lost")
    return None


def parse_report(message: str) -> PreflightReport | None:
    """Return the report in a preflight container's termination message, or None for any other text."""
    try:
        return PreflightReport.model_validate_json(message)
    except ValidationError:
        return None


def parse_result(message: str) -> RunResult | None:
    """Return the result in a train or merge container's termination message, or None for any other text."""
    try:
        return RunResult.model_validate_json(message)
    except ValidationError:
        return None


def pod_failure(pod: PodView) -> Failure:
    """Return why a pod failed: what the container said, else what Kubernetes says."""
    return _reported(pod) or _observed(pod)


def _reported(pod: PodView) -> Failure | None:
    answer = parse_report(pod.termination_message) or parse_result(pod.termination_message)
    if answer is None or answer.failure is None:
        return None
    failure = answer.failure
    return _failure(failure.reason, failure.message, failure.hint)


def _observed(pod: PodView) -> Failure:
    if pod.status_reason == "NodeLost" or pod.disruption in _LOST_NODE:
        return _failure(_R.NODE_LOST, f"node {pod.node} of pod {pod.name} was lost")
    if pod.exit_reason == "OOMKilled":
        return _failure(_R.OUT_OF_MEMORY, f"pod {pod.name} was killed for using more memory than its limit")
    if pod.status_reason == "Evicted" and pod.disruption == "TerminationByKubelet":
        text = f"pod {pod.name} was evicted: it used more disk than it asked for, or its node ran out"
        return _failure(_R.DISK_FULL, text)
    if pod.exit_code == 137 and pod.disruption is None and not pod.deleting:
        return _failure(_R.OUT_OF_MEMORY, f"pod {pod.name} was killed (exit 137), most likely for too much memory")
    return _failure(_R.INTERNAL_ERROR, _exit_text(pod))


def _exit_text(pod: PodView) -> str:
    if pod.exit_code is None:
        return f"pod {pod.name} failed before its container started: {pod.status_reason or 'no reason given'}"
    said = pod.termination_message.strip()
    return f"pod {pod.name} ended with exit code {pod.exit_code}" + (f": {said}" if said else " and said nothing")


def job_failure(attempt: Attempt, attempts: int) -> dict[str, Any]:
    """Return `status.failure` for a Job that has failed."""
    job, pod = attempt.job, _last_failed(attempt)
    if job.failed_reason == "DeadlineExceeded":
        text = f"the pods ran longer than spec.activeDeadlineSeconds ({job.active_deadline_seconds} s) in all"
        return failure_status(_failure(_R.DEADLINE_EXCEEDED, text))
    if pod is None:
        text = f"Job {job.name} failed ({job.failed_reason}: {job.failed_message}) and its pods are gone"
        return failure_status(_failure(_R.RETRIES_EXHAUSTED, text))
    failure = _reported(pod) or _exhausted(pod, attempts)
    counted = f"{failure.message} (attempt {attempts}, the last)" if attempts > 1 else failure.message
    return failure_status(_failure(failure.reason, counted, failure.hint), pod.exit_code)


def _exhausted(pod: PodView, attempts: int) -> Failure:
    """Return the observed failure; what says nothing of its own is called by the attempts it took."""
    failure = _observed(pod)
    if failure.reason is _R.INTERNAL_ERROR and attempts > 1:
        return _failure(_R.RETRIES_EXHAUSTED, failure.message)
    return failure


def _last_failed(attempt: Attempt) -> PodView | None:
    return next((pod for pod in reversed(attempt.pods) if pod.phase == "Failed"), attempt.last)


def failure_status(failure: Failure, exit_code: int | None = None) -> dict[str, Any]:
    """Return `status.failure`, with the advice that belongs to the reason."""
    status: dict[str, Any] = {
        "reason": str(failure.reason),
        "message": failure.message,
        "hint": failure.hint or advice_for(failure.reason).hint,
    }
    return status if exit_code is None else {**status, "exitCode": exit_code}


def _failure(reason: str, message: str, hint: str | None = None) -> Failure:
    return Failure(reason=reason, message=scrub(message), hint=scrub(hint) if hint else None)
