"""Diagnose why a pod of a server is not ready, and provide the remedies of a server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from tunery_api.failures import Failure, sentences
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy, edit, recreate, remedies_for, retry
from tunery_operator.observed.deployment import ContainerView, ServerPodView
from tunery_operator.observed.event import ClusterWarning
from tunery_operator.planning.adapterserver import ENGINE, GATEWAY, MODEL
from tunery_operator.status.diagnosis import CONFIG_REASONS, IMAGE_REASONS, failure, start_failure, without_message
from tunery_operator.status.reports import reported_failure

_R = FailureReason
_SERVER: Final[dict[str, tuple[Remedy, ...]]] = {
    _R.INVALID_SPEC: (edit("Correct the named field and apply the manifest again"),),
    _R.PLATFORM_CHANGED: (
        edit("Change the named field"),
        retry("Ask a cluster admin to restore the named setting"),
    ),
    _R.MODEL_NOT_FOUND: (retry("Upload the model to that location"), recreate("Set another model.uri", "model.uri")),
    _R.MODEL_UNSUPPORTED: (
        recreate("Use a causal language model in safetensors format that the engine supports", "model.uri"),
    ),
    _R.STORAGE_NOT_FOUND: (
        retry("Create the bucket, or correct AWS_ENDPOINT_URL in the Secret"),
        edit("Correct the location in adapters", "adapters"),
    ),
    _R.UNSCHEDULABLE: (
        retry("Free or add a node that offers what the pod requests"),
        edit("Change resources or scheduling", "resources", "scheduling"),
    ),
    _R.KILLED: (
        retry("Check with kubectl describe pod what ended it"),
        edit("Raise resources.memory, as not every node reports a kill for memory", "resources.memory"),
    ),
    _R.NODE_PRESSURE: (retry("Check what else uses up that node, if the next pod does not start"),),
    _R.INTERNAL_ERROR: (retry("Report this as a bug in Tunery, with the log of the named container"),),
}
REPLACE_IN_PLACE: Final = (
    retry("Free or add a node that offers what the pod requests"),
    edit(
        "Set rollout to {maxSurge: 0, maxUnavailable: 1}, so that a replica ends before its successor starts", "rollout"
    ),
)
"""The remedies if a rollout waits for the resources of the pods that it replaces."""
_OOM_KILLED: Final = "OOMKilled"
_KILLED: Final = 137
"""The exit code after SIGKILL."""
_ERROR: Final = re.compile(r"\b\w*(Error|Exception)\b")
_NO_CAUSE: Final = re.compile(r"^(\([^)]*\) )?(DEBUG|INFO|WARNING)\b|\bHTTP/\d\.\d\" \d{3}\b")
"""Log lines of an engine without a cause: vLLM and uvicorn put the level first, after a process name."""
_LOG_BYTES: Final = 2000
"""Bytes of the end of a log: the kubelet returns about 2,048, and the first line may be cut."""
_POINTER: Final = "Engine core initialization failed"
"""vLLM's line that refers to the cause above it."""
_ERROR_CHARS: Final = 300
"""Characters of the end of an engine's log."""


def with_server_remedies(failure: Failure) -> Failure:
    """Return a failure with the remedies of a server, where it has none of its own."""
    if failure.remedies:
        return failure
    remedies = _SERVER.get(str(failure.reason)) or remedies_for(failure.reason)
    return failure.model_copy(update={"remedies": list(remedies)})


def from_hint(hint: str | None) -> tuple[Remedy, ...]:
    """Return the remedy that a replica reports as a sentence; none where it reports none."""
    return (retry(hint.removesuffix(".")),) if hint else ()


def hint_of(reason: str, hint: str | None) -> str:
    """Return what to do about an adapter: the hint that a replica reports, else the usual remedies as sentences."""
    return hint or sentences(_SERVER.get(reason) or remedies_for(reason))


def pod_blocker(
    pod: ServerPodView, warning: ClusterWarning | None = None, *, during_rollout: bool = False
) -> Failure | None:
    """Return why a pod is not ready; None if no cause is known, as while it starts.

    `warning` is the latest warning event of the pod; `during_rollout`: the pods that it replaces still run.
    """
    if pod.ready:
        return None
    if pod.unschedulable is not None:
        remedies = REPLACE_IN_PLACE if during_rollout and waits_for_capacity(pod) else ()
        return failure(_R.UNSCHEDULABLE, f"no node fits pod {pod.name}: {pod.unschedulable}", *remedies)
    if pod.unstarted:
        return start_failure(f"pod {pod.name}", str(pod.node), warning)
    return next(_of_containers(pod), None)


