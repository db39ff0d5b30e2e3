"""Diagnose why a pod does not run or has failed, from the pod and its warning events."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tunery_api.failures import Failure, Subject, render_hint
from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.redact import redact
from tunery_api.remedies import MAX_REMEDY, Remedy, edit, recreate, retry
from tunery_api.runspec import Task
from tunery_operator.observed.attempt import Attempt, attempt_numbers, last_end
from tunery_operator.observed.event import ClusterWarning
from tunery_operator.observed.job import JobView
from tunery_operator.observed.metadata import parse_time
from tunery_operator.observed.pod import PodView
from tunery_operator.planning.platform_values import PlatformValues, with_platform_values
from tunery_operator.status.reports import interrupted_activity, reported_failure

NODE_GRACE: Final = timedelta(seconds=15)
"""Time after the end of a pod's grace period from which its node counts as lost."""

SCHEDULER_GRACE: Final = timedelta(seconds=20)
"""Time in which a scheduler writes a condition of a pod, if there is one of that name."""
_SCHEDULER: Final = (
    edit("Name a scheduler of the cluster in scheduling.schedulerName, or omit it", "scheduling.schedulerName"),
    retry("Check that this scheduler works"),
)
_CHECKS_SCHEDULER: Final = (retry("Check that the cluster's default scheduler works"),)
_CLAIM: Final = (retry("Create or bind the PersistentVolumeClaim that the message names"),)

FRESH: Final = timedelta(minutes=3)
"""The kubelet repeats a failing mount at least every two minutes: an older warning has expired."""
_EVER: Final = datetime.min.replace(tzinfo=UTC)

_R = FailureReason
IMAGE_REASONS: Final = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
CONFIG_REASONS: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_CHECKS: Final = frozenset(map(str, (Task.PREFLIGHT, Task.PUBLISH, Task.REPORT, Task.PUBLISH_BEST)))
"""Roles of the Jobs whose resources come from preflight.resources of the chart."""
_CHECKS_ROOM: Final = (retry("Wait until other pods end, or add a node with room for this pod"),)
_LIMITS: Final = frozenset({_R.OUT_OF_MEMORY, _R.KILLED, _R.DISK_FULL})
_CHECKS_LIMITS: Final = (
    retry("Ask a cluster admin to raise preflight.resources of Tunery's chart"),
    recreate("Store large files in a PersistentVolumeClaim (pvc://), which is read in place"),
)
_PUBLISH_BEST_LIMITS: Final = (retry("Ask a cluster admin to raise preflight.resources of Tunery's chart"),)
_PUBLISH_BEST_DISK: Final = (recreate("Raise resources.ephemeralStorage", "template.resources.ephemeralStorage"),)
_PUBLISH_BEST_RETRIES: Final = (retry("Fix what the log of its last attempt names; the adapters of the trials stay"),)
_EMPTY_MESSAGES: Final = ("", "{}")
"""Termination messages without content."""
LOG_LOST: Final = (
    retry("Find the pod's log where your cluster collects logs, and fix what it names"),
    edit("Raise retries", "retries"),
)
"""The remedies if the pods are gone with their logs."""
_TERMINATED: Final = 128 + signal.SIGTERM
"""The exit code of a process that ended by SIGTERM before it handled the signal."""
_ENDED: Final = (retry("Find what deletes or ends this pod; its events may show it"),)
_START_REASONS: Final = frozenset({"StartError", "ContainerCannotRun"})
"""The exit reasons of a container that never ran."""
_MOUNT_WARNINGS: Final = frozenset(
    {"FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedCreatePodSandBox", "NetworkNotReady"}
)
_OOM_BEFORE_START: Final = "OOM-killed"
"""The message of runc if the memory is too small to start a container; the kubelet reports it for the sandbox."""
LOST_NODE: Final = frozenset({"DeletionByTaintManager", "DeletionByPodGC"})


# A pod that does not run


def find_blocker(attempt: Attempt, now: datetime, platform: PlatformValues) -> Failure | None:
    """Return what blocks a Job that has no running pod; None if nothing does."""
    found = _blocker(attempt, now)
    return found and _with_values(found, attempt.job.role, platform)


def _with_values(found: Failure, role: str, platform: PlatformValues) -> Failure:
    return with_platform_values(found, platform.checks if role in _CHECKS else platform.work)


def _blocker(attempt: Attempt, now: datetime) -> Failure | None:
    waiting = [pod for pod in attempt.newest if not pod.running and not pod.finished]
    found = next((found for pod in waiting if (found := _pod_blocker(attempt, pod, now)) is not None), None)
    if found is None and attempt.missing:
        found = _rejected_pod(attempt)
    if found is None or attempt.job.nodes == 1:
        return found
    text = f"{attempt.running} of {attempt.job.nodes} pods run; {found.message}"
    return found.model_copy(update={"message": redact(text)})


