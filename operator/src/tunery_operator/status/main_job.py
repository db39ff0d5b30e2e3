"""Decide whether the main Job has succeeded or failed, and show until then whether it is queued, starts, or runs."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

from tunery_api.failures import Failure
from tunery_api.names import NODES_PORTS, nodes_service
from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.redact import redact
from tunery_api.status import ConditionStatus, ConditionType, Phase
from tunery_operator.observed.attempt import DISRUPTIONS, Attempt, attempt_numbers
from tunery_operator.observed.metadata import parse_time
from tunery_operator.observed.pod import PodView
from tunery_operator.status.attempts import end_reason
from tunery_operator.status.builder import StatusBuilder
from tunery_operator.status.conditions import (
    FINISHING,
    JOB_SUSPENDED,
    NOT_REPORTING,
    OUT_OF_TIME,
    POD_STARTED,
    STOPPING,
    WORKING_PHASES,
)
from tunery_operator.status.diagnosis import LOG_LOST, is_node_lost, job_failure, lost_node, of_role, pod_failure
from tunery_operator.status.queue import check_queue, is_queued, release_quota
from tunery_operator.status.reports import first_pod_succeeded, is_downloading, only_starts, publishes_alone
from tunery_operator.status.results import decide_result, record_checkpoint, record_progress, record_termination_message
from tunery_operator.status.retries import (
    PREVIOUS_ATTEMPT,
    attempt_name,
    ended_pod,
    ends_its_job,
    failed_too_often,
    failure_of_lost_pod,
    interruption_text,
    lost_root_cause,
    of_one_attempt,
    retries_used,
    root_cause_pod,
    same_end_twice,
)
from tunery_operator.status.snapshot import Snapshot
from tunery_operator.status.suspension import SAVES

_RUNNING: Final = ConditionType.RUNNING
_ENDING: Final = (STOPPING, OUT_OF_TIME)
REPORT_GRACE: Final = timedelta(seconds=120)
"""A pod sends its first report when Python has started, which took 63 seconds with a tenth of a CPU on a loaded node. A
pod without a report after this time cannot reach the operator."""
BACKOFF_GRACE: Final = timedelta(seconds=75)
"""The same, from the start of this leader: a pod without an answer retries once a minute."""
SILENCE_GRACE: Final = timedelta(minutes=2)
"""The same, from its last report: a pod reports every PROGRESS_EVERY_SECONDS."""
_RESULT: Final = "Its result does not depend on these reports"
RENDEZVOUS_GRACE: Final = timedelta(minutes=2)
"""Time in which the pods of several nodes connect, once all run; longer with a large model or a download."""
_CAUSE_IN_LOG: Final = frozenset({FailureReason.INTERNAL_ERROR, FailureReason.RETRIES_EXHAUSTED})
"""Failures whose cause only the pod's log shows."""
_NOT_RETRIED: Final = FailureReason.DISK_FULL
"""A Job has no rule to end for it, but another attempt would meet the same limit."""


def check_main_job(builder: StatusBuilder) -> bool:
    """Show the train or merge Job; return True once it has ended."""
    attempt = builder.snapshot.main
    if attempt is None:
        show_missing_job(builder)
        return False
    job = attempt.job
    builder.put(jobName=job.name, queue=job.queue)
    check_queue(builder, job)
    record_progress(builder)
    if job.complete or (job.failed_reason is not None and first_pod_succeeded(attempt)):
        decide_result(builder, attempt)
        return True
    if job.failed_reason is not None:
        record_termination_message(builder, attempt)
        found, exit_code = _failed(builder, attempt)
        builder.fail(found, ended=_ended_at(builder, attempt), exit_code=exit_code)
        return True
    record_checkpoint(builder, attempt.last)
    hopeless = _repeated_failure(builder, attempt)
    if hopeless is not None:
        pod = ended_pod(builder.fields, attempt)
        builder.fail(hopeless, ended=_ended_at(builder, attempt), exit_code=pod.exit_code if pod is not None else None)
        return True
    show_pod(builder, attempt)
    return False


