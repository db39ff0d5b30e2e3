"""Why a pod does not run, or ended badly: pods and warnings in, failures out."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tunery_api.reasons import ExitCode, FailureReason, advice_for
from tunery_api.runspec import Failure, Task
from tunery_api.scrub import scrub
from tunery_operator.plan.platform_says import PlatformSays
from tunery_operator.status.messages import reported_failure, told
from tunery_operator.status.whose import named
from tunery_operator.views.attempt import Attempt, ClusterWarning
from tunery_operator.views.clock import parse_time
from tunery_operator.views.job import JobView
from tunery_operator.views.pod import PodView

NODE_GRACE: Final = timedelta(seconds=15)
"""Time after the end of a pod's grace period from which its node counts as lost."""

SCHEDULER_GRACE: Final = timedelta(seconds=20)
"""Time in which a scheduler says something of a pod, if there is one of that name."""
_SCHEDULER_HINT: Final = (
    "Name a scheduler that runs in the cluster in spec.scheduling.schedulerName, or leave it out; it may change as long"
    " as no pod runs. If it is right, look whether that scheduler works."
)
_CLAIM_HINT: Final = "Create or bind the claim that the message names; the job goes on by itself."

FRESH: Final = timedelta(minutes=3)
"""The kubelet says a mount that fails again at least every two minutes: an older warning is over."""
_EVER: Final = datetime.min.replace(tzinfo=UTC)

_R = FailureReason
IMAGE_REASONS: Final = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
CONFIG_REASONS: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_OF_ITS_KIND: Final = " and spec.scheduling.tolerations say: both may change as it waits."
_TOLERATED: Final = {
    Task.PREFLIGHT: _OF_ITS_KIND,
    Task.PUBLISH: _OF_ITS_KIND,
    Task.REPORT: " and the scheduling.tolerations of its manifest say: the chart's may change as it waits, and so may "
    "the manifest's, except in the template of a LoRASweep.",
    Task.CONCLUDE: " and the template of its sweep say: the chart's may change as it waits. Its disk is as large as a "
    "trial's.",
}
"""How the sentence on a pod's tolerations ends; by the task of the Jobs that do not ask for what the spec says."""
_ROOM_HINTS: Final = {
    task.value: (
        f"Wait until other pods end, or add a node: the job then continues. This is the {task.value} pod: it asks "
        "for preflight.resources of the chart (default: 1 CPU and 4Gi), not for the manifest's resources. It "
        f"tolerates what preflight.tolerations of the chart{tolerated}"
    )
    for task, tolerated in _TOLERATED.items()
}
"""By the Job's role, where it does not ask for what the spec says."""
_LIMITS: Final = frozenset({_R.OUT_OF_MEMORY, _R.KILLED, _R.DISK_FULL})
_CHECKS: Final = frozenset(task.value for task in _TOLERATED)
_CHECKS_SCHEDULER_HINT: Final = (
    "This pod names no scheduler, whatever the manifest says: look whether the cluster's own works."
)
_CONCLUDE_HINT: Final = (
    "This pod, which publishes the sweep's best adapter, has what the platform gives to checks, whatever the template "
    "says: have preflight.resources of the chart raised. The trials' adapters stay where they are until then."
)
_CONCLUDE_DISK_HINT: Final = (
    "This pod, which publishes the sweep's best adapter, has the disk of a trial, "
    "spec.template.resources.ephemeralStorage, and can be given more in a new sweep only. The trials' "
    "adapters stay where they are: status.best names the best one's LoRAJob, and status.adapter of that its place."
)
_CONCLUDE_RETRIES_HINT: Final = (
    "Mend what its last attempt has said, in its log, and retry. This pod publishes the sweep's best adapter: the "
    "trials' adapters stay where they are until then."
)
_LIMITS_HINT: Final = (
    "This pod has what the platform gives to checks, whatever spec.resources is: have preflight.resources of the chart "
    "raised, or put large files into a claim (pvc://), which is read where it lies."
)
_NO_WORDS: Final = ("", "{}")
"""Termination messages that say nothing."""
GONE_HINT: Final = (
    "The log of its pods went with them: where your cluster collects logs, that of the last one says why it failed. "
    "Mend that, and retry; or raise spec.retries, which may change while no pod runs."
)
_TERMINATED: Final = 128 + signal.SIGTERM
"""The exit code of whoever was told to end before it listened for that."""
_ENDED_HINT: Final = (
    "Somebody has ended it, by deleting its pod or from its node; it is no fault of the job's. Look who does so (the "
    "events of its pod may tell), and retry."
)
_START_REASONS: Final = frozenset({"StartError", "ContainerCannotRun"})
"""Why a container ended that never ran."""
_MOUNT_WARNINGS: Final = frozenset(
    {"FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedCreatePodSandBox", "NetworkNotReady"}
)
_OOM_BEFORE_START: Final = "OOM-killed"
"""What runc says of a container whose memory is too small for its own start; the kubelet blames the sandbox."""
LOST_NODE: Final = frozenset({"DeletionByTaintManager", "DeletionByPodGC"})