def _pod_blocker(attempt: Attempt, pod: PodView, now: datetime) -> Failure | None:
    """Return why a pod that has not ended does not run."""
    if is_node_lost(pod, now):
        return lost_node(pod)
    if pod.started_at is not None:
        return None
    if pod.waiting_reason in IMAGE_REASONS:
        return failure(_R.IMAGE_PULL_FAILED, f"{pod.waiting_reason}: {pod.waiting_message or 'no further detail'}")
    if pod.waiting_reason in CONFIG_REASONS:
        return failure(_R.CONTAINER_REFUSED, f"{pod.waiting_reason}: {pod.waiting_message or 'no further detail'}")
    if pod.node is None or pod.unschedulable is not None:
        return _unscheduled(pod, attempt.job.role, now)
    found = start_failure(f"pod {pod.name}", pod.node, _newest_warning(attempt, pod, now - FRESH))
    return found and of_role(found, attempt.job.role)


def start_failure(pod: str, node: str, warning: ClusterWarning | None) -> Failure | None:
    """Return why a pod on a node has no container yet, by a warning; None: unknown."""
    if warning is not None and _OOM_BEFORE_START in warning.message:
        return failure(_R.OUT_OF_MEMORY, f"{pod} cannot even start: {warning.message}")
    if warning is not None and warning.reason in _MOUNT_WARNINGS:
        return failure(_R.MOUNT_FAILED, f"{pod} on node {node}: {warning.reason}: {warning.message}")
    return None


def _unscheduled(pod: PodView, role: str, now: datetime) -> Failure | None:
    """Return why a pod has no node yet; None for the first moments."""
    if pod.unschedulable is not None:
        room = _CHECKS_ROOM if role in _CHECKS else ()
        remedies: tuple[Remedy, ...] = _CLAIM if "persistentvolumeclaim" in pod.unschedulable.lower() else room
        return failure(_R.UNSCHEDULABLE, f"no node fits: {pod.unschedulable}", *remedies)
    created = parse_time(pod.created)
    if created is None or now - created < SCHEDULER_GRACE:
        return None
    scheduler = _CHECKS_SCHEDULER if role in _CHECKS else _SCHEDULER
    return failure(_R.UNSCHEDULABLE, f"scheduler {pod.scheduler} ignores pod {pod.name}", *scheduler)


def is_node_lost(pod: PodView, now: datetime) -> bool:
    """Return whether the state of a pod that has not ended is unknown, as its node does not answer."""
    if pod.finished:
        return False
    if _is_reported_lost(pod):
        return True
    return pod.deleted_at is not None and pod.node is not None and now > pod.deleted_at + NODE_GRACE


def _is_reported_lost(pod: PodView) -> bool:
    """Return whether the cluster reports that the node of the pod is lost."""
    return pod.unanswered or pod.status_reason == "NodeLost" or pod.disruption in LOST_NODE


def lost_node(pod: PodView) -> Failure:
    """Return the failure of a pod whose node does not answer, and how to unblock the next attempt."""
    remedy = retry(
        f"Check node {pod.node}. If it is off for good, run kubectl delete node {pod.node}, or kubectl taint nodes "
        f"{pod.node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
    )
    why = "does not answer" if _is_reported_lost(pod) else "has not ended it after its grace period"
    text = f"pod {pod.name} cannot be ended, and blocks its successor: node {pod.node} {why}"
    return failure(_R.NODE_LOST, text, remedy)


def _parallelism_zero(job: JobView) -> Failure:
    spec = f'{{"spec":{{"parallelism":{job.nodes}}}}}'
    command = f"kubectl patch job {job.name} -n {job.namespace} --type=merge -p '{spec}'"
    text = f"Job {job.name} has parallelism 0, which another client has set: it starts no pod"
    return failure(_R.POD_REFUSED, text, retry(f"Run {command}"))


def _rejected_pod(attempt: Attempt) -> Failure | None:
    """Return why the Job controller cannot create the next pod, or does not try to."""
    if attempt.job.parallelism == 0:
        return _parallelism_zero(attempt.job)
    warning = _newest_warning(attempt)
    if warning is None or warning.reason != "FailedCreate":
        return None
    reason = _R.QUOTA_EXCEEDED if "exceeded quota" in warning.message else _R.POD_REFUSED
    return failure(reason, f"Job {attempt.job.name} cannot create its pod: {warning.message}")