def _failed(builder: StatusBuilder, attempt: Attempt) -> tuple[Failure, int | None]:
    """Return why a Job has failed, and its last exit code; the history has the end of a pod that is gone."""
    lost = lost_root_cause(builder.fields, attempt)
    if lost is not None and attempt.job.failed_reason != "DeadlineExceeded":
        return failure_of_lost_pod(attempt.job, lost, int(builder.fields.get("attempts") or 1)), None
    return job_failure(attempt, builder.snapshot.platform, root_cause_pod(builder.fields, attempt), builder.fields)


def _ended_at(builder: StatusBuilder, attempt: Attempt) -> datetime | None:
    lost = lost_root_cause(builder.fields, attempt)
    if lost is not None:
        return parse_time(lost["endTime"])
    pod = ended_pod(builder.fields, attempt) or attempt.last
    return (pod.finished_at if pod is not None else None) or attempt.job.ended_at


def _repeated_failure(builder: StatusBuilder, attempt: Attempt) -> Failure | None:
    """Return why another attempt would fail in the same way, or None."""
    if publishes_alone(builder.snapshot, attempt) or first_pod_succeeded(attempt):
        return None
    pod = ended_pod(builder.fields, attempt)
    return _would_repeat(builder, attempt, pod) if pod is not None and pod.finished else None


def _would_repeat(builder: StatusBuilder, attempt: Attempt, pod: PodView) -> Failure | None:
    """Return the failure of a pod that another attempt would repeat, or None."""
    if end_reason(pod, builder.snapshot, builder.conditions) in DISRUPTIONS:
        return None
    found = pod_failure(pod)
    if found.reason == _NOT_RETRIED:
        return of_role(found, attempt.job.role)
    out_of_memory = FailureReason.OUT_OF_MEMORY
    if found.reason == out_of_memory and same_end_twice(builder.fields, attempt.pods, out_of_memory.value):
        twice = found.model_copy(update={"message": f"{found.message}, for the second time in a row"})
        return of_role(twice, attempt.job.role)
    if attempt.job.nodes > 1 and failed_too_often(builder.fields, attempt):
        found = _failed(builder, attempt)[0]
        # The Job is deleted, and its pods with their logs.
        return found.model_copy(update={"remedies": list(LOG_LOST)}) if found.reason in _CAUSE_IN_LOG else found
    return None


# What a Job that has not ended does


def show_missing_job(builder: StatusBuilder) -> None:
    """Show that there is no Job; the pods of an earlier Job may still end."""
    release_quota(builder)
    builder.put(pods=None)
    record_progress(builder)
    for pod in builder.snapshot.leftovers:
        record_checkpoint(builder, pod)
    leftover = next((pod for pod in builder.snapshot.leftovers if not pod.finished), None)
    if leftover is not None:
        _show_stopping(builder, leftover)
    elif builder.conditions.status(_RUNNING) is not None:
        builder.conditions.set(_RUNNING, False, "Stopped", "there is no Job")


def show_pod(builder: StatusBuilder, attempt: Attempt) -> None:
    """Show what the pods of a Job that has not ended do, or what they wait for."""
    pod, job = attempt.last, attempt.job
    builder.put(pods=f"{attempt.running}/{job.nodes}" if job.nodes > 1 else None)
    now = builder.snapshot.now
    stopping = [each for each in attempt.newest if each.running and (each.deleting or is_node_lost(each, now))]
    lost = next((each for each in stopping if is_node_lost(each, now)), None)
    failed = next((each for each in attempt.newest if each.exit_code == ExitCode.USER_ERROR), None)
    if pod is not None and publishes_alone(builder.snapshot, attempt):
        _show_activity(builder, pod, attempt)
    elif pod is not None and first_pod_succeeded(attempt) and lost is None:
        # The Job is complete once the others have ended; they are terminating.
        _show_ended_pod(builder, attempt, pod)
    elif stopping and failed is not None and lost is None:
        # The Job controller ends the others, which can take time.
        _show_ended_pod(builder, attempt, failed)
    elif stopping:
        count_text = f"{len(stopping)} of {job.nodes} pods are terminating" if stopping[1:] else ""
        _show_stopping(builder, lost or stopping[0], count_text)
    elif pod is not None and attempt.together and of_one_attempt(builder.fields, attempt):
        _show_activity(builder, pod, attempt)
    elif job.suspend:
        _show_suspended(builder, attempt)
    else:
        _show_waiting(builder, attempt)