# A pod that does not run


def obstacle(attempt: Attempt, now: datetime, platform: PlatformSays) -> Failure | None:
    """Return why a Job has no pod at work, or None while nothing stands in its way; it may pass by itself.

    `platform` is what the platform says of its pods.
    """
    found = _obstacle(attempt, now)
    return found and _named(found, attempt.job.role, platform)


def _named(found: Failure, role: str, platform: PlatformSays, *, ended: bool = False) -> Failure:
    checks = role in _CHECKS
    return named(found, platform.checks if checks else platform.work, checks=checks, ended=ended)


def _obstacle(attempt: Attempt, now: datetime) -> Failure | None:
    waiting = [pod for pod in attempt.newest if not pod.running and not pod.finished]
    found = next((found for pod in waiting if (found := _hindrance(attempt, pod, now)) is not None), None)
    if found is None and attempt.missing:
        found = _refused_pod(attempt)
    if found is None or attempt.job.nodes == 1:
        return found
    text = f"{attempt.running} of {attempt.job.nodes} pods run; {found.message}"
    return failure(found.reason, text, found.hint)


def _hindrance(attempt: Attempt, pod: PodView, now: datetime) -> Failure | None:
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
        return _unplaced(pod, attempt.job.role, now)
    found = start_failure(f"pod {pod.name}", pod.node, _newest(attempt, pod, now - FRESH))
    return found and of_role(found, attempt.job.role)


def start_failure(pod: str, node: str, warning: ClusterWarning | None) -> Failure | None:
    """Return why a pod on a node has no container yet, as far as a warning tells; None: it does not."""
    if warning is not None and _OOM_BEFORE_START in warning.message:
        return failure(_R.OUT_OF_MEMORY, f"{pod} cannot even start: {warning.message}")
    if warning is not None and warning.reason in _MOUNT_WARNINGS:
        return failure(_R.MOUNT_FAILED, f"{pod} on node {node}: {warning.reason}: {warning.message}")
    return None


def _unplaced(pod: PodView, role: str, now: datetime) -> Failure | None:
    """Return why a pod has no node yet; None for the first moments."""
    if pod.unschedulable is not None:
        hint = _CLAIM_HINT if "persistentvolumeclaim" in pod.unschedulable.lower() else _ROOM_HINTS.get(role)
        return failure(_R.UNSCHEDULABLE, f"no node fits: {pod.unschedulable}", hint)
    created = parse_time(pod.created)
    if created is None or now - created < SCHEDULER_GRACE:
        return None
    hint = _CHECKS_SCHEDULER_HINT if role in _CHECKS else _SCHEDULER_HINT
    return failure(_R.UNSCHEDULABLE, f"scheduler {pod.scheduler} has not looked at pod {pod.name}", hint)


def is_node_lost(pod: PodView, now: datetime) -> bool:
    """Tell whether nobody can say any more what a pod that has not ended does."""
    if pod.finished:
        return False
    if _says_lost(pod):
        return True
    return pod.deleted_at is not None and pod.node is not None and now > pod.deleted_at + NODE_GRACE


def _says_lost(pod: PodView) -> bool:
    """Tell whether the cluster itself says that the pod's node is lost."""
    return pod.unanswered or pod.status_reason == "NodeLost" or pod.disruption in LOST_NODE


def lost_node(pod: PodView) -> Failure:
    """Return the failure of a pod whose node does not answer, and what frees the next attempt."""
    hint = (
        "Kubernetes starts no other pod until this one is gone. Look at the node: where kubectl get node "
        f"{pod.node} says Ready, its kubelet cannot end the container, and its log says why. If the machine is off "
        f"for good, delete its Node (kubectl delete node {pod.node}), or taint it (kubectl taint nodes {pod.node} "
        "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute); if it comes back, nothing is to be done."
    )
    why = "does not answer" if _says_lost(pod) else "has not ended it long after it was told to, and may not answer"
    return failure(_R.NODE_LOST, f"pod {pod.name} cannot be ended: node {pod.node} {why}", hint)