def waits_for_capacity(pod: ServerPodView) -> bool:
    """Return whether no node fits a pod, for another reason than a PersistentVolumeClaim."""
    return pod.unschedulable is not None and "persistentvolumeclaim" not in pod.unschedulable.lower()


def _of_containers(pod: ServerPodView) -> Iterator[Failure]:
    for name in (MODEL, GATEWAY, ENGINE):
        found = _container_blocker(pod, pod.container(name))
        if found is not None:
            yield found


def _container_blocker(pod: ServerPodView, container: ContainerView) -> Failure | None:
    where = f"container {container.name} of pod {pod.name}"
    waits = f"{where}: {container.waiting_reason}: {container.waiting_message or 'no further detail'}"
    if container.waiting_reason in IMAGE_REASONS:
        return failure(_R.IMAGE_PULL_FAILED, waits)
    if container.waiting_reason in CONFIG_REASONS:
        return failure(_R.CONTAINER_REFUSED, waits)
    if container.exit_code in (None, 0) or _is_back(container):
        return None
    return _ended(pod, container)


def _is_back(container: ContainerView) -> bool:
    """Return whether a container runs again after it ended: then the gateway reports the current problem.

    The container that downloads the model has no probe. It reports its failure until it succeeds.
    """
    return container.started and container.name != MODEL


def _ended(pod: ServerPodView, container: ContainerView) -> Failure:
    """Return why a container ended with an error."""
    where = f"container {container.name} of pod {pod.name}"
    if container.exit_reason == _OOM_KILLED:
        raised = retry("Ask a cluster admin to raise serving.server.resources.memory of Tunery's chart")
        remedies = (raised,) if container.name == GATEWAY else ()
        return failure(_R.OUT_OF_MEMORY, f"{where} was killed for using more memory than its limit", *remedies)
    reported = reported_failure(container.exit_message)
    if reported is not None:
        return reported
    times = "" if container.restarts < 2 else f", {container.restarts} times so far"
    if container.exit_code == _KILLED:
        text = f"{where} was killed (exit code 137), and the node does not report that it used too much memory"
        return failure(_R.KILLED, f"{text}{times}{_error_line(container)}")
    error_line = _error_line(container)
    text, command = (
        f"{where} ended with exit code {container.exit_code}{times}{error_line}",
        _log_command(pod, container),
    )
    if container.name == ENGINE:
        remedy = edit(f"Check its log ({command}), and change resources or engine", "resources", "engine")
        return failure(_R.ENGINE_FAILED, text, remedy)
    return failure(_R.INTERNAL_ERROR, text, *(() if error_line else without_message(command)))


def _log_command(pod: ServerPodView, container: ContainerView) -> str:
    return f"kubectl logs {pod.name} -c {container.name} -n {pod.namespace}"


def _error_line(container: ContainerView) -> str:
    """Return the line of an engine's log with the cause of its end; empty if there is none.

    The last line of vLLM may only point to a line above. After a kill, only a line with an error counts.
    """
    lines = container.exit_message.splitlines()
    if len(container.exit_message.encode()) >= _LOG_BYTES:
        lines = lines[1:] or lines
    found = [line.strip() for line in lines if line.strip() and not _NO_CAUSE.search(line.strip())]
    errors = [line for line in found if _ERROR.search(line) and _POINTER not in line]
    shown = errors if container.exit_code == _KILLED else errors or found
    return f"; its log says: {shown[-1][-_ERROR_CHARS:]}" if shown else ""


def eviction(pods: Iterable[ServerPodView]) -> Failure | None:
    """Return why the latest evicted pod was evicted, or None if none was."""
    evicted = [pod for pod in pods if pod.finished and pod.status_reason == "Evicted"]
    if not evicted:
        return None
    pod = max(evicted, key=lambda item: item.created)
    # The kubelet sets DisruptionTarget only for pressure on the node, not for a pod over its own limit.
    reason = _R.DISK_FULL if pod.disruption is None else _R.NODE_PRESSURE
    detail = f": {pod.status_message}" if pod.status_message else ""
    return failure(reason, f"pod {pod.name} was evicted{detail}")


def refused_pods(message: str) -> Failure:
    """Return the failure of a Deployment whose pods cannot be created, with the cluster's message."""
    reason = _R.QUOTA_EXCEEDED if "exceeded quota" in message else _R.POD_REFUSED
    return failure(reason, f"the cluster cannot create pods: {message}")