def _show_activity(builder: StatusBuilder, pod: PodView, attempt: Attempt) -> None:
    nodes = attempt.job.nodes
    suffix = f" (the first of {nodes} pods)" if nodes > 1 else ""
    reason, text = _activity(builder, pod), f"pod {pod.name} on node {pod.node}{suffix}"
    silent = _show_reporting(builder, pod)
    if silent and reason == POD_STARTED:
        reason = NOT_REPORTING
    if reason == NOT_REPORTING:
        text = f"{text} runs, but has sent no report; its log shows what it does"
    report = builder.snapshot.progress
    if report is not None and builder.snapshot.reporter == pod.uid and report.doing:
        text = f"{text} {'is ' if is_downloading(report) else ''}{report.doing}"
    elif reason == POD_STARTED and nodes > 1:
        text = f"{text} starts: it loads what it needs, and then begins with the others"
    if reason in (POD_STARTED, NOT_REPORTING) and nodes > 1:
        text = f"{text}{_rendezvous_problem(builder, attempt)}"
    builder.conditions.set(_RUNNING, True, reason, text)


def _rendezvous_problem(builder: StatusBuilder, attempt: Attempt) -> str:
    """Return what may block the connection of pods that should have begun, as the end of a sentence."""
    last = max((pod.started_at for pod in attempt.newest if pod.started_at is not None), default=None)
    if last is None or builder.snapshot.now < last + RENDEZVOUS_GRACE:
        return ""
    ports, minutes = ", ".join(map(str, NODES_PORTS)), RENDEZVOUS_GRACE.seconds // 60
    return (
        f". All of them have run for {minutes} minutes: if their logs show nothing new, they may not reach each other. "
        f"Let each resolve the names of Service {nodes_service(builder.snapshot.owner.uid)}, and "
        f"allow TCP {ports} and further ports between them (docs/operations.md#several-nodes)"
    )


def _show_reporting(builder: StatusBuilder, pod: PodView) -> bool:
    """Show whether the running pod reports, once that is known; return True if it should have and has not."""
    snapshot, reported = builder.snapshot, ConditionType.PROGRESS_REPORTED
    if pod.reports_to is None or snapshot.taking_reports_since is None:
        builder.conditions.drop(reported)
        return False
    silence = seconds_until_silent(snapshot)
    silent = silence is not None and silence <= 0
    has_reported = snapshot.reporter == pod.uid or _reported_before_restart(snapshot, pod)
    if has_reported and not silent:
        builder.conditions.set(reported, True, reported.value, f"pod {pod.name} reports")
        return False
    if snapshot.status.get("podName") != pod.name:
        # It was about an earlier attempt.
        builder.conditions.drop(reported)
    previous = builder.conditions.status(reported)
    is_news = previous is None or previous == ConditionStatus.TRUE or snapshot.certificate_fault is not None
    if silent and is_news:
        text = _silence_text(pod, snapshot.certificate_fault, has_reported=has_reported)
        builder.conditions.set(reported, False, NOT_REPORTING, text)
    return builder.conditions.is_false(reported)


def _reported_before_restart(snapshot: Snapshot, pod: PodView) -> bool:
    """Return whether the pod reported before the operator's restart, by the status.

    Later reports are attributed by `reporter`: a late report of the previous pod is not about this one.
    """
    if snapshot.progress is not None or pod.started_at is None:
        return False
    last_report = parse_time((snapshot.status.get("progress") or {}).get("lastUpdateTime"))
    return last_report is not None and last_report > pod.started_at


