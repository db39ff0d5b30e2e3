"""Objects that the tests apply, and one namespace with what is in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from controller.api import Api, Json, eventually

GROUP = "/apis/tunery.dev/v1alpha1"
RESULT: Json = {
    "adapter": {"uri": "s3://adapters/x", "manifestSha256": "ab" * 32, "sizeBytes": 12, "rank": 16},
    "metrics": {"loss": "1.2", "evalLoss": "1.4", "baseEvalLoss": "2.5"},
}
REPORT: Json = {
    "dataset": {"rows": 90, "invalidRows": 0, "format": "PromptCompletion"},
    "resolved": {"method": "QLoRA", "revision": "0123abc"},
}


def lorajob(name: str, **spec: Any) -> Json:
    """Return a LoRAJob that needs no GPU."""
    base: Json = {
        "model": {"uri": "s3://models/tiny"},
        "dataset": {"uri": "s3://datasets/d.jsonl"},
        "output": {"uri": f"s3://adapters/{name}", "secretRef": {"name": "s3"}},
        "resources": {"gpus": 0},
    }
    return _object("LoRAJob", name, base | spec)


def adaptermerge(name: str, adapters: list[Json], **spec: Any) -> Json:
    """Return an AdapterMerge."""
    return _object("AdapterMerge", name, {"adapters": adapters, "output": {"uri": f"s3://adapters/{name}"}, **spec})


def _object(kind: str, name: str, spec: Json) -> Json:
    return {"apiVersion": "tunery.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


@dataclass(frozen=True)
class Namespace:
    """A namespace of one test, whose kubelet the test itself plays: no node runs any pod."""

    api: Api
    name: str

    def path(self, plural: str, name: str = "") -> str:
        group = {"jobs": "/apis/batch/v1", "events": "/apis/events.k8s.io/v1"}.get(plural, "/api/v1")
        group = GROUP if plural in ("lorajobs", "adaptermerges") else group
        return f"{group}/namespaces/{self.name}/{plural}" + (f"/{name}" if name else "")

    def apply(self, body: Json) -> Json:
        """Create an object of ours."""
        return self.api.call("POST", self.path(f"{body['kind'].lower()}s"), body)

    def get(self, plural: str, name: str) -> Json | None:
        return self.api.get(self.path(plural, name))

    def status(self, name: str, plural: str = "lorajobs") -> Json:
        """Return the status of an object of ours; empty before there is one."""
        status: Json = (self.get(plural, name) or {}).get("status", {})
        return status

    def condition(self, name: str, type_: str, plural: str = "lorajobs") -> Json:
        conditions = self.status(name, plural).get("conditions", [])
        return next((c for c in conditions if c["type"] == type_), {})

    def patch_spec(self, name: str, plural: str = "lorajobs", **spec: Any) -> None:
        self.api.patch(self.path(plural, name), {"spec": spec})

    def wait_phase(self, name: str, phase: str, plural: str = "lorajobs") -> Json:
        """Return the status once it has this phase."""

        def check() -> Json | None:
            status = self.status(name, plural)
            return status if status.get("phase") == phase else None

        try:
            return eventually(f"{name} is {phase}", check)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {json.dumps(self.status(name, plural), indent=1)}") from error

    def wait_running(self, name: str, plural: str = "lorajobs") -> Json:
        """Return the status once a pod is at work."""

        def check() -> Json | None:
            status = self.status(name, plural)
            running = [c["status"] for c in status.get("conditions", []) if c["type"] == "Running"]
            return status if running == ["True"] else None

        return eventually(f"{name} has a running pod", check)

    def job(self, name: str) -> Json:
        """Return a Job once it is there."""
        return eventually(f"Job {name}", lambda: self.get("jobs", name))

    def pods(self, job: str) -> list[Json]:
        """Return the pods of a Job, oldest first; a predecessor's of the same name are not among them."""
        uid = (self.get("jobs", job) or {"metadata": {"uid": "none"}})["metadata"]["uid"]
        selector = f"?labelSelector=batch.kubernetes.io/controller-uid%3D{uid}"
        pods = self.api.items(self.path("pods") + selector)
        return sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def pod(self, job: str) -> str:
        """Return the name of the pod of a Job that waits to be started, once there is one."""

        def check() -> str | None:
            waiting = [pod for pod in self.pods(job) if pod["status"].get("phase") == "Pending"]
            return waiting[-1]["metadata"]["name"] if waiting else None

        return eventually(f"a pod of {job}", check)

    # What a kubelet does

    def _pod_status(self, pod: str, phase: str, state: Json, **more: Any) -> None:
        container = {"name": "trainer", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
        status = {"phase": phase, "containerStatuses": [container], **more}
        self.api.patch(self.path("pods", pod) + "/status", {"status": status})

    def run_pod(self, job: str) -> str:
        """Start the container of the Job's waiting pod; return the pod's name."""
        pod = self.pod(job)
        self._pod_status(pod, "Running", {"running": {"startedAt": _now()}})
        return pod

    def wait_pod(self, job: str, reason: str, message: str) -> None:
        """Let the container of the Job's waiting pod wait for a reason."""
        self._pod_status(self.pod(job), "Pending", {"waiting": {"reason": reason, "message": message}})

    def end_pod(self, pod: str, code: int = 0, message: Any = "", reason: str = "") -> None:
        """End the container with an exit code and a termination message."""
        text = message if isinstance(message, str) else json.dumps(message)
        reason = reason or ("Completed" if code == 0 else "Error")
        ended = {"exitCode": code, "reason": reason, "message": text, "startedAt": _now(), "finishedAt": _now()}
        self._pod_status(pod, "Failed" if code else "Succeeded", {"terminated": ended})

    def pass_preflight(self, name: str) -> None:
        self.end_pod(self.run_pod(f"{name}-preflight"), message=REPORT)

    def finish(self, name: str, result: Json | None = None) -> None:
        """Run the train Job of a LoRAJob to its end."""
        self.end_pod(self.run_pod(f"{name}-train"), message=result or RESULT)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