def _no_pod_allowed(job: JobView) -> Failure:
    spec = f'{{"spec":{{"parallelism":{job.nodes}}}}}'
    command = f"kubectl patch job {job.name} -n {job.namespace} --type=merge -p '{spec}'"
    text = f"Job {job.name} has parallelism 0, which somebody else has set: it starts no pod"
    return failure(_R.POD_REFUSED, text, f"Undo that: {command}. To stop a job for a while, set spec.suspend.")


def _refused_pod(attempt: Attempt) -> Failure | None:
    """Return why the Job controller cannot create the next pod, or does not try to."""
    if attempt.job.parallelism == 0:
        return _no_pod_allowed(attempt.job)
    warning = _newest(attempt)
    if warning is None or warning.reason != "FailedCreate":
        return None
    reason = _R.QUOTA_EXCEEDED if "exceeded quota" in warning.message else _R.POD_REFUSED
    return failure(reason, f"Job {attempt.job.name} cannot create its pod: {warning.message}")


def _newest(attempt: Attempt, pod: PodView | None = None, since: datetime | None = None) -> ClusterWarning | None:
    """Return the newest warning about a pod, or the Job, that still holds.

    What was before the Job's start, before the pod, or of the Job before its newest pods, is over.
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
    """Return why a pod failed: what the container said, else what Kubernetes says."""
    said = reported_failure(pod.termination_message)
    return failure(said.reason, said.message, said.hint) if said is not None else _observed(pod)


def _observed(pod: PodView) -> Failure:
    if pod.exit_code == ExitCode.PEER_LOST:
        return failure(_R.PEER_LOST, f"pod {pod.name} ended, as another pod of its job was gone")
    found = _taken_away(pod) or _never_ran(pod)
    if found is not None:
        return found
    if pod.exit_reason == "ContainerStatusUnknown":
        return failure(_R.NODE_LOST, f"node {pod.node} lost track of pod {pod.name}, as after a restart")
    if pod.exit_reason == "OOMKilled":
        return failure(_R.OUT_OF_MEMORY, f"pod {pod.name} was killed for using more memory than its limit")
    if pod.exit_code == ExitCode.KILLED and not pod.deleting:
        # Not OutOfMemory: a second one in a row would end the job, and a kill may have any cause.
        text = f"pod {pod.name} was killed (exit 137), and the node does not say that it was for too much memory"
        return failure(_R.KILLED, text)
    if pod.exit_code == _TERMINATED and (told(pod.termination_message) or pod.termination_message.strip() in _NO_WORDS):
        return failure(_R.KILLED, f"{_exit_text(pod)}: that is the end of a process that was sent SIGTERM", _ENDED_HINT)
    return failure(_R.INTERNAL_ERROR, _exit_text(pod), _silent_hint(pod))


def _taken_away(pod: PodView) -> Failure | None:
    """Return why the cluster ended a pod, or None where it did not.

    The kubelet says DisruptionTarget for pressure on the node only; a pod over its own disk limit is evicted without.
    """
    said = f": {pod.status_message}" if pod.status_message else ""
    if pod.status_reason == "NodeLost" or pod.disruption in LOST_NODE:
        return failure(_R.NODE_LOST, f"node {pod.node} of pod {pod.name} was lost{said}")
    if pod.disruption == "TerminationByKubelet":
        reason = _R.NODE_PRESSURE if pod.status_reason in ("Evicted", "Preempting") else _R.NODE_LOST
        return failure(reason, f"node {pod.node} ended pod {pod.name}{said}")
    if pod.disruption is not None:
        return failure(_R.NODE_LOST, f"pod {pod.name} was ended by the cluster ({pod.disruption}){said}")
    if pod.status_reason == "Evicted":
        return failure(_R.DISK_FULL, f"pod {pod.name} was evicted{said}")
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
    said = told(pod.termination_message) or pod.termination_message.strip()
    how = "was told to end, and ended" if pod.deleting else "ended"
    return f"pod {pod.name} {how} with exit code {pod.exit_code}" + (
        f": {said}" if said not in _NO_WORDS else " and said nothing"
    )


def silent_hint(command: str, then: str = "") -> str:
    """Return where to look where a container has ended without a word; `command` shows its log."""
    return (
        f"It has left no last words; its log may say why: {command} shows it. Mend what that says{then}. Where it says "
        "that a module of Tunery is not found, have the image in the chart corrected (trainer.image; of servers and "
        "batches serving.server.image). Where it is nothing of yours, and no variable of trainer.env in the chart, it "
        "is a defect of Tunery: please report it with that log."
    )


def _silent_hint(pod: PodView) -> str | None:
    """Return where to look where a container has left no word; None where it has left one."""
    if pod.exit_code is None:
        return f"kubectl describe pod {pod.name} -n {pod.namespace} may say more; mend that, and retry."
    if pod.termination_message.strip() not in _NO_WORDS:
        return None
    return silent_hint(f"kubectl logs {pod.name} -n {pod.namespace}", ", and retry")


# A Job that has failed


def job_failure(
    attempt: Attempt, attempts: int, platform: PlatformSays, last_end: str | None = None
) -> tuple[Failure, int | None]:
    """Return why a Job has failed, and the exit code of its last container where there is one.

    `platform` is what the platform says of its pods, `last_end` what the ledger says of the last attempt: all that is
    known of a pod that is gone.
    """
    job, pod = attempt.job, last_failed(attempt) or attempt.last
    if job.failed_reason == "DeadlineExceeded":
        text = f"Job {job.name} ran into a deadline that Tunery did not set: {job.failed_message}"
        hint = "Exempt Tunery's Jobs from whatever sets activeDeadlineSeconds on them; Tunery counts the time itself."
        return failure(_R.DEADLINE_EXCEEDED, text, hint), pod.exit_code if pod is not None else None
    if pod is None:
        text = f"Job {job.name} failed ({job.failed_reason}: {job.failed_message}) and its pods are gone"
        text = f"{text}; the last attempt's end: {last_end}" if last_end else text
        return of_role(failure(_R.RETRIES_EXHAUSTED, text, GONE_HINT), job.role), None
    found = pod_failure(pod)
    if found.reason == _R.INTERNAL_ERROR and attempts > 1 and reported_failure(pod.termination_message) is None:
        found = failure(_R.RETRIES_EXHAUSTED, found.message, found.hint)
    found = _named(of_role(found, job.role), job.role, platform, ended=True)
    its = attempt.numbers.get(pod.uid, attempts)  # a later one may have begun while this pod stored its checkpoint
    where = ([f"pod {pod.name}"] if pod.index is not None else []) + ([f"attempt {its}"] if attempts > 1 else [])
    counted = f"{found.message} ({', '.join(where)})" if where else found.message
    return failure(found.reason, counted, found.hint), pod.exit_code


def of_role(found: Failure, role: str) -> Failure:
    """Return a failure of a Job of that role, with the hint of whose limits it ran into: not always the spec's."""
    if role == Task.CONCLUDE and found.reason == _R.RETRIES_EXHAUSTED and found.hint in (None, GONE_HINT):
        return failure(found.reason, found.message, _CONCLUDE_RETRIES_HINT)
    if role not in _CHECKS or found.reason not in _LIMITS or found.hint == _ENDED_HINT:
        return found
    hint = _LIMITS_HINT
    if role == Task.CONCLUDE:
        hint = _CONCLUDE_DISK_HINT if found.reason == _R.DISK_FULL else _CONCLUDE_HINT
    return failure(found.reason, found.message, hint)