def _silence_text(pod: PodView, fault: str | None, *, has_reported: bool) -> str:
    """Return why a pod does not report, or no longer does, and what to do."""
    log = f"kubectl logs {pod.name} -n {pod.namespace} says why a report could not be sent, and how far it is"
    if fault is not None:
        since = "has stopped reporting" if has_reported else "has run for two minutes and has reported nothing"
        return (
            f"pod {pod.name} {since}: it cannot trust the certificate of the operator's endpoint: {fault}. Ask "
            f"a cluster admin to correct progress.certificate in the chart's values; {log}. {_RESULT}"
        )
    if has_reported:
        return (
            f"pod {pod.name} has stopped reporting: {log}. If the operator's certificate was replaced, pods that start "
            f"from now on report again. {_RESULT}"
        )
    url = urlsplit(pod.reports_to or "")
    service = ".".join((url.hostname or "").split(".")[:2])
    return (
        f"pod {pod.name} has run for two minutes and has reported nothing. Allow TCP {url.port or 443} from it to "
        f"Service {service}: a NetworkPolicy, a mesh or a firewall may block it; {log}. {_RESULT}"
    )


def seconds_until_silent(snapshot: Snapshot) -> float | None:
    """Return the seconds until the running pod should have reported; None if no report is expected."""
    pod, since = snapshot.main.last if snapshot.main is not None else None, snapshot.taking_reports_since
    if pod is None or since is None or pod.reports_to is None:
        return None
    if not pod.running or pod.deleting or pod.started_at is None:
        return None
    reports = snapshot.reporter == pod.uid
    if reports and snapshot.reported_at is not None:
        return (snapshot.reported_at + SILENCE_GRACE - snapshot.now).total_seconds()
    return (max(pod.started_at + REPORT_GRACE, since + BACKOFF_GRACE) - snapshot.now).total_seconds()


def _show_stopping(builder: StatusBuilder, pod: PodView, several: str = "") -> None:
    if is_node_lost(pod, builder.snapshot.now):
        found = lost_node(pod)
        builder.show_blocker(found)
        builder.conditions.set(_RUNNING, None, str(found.reason), found.message)
    elif pod.running and pod.deleting:
        before = SAVES if builder.snapshot.definition.has_status_field("checkpoint") else ""
        text = f"{several or f'pod {pod.name} on node {pod.node} is terminating'}{before}"
        builder.conditions.set(_RUNNING, True, STOPPING, text)
    elif pod.running:
        ends = f"kubectl delete pod {pod.name} -n {pod.namespace} ends it"
        text = f"pod {pod.name} on node {pod.node} still runs without its Job; {ends}"
        builder.conditions.set(_RUNNING, True, _activity(builder, pod), text)
    else:
        builder.conditions.set(_RUNNING, False, STOPPING, f"pod {pod.name} is terminating")


def _show_suspended(builder: StatusBuilder, attempt: Attempt) -> None:
    """Show what suspends a Job: the user, a queue, or another client."""
    pod, job = next((each for each in attempt.newest if not each.finished), None), attempt.job
    if pod is not None:
        _show_stopping(builder, pod)
    elif is_queued(job):
        builder.conditions.set(_RUNNING, False, "Queued", f"Job {job.name} waits in queue {job.queue}")
    elif builder.snapshot.suspend or job.suspended_by_us:
        builder.conditions.set(_RUNNING, False, "Stopped", "the Job is suspended and has no pod")
    else:
        text = f"Job {job.name} was suspended by another client; it resumes once its spec.suspend is false"
        builder.conditions.set(_RUNNING, False, JOB_SUSPENDED, text)


def _show_waiting(builder: StatusBuilder, attempt: Attempt) -> None:
    pod, job, lost = ended_pod(builder.fields, attempt), attempt.job, lost_root_cause(builder.fields, attempt)
    found = builder.blocker(attempt)
    if found is not None:
        builder.show_blocker(_with_previous_attempt(builder, attempt, found))
        builder.conditions.set(_RUNNING, False, str(found.reason), found.message)
    elif lost is not None and job.nodes > 1 and lost["reason"] in DISRUPTIONS:
        name, is_retried = attempt_name(lost["attempt"], lost["pod"]), not (job.lacks_first or job.lacks_another)
        text = interruption_text(name, lost["reason"], is_retried=is_retried)
        builder.conditions.set(_RUNNING, False, lost["reason"], text)
    elif pod is not None and not (attempt.running and pod.exit_code == ExitCode.PEER_LOST):
        _show_ended_pod(builder, attempt, pod)
    elif attempt.running:
        ends = (
            f", and {attempt.last.name}, of the previous attempt, is terminating"
            if attempt.together and attempt.last
            else ""
        )
        builder.conditions.set(_RUNNING, False, "Starting", f"{attempt.running} of {job.nodes} pods run{ends}")
    else:
        pods = "pods" if job.nodes > 1 else "pod"
        builder.conditions.set(_RUNNING, False, "Starting", f"Job {job.name} waits for its {pods} to start")