def _newest_warning(
    attempt: Attempt, pod: PodView | None = None, since: datetime | None = None
) -> ClusterWarning | None:
    """Return the newest warning about a pod, or the Job, that still holds.

    Warnings from before the Job's start, before the pod, or of the Job before its newest pods have expired.
    """
    job, about = attempt.job, "Pod" if pod is not None else "Job"
    made = [parse_time(each.created) for each in (attempt.newest if pod is None else (pod,))]
    begun = (job.started_at or parse_time(job.created), *made, since)
    earliest = max((time for time in begun if time is not None), default=_EVER)
    warnings = [(parse_time(item.time), item) for item in attempt.warnings if item.about == about and _is_of(item, pod)]
    dated = [(time, item) for time, item in warnings if time is not None and time >= earliest]
    return max(dated, key=lambda entry: entry[0])[1] if dated else None


def _is_of(warning: ClusterWarning, pod: PodView | None) -> bool:
    return pod is None or warning.uid in ("", pod.uid)


# A pod that has ended badly


def pod_failure(pod: PodView) -> Failure:
    """Return why a pod failed: as the container reports it, else as Kubernetes does."""
    reported = reported_failure(pod.termination_message)
    return _redacted(reported) if reported is not None else _observed(pod)


def _redacted(reported: Failure) -> Failure:
    """Return what a container reports, without credentials: the image may be any."""
    remedies = [each.model_copy(update={"text": redact(each.text, MAX_REMEDY)}) for each in reported.remedies]
    facts = {key: redact(value) for key, value in reported.facts.items()}
    return reported.model_copy(update={"message": redact(reported.message), "remedies": remedies, "facts": facts})


def _observed(pod: PodView) -> Failure:
    if pod.exit_code == ExitCode.PEER_LOST:
        return failure(_R.PEER_LOST, f"pod {pod.name} ended, as another pod of its job was gone")
    found = _ended_by_cluster(pod) or _never_ran(pod)
    if found is not None:
        return found
    if pod.exit_reason == "ContainerStatusUnknown":
        return failure(_R.NODE_LOST, f"node {pod.node} lost track of pod {pod.name}, as after a restart")
    if pod.exit_reason == "OOMKilled":
        return failure(_R.OUT_OF_MEMORY, f"pod {pod.name} was killed for using more memory than its limit")
    if pod.exit_code == ExitCode.KILLED and not pod.deleting:
        # Not OutOfMemory: a second one in a row would end the job, and a kill can have any cause.
        text = f"pod {pod.name} was killed (exit 137), and the node does not report that it used too much memory"
        return failure(_R.KILLED, text)
    if pod.exit_code == _TERMINATED and (
        interrupted_activity(pod.termination_message) or pod.termination_message.strip() in _EMPTY_MESSAGES
    ):
        return failure(_R.KILLED, f"{_exit_text(pod)}: its process was sent SIGTERM", *_ENDED)
    return failure(_R.INTERNAL_ERROR, _exit_text(pod), *_no_message_remedies(pod))


def _ended_by_cluster(pod: PodView) -> Failure | None:
    """Return why the cluster ended a pod, or None if it did not.

    The kubelet sets DisruptionTarget only for pressure on the node, not for a pod over its own disk limit.
    """
    detail = f": {pod.status_message}" if pod.status_message else ""
    if pod.status_reason == "NodeLost" or pod.disruption in LOST_NODE:
        return failure(_R.NODE_LOST, f"node {pod.node} of pod {pod.name} was lost{detail}")
    if pod.disruption == "TerminationByKubelet":
        reason = _R.NODE_PRESSURE if pod.status_reason in ("Evicted", "Preempting") else _R.NODE_LOST
        return failure(reason, f"node {pod.node} ended pod {pod.name}{detail}")
    if pod.disruption is not None:
        return failure(_R.NODE_LOST, f"pod {pod.name} was ended by the cluster ({pod.disruption}){detail}")
    if pod.status_reason == "Evicted":
        return failure(_R.DISK_FULL, f"pod {pod.name} was evicted{detail}")
    return None


def _never_ran(pod: PodView) -> Failure | None:
    if pod.exit_reason in _START_REASONS:
        return failure(_R.CONTAINER_REFUSED, f"{pod.exit_reason}: {pod.termination_message or 'no further detail'}")
    if pod.exit_code is None and pod.status_reason is not None:
        text = f"node {pod.node} refused pod {pod.name}: {pod.status_reason}: {pod.status_message}"
        return failure(_R.CONTAINER_REFUSED, text)
    return None


def _exit_text(pod: PodView) -> str:
    if pod.exit_code is None:
        return f"pod {pod.name} failed before its container started: no reason given"
    message = interrupted_activity(pod.termination_message) or pod.termination_message.strip()
    how = "was terminated, and ended" if pod.deleting else "ended"
    return f"pod {pod.name} {how} with exit code {pod.exit_code}" + (
        f": {message}" if message not in _EMPTY_MESSAGES else " and left no message"
    )