def last_failed(attempt: Attempt) -> PodView | None:
    """Return the newest pod of a Job that has failed; of pods that work together that for which the others ended."""
    if attempt.job.nodes > 1:
        return culprit(pod for pod in attempt.ended_together if pod.phase == "Failed")
    return next((pod for pod in reversed(attempt.pods) if pod.phase == "Failed"), None)


def culprit(pods: Iterable[PodView]) -> PodView | None:
    """Return of the pods that ended together the one that the others ended for: the first that says why of itself.

    One that was told to end comes after those, and what is only the echo of another one's end last of all.
    """
    return min(pods, key=_guilt, default=None)


def is_echo(pod: PodView) -> bool:
    """Tell whether a pod that has ended says no more than that another one is gone."""
    return pod_failure(pod).reason == _R.PEER_LOST


def _guilt(pod: PodView) -> tuple[int, datetime]:
    said = reported_failure(pod.termination_message)
    echo = is_echo(pod)
    rank = (3 if pod.exit_code == ExitCode.PEER_LOST else 2) if echo else int(said is None and pod.deleting)
    return rank, pod.finished_at or pod.disrupted_at or datetime.max.replace(tzinfo=UTC)


def failure_status(found: Failure, exit_code: int | None = None) -> dict[str, Any]:
    """Return `status.failure`, with the advice that belongs to the reason."""
    status: dict[str, Any] = {
        "reason": str(found.reason),
        "message": found.message,
        "hint": found.hint or advice_for(found.reason).hint,
    }
    return status if exit_code is None else {**status, "exitCode": exit_code}


def failure(reason: str, message: str, hint: str | None = None) -> Failure:
    """Return a failure whose texts hold no credentials."""
    return Failure(reason=reason, message=scrub(message), hint=scrub(hint) if hint else None)
