"""Find the pod that made an attempt fail and whether another attempt follows, and give a reopened object its status.

The annotation for a retry is handled in controllers/after_finish.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from tunery_api.failures import Failure
from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.remedies import edit, retry
from tunery_api.status import ConditionType, Phase
from tunery_operator.observed.attempt import (
    DISRUPTIONS,
    ENDS_WITHOUT_FAULT,
    EVICTED,
    NOT_NEEDED,
    PEER_ABORTED,
    POD_DELETED,
    SUCCEEDED,
    Attempt,
    attempt_numbers,
    attempts,
    cause_of,
    first_ended,
    is_failure,
    last_cause,
    newest_attempt,
)
from tunery_operator.observed.job import JobView
from tunery_operator.observed.metadata import parse_time, retry_mark
from tunery_operator.observed.pod import PodView
from tunery_operator.status.attempts import end_reason, listed_since
from tunery_operator.status.builder import StatusBuilder
from tunery_operator.status.diagnosis import LOG_LOST, failure, of_role

_UNCERTAIN: Final = ENDS_WITHOUT_FAULT - {EVICTED, SUCCEEDED, NOT_NEEDED}
"""Ends that the Job controller may or may not count as a retry."""
_DELETED: Final = (
    retry("Find what deletes its pods; use suspend to pause a job, and kubectl drain to empty a node"),
    edit("Raise retries, as each deletion counts as a retry", "retries"),
)
_FIELDS_CLEARED_BY_RETRY: Final = ("failure", "reason", "completionTime", "rejectedAdapter", "podName")
_CONDITIONS_CLEARED_BY_RETRY: Final = frozenset(
    type_.value
    for type_ in (ConditionType.FAILED, ConditionType.RUNNING, ConditionType.FINISHED, ConditionType.STALLED)
)
PREVIOUS_ATTEMPT: Final = "previousAttempt"
"""The key in the facts of a blocker that holds how the previous attempt failed."""


def lost_root_cause(status: Mapping[str, Any], attempt: Attempt) -> Mapping[str, Any] | None:
    """Return the entry of the pod that ended the last attempt of a Job, if that pod is gone, else None."""
    cause = last_cause(status)
    if cause is None or cause["startTime"] < attempt.job.created or cause["uid"] in {pod.uid for pod in attempt.pods}:
        return None
    later = any(pod.finished and pod.started_at is None and pod.created > cause["startTime"] for pod in attempt.pods)
    return None if later else cause


def root_cause_pod(status: Mapping[str, Any], attempt: Attempt) -> PodView | None:
    """Return the pod that made the latest attempt fail, if it still exists; for one node the latest failed pod.

    A pod without an entry failed before its container started.
    """
    if attempt.job.nodes == 1:
        return attempt.last_failed
    cause = first_ended(newest_attempt(status)) or {"uid": None}
    found = next((pod for pod in attempt.pods if pod.uid == cause["uid"] and not _ended_well(pod)), None)
    never_ran = (pod for pod in attempt.newest if pod.failed and pod.started_at is None)
    return found or next(never_ran, None)


def ended_pod(status: Mapping[str, Any], attempt: Attempt) -> PodView | None:
    """Return the pod that ended the latest attempt, if no other pod follows it yet; for one node its latest pod."""
    if attempt.job.nodes == 1:
        pod = attempt.last
        return pod if pod is not None and (pod.finished or pod.finished_at is not None) else None
    found = root_cause_pod(status, attempt)
    return found if found in attempt.newest else None


def _ended_well(pod: PodView) -> bool:
    return pod.exit_code == ExitCode.OK or pod.phase == "Succeeded"


def same_end_twice(status: Mapping[str, Any], pods: Iterable[PodView], reason: str) -> bool:
    """Return whether the two newest attempts of a Job ended for `reason`; disruptions are ignored."""
    uids = {pod.uid for pod in pods}
    own = ([entry for entry in entries if entry["uid"] in uids] for entries in attempts(status))
    ends = [end for entries in own if (end := cause_of(entries)) is not None]
    return [end for end in ends if end not in DISRUPTIONS and end != PEER_ABORTED][-2:] == [reason, reason]


def of_one_attempt(status: Mapping[str, Any], attempt: Attempt) -> bool:
    """Return whether the running pods of a Job are of one attempt; False while an older one stores its checkpoint."""
    numbers = attempt_numbers(status)
    return len({numbers[pod.uid] for pod in attempt.newest if pod.running and pod.uid in numbers}) < 2


def failed_too_often(status: Mapping[str, Any], attempt: Attempt) -> bool:
    """Return whether more attempts of a Job of several pods have failed than its retries allow."""
    retries = attempt.job.retries
    return retries is not None and failed_attempts(status, attempt) > retries


def failed_attempts(status: Mapping[str, Any], attempt: Attempt) -> int:
    """Return how many attempts of a Job of several pods have failed. An attempt counts once, however many pods failed.

    Attempts that were dropped from the history are counted by their pods: each attempt has one pod of each index.
    """
    causes = [cause for entries in attempts(status) if (cause := first_ended(entries)) is not None]
    listed = [cause for cause in causes if cause["startTime"] >= attempt.job.created and is_failure(cause)]
    since = listed_since(status, status.get("attemptHistory") or ())
    pods_of_index, dropped_attempts = Counter[int | None](), set[int]()
    for pod in attempt.pods:
        pods_of_index[pod.index] += 1
        if since is not None and pod.started_at is not None and pod.started_at < since and _has_failed(pod):
            dropped_attempts.add(pods_of_index[pod.index])
    return len(listed) + len(dropped_attempts)


def _has_failed(pod: PodView) -> bool:
    """Return whether the end of a pod is a failure by the rules of its Job."""
    uses_no_retry = pod.deleting or pod.disruption is not None or pod.exit_code == ExitCode.PEER_LOST
    return pod.failed and not uses_no_retry


def ends_its_job(builder: StatusBuilder, attempt: Attempt, pod: PodView) -> bool:
    """Return whether no attempt follows this failed container, although its Job ends only some seconds later."""
    if pod.exit_code == ExitCode.USER_ERROR:
        return True
    retries = attempt.job.retries
    if attempt.job.nodes > 1:
        return failed_too_often(builder.fields, attempt)
    failed = [each for each in attempt.pods if each.failed or each.exit_code not in (None, 0)]
    counted = [each for each in failed if end_reason(each, builder.snapshot, builder.conditions) not in DISRUPTIONS]
    return pod in counted and retries is not None and len(counted) > retries


def retries_used(status: Mapping[str, Any], attempt: Attempt) -> int | None:
    """Return how many of its Job's retries the failed attempts use up, or None if that is uncertain.

    The Job controller also counts some pods that were deleted or suspended.
    """
    job, history = attempt.job, status.get("attemptHistory") or ()
    before, present = listed_since(status, history), {pod.uid for pod in attempt.pods}
    created, not_disrupted = parse_time(job.created), [pod for pod in attempt.pods if pod.disruption is None]
    if job.retries is None or (before is not None and created is not None and before > created):
        return None
    for entry in history:
        # The entries of earlier Jobs do not matter.
        end = entry.get("reason", SUCCEEDED) if entry["startTime"] >= job.created else SUCCEEDED
        known = end in DISRUPTIONS | {SUCCEEDED, NOT_NEEDED, PEER_ABORTED}
        if end in _UNCERTAIN or not (known or entry["uid"] in present):
            return None
    if any(pod.finished and pod.deleting and pod.exit_code != ExitCode.PEER_LOST for pod in not_disrupted):
        return None
    if job.nodes > 1:
        return failed_attempts(status, attempt)
    failed = sum(bool(pod.exit_code) or pod.failed for pod in not_disrupted)
    return failed if failed >= job.failed else None


def failure_of_lost_pod(job: JobView, entry: Mapping[str, Any], attempts: int) -> Failure:
    """Return why a Job has failed if the pod that ended its last attempt is gone, by its entry in the history."""
    pod, reason = entry["pod"], str(entry["reason"])
    if reason == POD_DELETED:
        where = f" (attempt {entry.get('attempt', attempts)})" if attempts > 1 else ""
        remedies, text = _DELETED, f"pod {pod} was deleted by another client{where}, and no retry is left"
    else:
        remedies, text = LOG_LOST, f"Job {job.name} failed ({job.failed_reason}: {job.failed_message}) and pod {pod}"
        text = f"{text} is gone; the last attempt's end: {reason}"
    return of_role(failure(FailureReason.RETRIES_EXHAUSTED, text, *remedies), job.role)


def requested_retry(status: Mapping[str, Any], retry: str | None) -> str | None:
    """Return the new status.observedRetry if a retry is requested, else None."""
    mark = retry_mark(retry)
    return None if mark == status.get("observedRetry") else mark


def rejects_retry(phase: str, *, of_trial: bool) -> bool:
    """Return whether a requested retry of an ended object is acknowledged, and nothing starts again."""
    return of_trial or phase != Phase.FAILED.value


def reopened(status: Mapping[str, Any], retry: str | None) -> dict[str, Any] | None:
    """Return the status of a Failed object whose retry is requested, else None.

    Preflight, inputs, checkpoint, attempts and their GPU time stay.
    """
    mark = requested_retry(status, retry)
    if status.get("phase") != Phase.FAILED.value or mark is None:
        return None
    fields = {name: value for name, value in status.items() if name not in _FIELDS_CLEARED_BY_RETRY}
    conditions = [c for c in status.get("conditions") or () if not _is_reset(c)]
    if "trials" in fields:
        # Failed trials from before this retry no longer count against the sweep.
        fields["forgiven"] = 1 + max((row["number"] for row in fields["trials"]), default=-1)
        fields.pop("endReason", None)
        if not any("value" in row for row in fields["trials"]):
            # No trial was measured: the data itself may have been corrected.
            fields.pop("trialInputs", None)
    return {**fields, "conditions": conditions, "observedRetry": mark, "phase": Phase.PENDING.value}


def _is_reset(condition: Mapping[str, Any]) -> bool:
    # A condition that is False explains why something has not happened yet, which the retry may change.
    return condition["type"] in _CONDITIONS_CLEARED_BY_RETRY or condition["status"] == "False"


def attempt_name(number: int, pod: str | None) -> str:
    """Return the name of an attempt in a message, with its pod if there are several."""
    return f"attempt {number}" if pod is None else f"attempt {number}, pod {pod},"


def interruption_text(attempt: str, why: str, *, is_retried: bool = True) -> str:
    """Return the message of an attempt that was ended from outside; `attempt` is its name."""
    # Of these ends the Job controller counts only a deletion.
    counted = ", which counts as a retry" if why == POD_DELETED and is_retried else ""
    return f"{attempt} was ended: {why}{counted}; {'the next attempt continues' if is_retried else 'no retry is left'}"
