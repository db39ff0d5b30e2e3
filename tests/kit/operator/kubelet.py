"""What kubelets and the node's helpers do to pods, played by the tests: no node runs any pod."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from kit.operator.api import Api, Json, Refused, eventually

GROUP = "/apis/tunery.dev/v1alpha1"
_GROUPS = {
    "jobs": "/apis/batch/v1",
    "events": "/apis/events.k8s.io/v1",
    "leases": "/apis/coordination.k8s.io/v1",
    "deployments": "/apis/apps/v1",
    "replicasets": "/apis/apps/v1",
    "poddisruptionbudgets": "/apis/policy/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "lorajobs": GROUP,
    "adaptermerges": GROUP,
    "adapterservers": GROUP,
    "batchinferences": GROUP,
    "lorasweeps": GROUP,
}


def timestamp() -> str:
    """Return a time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Kubelet:
    """The pods of one namespace, and how they come and go."""

    api: Api
    name: str

    def path(self, plural: str, name: str = "") -> str:
        """Return the path of a resource of this namespace, or of one object."""
        group = _GROUPS.get(plural, "/api/v1")
        return f"{group}/namespaces/{self.name}/{plural}" + (f"/{name}" if name else "")

    def pods(self, job: str) -> list[Json]:
        """Return the pods of a Job, oldest first; a predecessor's of the same name are not among them."""
        uid = (self.api.get(self.path("jobs", job)) or {"metadata": {"uid": "none"}})["metadata"]["uid"]
        selector = f"?labelSelector=batch.kubernetes.io/controller-uid%3D{uid}"
        pods = self.api.items(self.path("pods") + selector)
        return sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def pod(self, job: str) -> str:
        """Return the name of the pod of a Job that waits to be started, once there is one."""

        def check() -> str | None:
            waiting = [pod for pod in self.pods(job) if pod["status"].get("phase") == "Pending"]
            return waiting[-1]["metadata"]["name"] if waiting else None

        return eventually(f"a pod of {job}", check)

    def bind(self, pod: str, node: str) -> None:
        """Put a pod on a node: from now on it only goes when its kubelet, or `remove_pod`, says so.

        Where there is no Node of that name, the garbage collection of pods takes it after a minute.
        """
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": target}
        self.api.call("POST", f"{self.path('pods', pod)}/binding", binding)

    def run_pod(self, job: str, *, node: str = "") -> str:
        """Start the container of the Job's waiting pod, on a node if one is named; return the pod's name."""
        pod = self.pod(job)
        if node:
            self.bind(pod, node)
        self.start_pod(pod)
        return pod

    def start_pod(self, pod: str) -> None:
        """Start the container of a pod."""
        self._write(pod, "Running", {"running": {"startedAt": timestamp()}})

    def serve_pod(self, pod: str, *, ready: bool = True) -> None:
        """Start all containers of a server's pod; it gets requests where it is `ready`."""
        with suppress(Refused):
            # Once: else the scheduler goes on to say that no node fits it.
            self.bind(pod, f"node-of-{pod}")
        running = {"running": {"startedAt": timestamp()}}
        ended = {"exitCode": 0, "reason": "Completed", "startedAt": timestamp(), "finishedAt": timestamp()}
        conditions = [
            {"type": type_, "status": str(ready), "lastTransitionTime": timestamp()}
            for type_ in ("Ready", "ContainersReady")
        ]
        status = {
            "phase": "Running",
            "initContainerStatuses": [_container("model", {"terminated": ended}), _container("gateway", running)],
            "containerStatuses": [_container("engine", running)],
            "conditions": conditions,
        }
        # Conditions are merged by type: that it is scheduled stays.
        strategic = "application/strategic-merge-patch+json"
        self.api.call("PATCH", f"{self.path('pods', pod)}/status", {"status": status}, strategic)

    def wait_pod(self, job: str, reason: str, message: str) -> None:
        """Let the container of the Job's waiting pod wait for a reason."""
        self._write(self.pod(job), "Pending", {"waiting": {"reason": reason, "message": message}})

    def end_pod(
        self,
        pod: str,
        code: int = 0,
        message: Any = "",
        reason: str = "",
        *,
        seconds: float | None = None,
    ) -> None:
        """End the container with an exit code and a termination message, after so many seconds where they are given."""
        text = message if isinstance(message, str) else json.dumps(message)
        started = self._started(pod) or timestamp()
        ended = timestamp()
        if seconds is not None:
            # No kubelet foretells. A second later, so that who takes the time of a look for the end is found out.
            over = datetime.fromisoformat(started) + timedelta(seconds=seconds + 1)
            time.sleep(max(0.0, (over - datetime.now(UTC)).total_seconds()))
            ended = (datetime.fromisoformat(started) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
        reason = reason or ("Completed" if code == 0 else "Error")
        state = {"exitCode": code, "reason": reason, "message": text, "startedAt": started, "finishedAt": ended}
        self._write(pod, "Failed" if code else "Succeeded", {"terminated": state})

    def disrupt_pod(self, pod: str, reason: str, message: str = "the tests disrupt it") -> None:
        """Set the DisruptionTarget condition, as the taint manager, the scheduler or the kubelet does."""
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": timestamp(),
        }
        # Conditions are merged by type.
        body = {"status": {"conditions": [condition]}}
        self.api.call("PATCH", f"{self.path('pods', pod)}/status", body, "application/strategic-merge-patch+json")

    def delete_pod(self, pod: str) -> None:
        """Ask for a pod's end: one on a node terminates until its kubelet says that it has; others go at once."""
        self.api.delete(self.path("pods", pod))

    def remove_pod(self, pod: str) -> None:
        """Take a pod out of the API by force, as the garbage collection of pods does: failed, then gone."""
        body = self.api.get(self.path("pods", pod))
        if body is None:
            return
        if body["status"].get("phase") not in ("Succeeded", "Failed"):
            self.disrupt_pod(pod, "DeletionByPodGC")
            self.api.patch(f"{self.path('pods', pod)}/status", {"status": {"phase": "Failed"}})
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}
        with suppress(Refused):
            self.api.call("DELETE", self.path("pods", pod), options)
        eventually(f"pod {pod} is gone", lambda: self.api.get(self.path("pods", pod)) is None)

    def stop_pod(self, pod: str, *, seconds: float | None = None, code: int = 143) -> None:
        """Let a pod that terminates come to its end, as after SIGTERM."""
        self.end_pod(pod, code, seconds=seconds)
        self.remove_pod(pod)

    def _started(self, pod: str) -> str | None:
        statuses = (self.api.get(self.path("pods", pod)) or {}).get("status", {}).get("containerStatuses", [])
        own = self._container(pod)
        states = [container["state"] for container in statuses if container["name"] == own]
        started: str | None = states[0].get("running", {}).get("startedAt") if states else None
        return started

    def _container(self, pod: str) -> str:
        """Return the name of the container that is ours."""
        body = self.api.get(self.path("pods", pod))
        return str(body["spec"]["containers"][0]["name"]) if body is not None else ""

    def _write(self, pod: str, phase: str, state: Json) -> None:
        status = {"phase": phase, "containerStatuses": [_container(self._container(pod), state)]}
        self.api.patch(f"{self.path('pods', pod)}/status", {"status": status})


def _container(name: str, state: Json) -> Json:
    return {"name": name, "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