def without_message(command: str) -> tuple[Remedy, ...]:
    """Return the remedies for a container that ended without a message; `command` shows its log."""
    return (
        retry(f"Read its log ({command}), and fix what it names"),
        retry("If the log shows no cause of yours, report it as a bug in Tunery"),
    )


def _no_message_remedies(pod: PodView) -> tuple[Remedy, ...]:
    """Return the remedies for a container without a termination message; none if it has one."""
    if pod.exit_code is None:
        return (retry(f"Fix what kubectl describe pod {pod.name} -n {pod.namespace} shows"),)
    if pod.termination_message.strip() not in _EMPTY_MESSAGES:
        return ()
    return without_message(f"kubectl logs {pod.name} -n {pod.namespace}")


# A Job that has failed


def job_failure(
    attempt: Attempt, platform: PlatformValues, cause: PodView | None = None, status: Mapping[str, Any] | None = None
) -> tuple[Failure, int | None]:
    """Return why a Job has failed, and the exit code of its last container if there is one.

    `platform` are the chart's values that its pods use. `cause` is the pod that made the last attempt fail. `status`
    has the history of attempts, the only record of pods that are gone.
    """
    job, pod = attempt.job, cause or attempt.last_failed or attempt.last
    if job.failed_reason == "DeadlineExceeded":
        text = f"Job {job.name} ran into a deadline that Tunery did not set: {job.failed_message}"
        remedy = retry("Exempt Tunery's Jobs from what sets activeDeadlineSeconds on them; Tunery counts the time")
        return failure(_R.DEADLINE_EXCEEDED, text, remedy), pod.exit_code if pod is not None else None
    if pod is None:
        end = last_end(status or {})
        text = f"Job {job.name} failed ({job.failed_reason}: {job.failed_message}) and its pods are gone"
        text = f"{text}; the last attempt's end: {end}" if end else text
        return of_role(failure(_R.RETRIES_EXHAUSTED, text, *LOG_LOST), job.role), None
    found, attempts = pod_failure(pod), _attempts(attempt, status)
    if found.reason == _R.INTERNAL_ERROR and attempts > 1 and reported_failure(pod.termination_message) is None:
        found = found.model_copy(update={"reason": _R.RETRIES_EXHAUSTED})
    found = _with_values(of_role(found, job.role), job.role, platform)
    number = attempt_numbers(status or {}).get(pod.uid, attempts)  # while this pod ended, the next one may have begun
    where = [f"pod {pod.name}"] if pod.index is not None else []
    where += [f"attempt {number}"] if attempts > 1 else []
    text = f"{found.message} ({', '.join(where)})" if where else found.message
    return found.model_copy(update={"message": redact(text)}), pod.exit_code


def _attempts(attempt: Attempt, status: Mapping[str, Any] | None) -> int:
    """Return the number of attempts; without a history, the number of pods of the Job."""
    return max(1, len(attempt.pods)) if status is None else int(status.get("attempts") or 1)


def of_role(found: Failure, role: str) -> Failure:
    """Return a failure of a Job of that role, with the remedies for the limits of its pod."""
    own = tuple(found.remedies)
    if role == Task.PUBLISH_BEST and found.reason == _R.RETRIES_EXHAUSTED and own in ((), LOG_LOST):
        return found.model_copy(update={"remedies": list(_PUBLISH_BEST_RETRIES)})
    if role not in _CHECKS or found.reason not in _LIMITS or own == _ENDED:
        return found
    remedies: tuple[Remedy, ...] = _CHECKS_LIMITS
    if role == Task.PUBLISH_BEST:
        remedies = _PUBLISH_BEST_DISK if found.reason == _R.DISK_FULL else _PUBLISH_BEST_LIMITS
    return found.model_copy(update={"remedies": list(remedies)})


def failure_status(found: Failure, subject: Subject, exit_code: int | None = None) -> dict[str, Any]:
    """Return `status.failure` of an object."""
    remedies = [remedy.model_dump(mode="json", exclude_defaults=True) for remedy in found.remedies]
    status: dict[str, Any] = {
        "reason": str(found.reason),
        "message": found.message,
        "hint": render_hint(found, subject),
        **({"remedies": remedies} if remedies else {}),
        **({"facts": found.facts} if found.facts else {}),
    }
    return status if exit_code is None else {**status, "exitCode": exit_code}


def failure(reason: str, message: str, *remedies: Remedy) -> Failure:
    """Return a failure whose message holds no credentials."""
    return Failure(reason=reason, message=redact(message), remedies=list(remedies))