def _with_previous_attempt(builder: StatusBuilder, attempt: Attempt, found: Failure) -> Failure:
    """Return what blocks the next attempt, with how the previous attempt failed."""
    ended = root_cause_pod(builder.fields, attempt) if lost_root_cause(builder.fields, attempt) is None else None
    if ended is None or end_reason(ended, builder.snapshot, builder.conditions) in DISRUPTIONS:
        return found
    before = pod_failure(ended)
    text = f"failed{_retries_used_text(builder, attempt)}: {before.reason}: {before.message}"
    return found.model_copy(update={"facts": {**found.facts, PREVIOUS_ATTEMPT: redact(text)}})


def _retries_used_text(builder: StatusBuilder, attempt: Attempt) -> str:
    """Return how many retries are used up, to follow "failed"; empty if unknown."""
    used = retries_used(builder.fields, attempt)
    return f" ({used} of {attempt.job.retries} retries used)" if used is not None else ""


def _show_ended_pod(builder: StatusBuilder, attempt: Attempt, pod: PodView) -> None:
    # The container ends a moment before its pod does.
    if pod.phase == "Succeeded" or pod.exit_code == 0:
        builder.conditions.set(_RUNNING, False, FINISHING, f"pod {pod.name} has succeeded")
        return
    found = pod_failure(pod)
    number = attempt_numbers(builder.fields).get(pod.uid, builder.fields.get("attempts", 1))
    name = attempt_name(number, None if pod.index is None else pod.name)
    if ends_its_job(builder, attempt, pod) or _would_repeat(builder, attempt, pod) is not None:
        text = f"{name} failed, and is not retried: {found.reason}: {found.message}"
        _show_final_attempt(builder, f"{text}; Job {pod.job} ends" if pod.job else text)
        return
    how = end_reason(pod, builder.snapshot, builder.conditions)
    if how in DISRUPTIONS:
        builder.conditions.set(_RUNNING, False, how, interruption_text(name, how))
        return
    text = f"{name} failed{_retries_used_text(builder, attempt)}: {found.reason}: {found.message}"
    builder.conditions.set(_RUNNING, False, "AttemptFailed", text)


def _show_final_attempt(builder: StatusBuilder, text: str) -> None:
    """Show the end of the last attempt; the phase stays until the Job has ended, seconds later."""
    reason = builder.conditions.reason(_RUNNING)
    if builder.conditions.is_true(_RUNNING) and reason:
        builder.conditions.set(_RUNNING, True, reason, text)
    else:
        builder.conditions.set(_RUNNING, False, "Starting", text)


def _activity(builder: StatusBuilder, pod: PodView) -> str:
    """Return the reason of Running=True: the phase that this pod reports, or reported before the operator's restart."""
    report = builder.snapshot.progress if builder.snapshot.reporter == pod.uid else None
    if report is None:
        known = builder.conditions.reason(_RUNNING)
        is_same_pod = builder.conditions.is_true(_RUNNING) and builder.snapshot.status.get("podName") == pod.name
        return known if is_same_pod and known and known not in _ENDING else POD_STARTED
    if is_downloading(report):
        return Phase.DOWNLOADING.value
    if only_starts(report):
        return POD_STARTED
    if report.phase is Phase.SUCCEEDED:
        # It has succeeded only when its Job is complete and the published files were read back.
        return Phase.UPLOADING.value
    # A pod does not report that its object has ended or waits.
    return (report.phase if report.phase in WORKING_PHASES else builder.snapshot.running.working_phase).value
