"""A node whose containers are processes of this machine: it needs neither root nor a container runtime.

The scheduler binds pods to it, and it acts on them with the permissions of a kubelet. Each pod has one container, which
is never restarted.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Protocol

import urllib3

from kit.operator.api import Api, Json, Refused
from kit.operator.kubelet import timestamp
from kit.pod_files import PodFiles
from kit.watch import watch

NODE = "processes"
USER, GROUP = f"system:node:{NODE}", "system:nodes"
"""The user and the group of the kubelet's certificate."""
PLACEMENT: Json = {
    "nodeSelector": {"kubernetes.io/hostname": NODE},
    "tolerations": [{"key": "tunery.dev/processes", "operator": "Exists", "effect": "NoSchedule"}],
}
"""What a pod needs to be scheduled here: other tests' pods are not."""
_CAPACITY = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "1Ti", "pods": "110"}
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_SELECTOR = f"fieldSelector=spec.nodeName%3D{NODE}"
_HEARTBEAT_SECONDS = 10
_SIGNALLED = 128
"""What a container runtime adds to the number of the signal that ended a container."""


class Process(Protocol):
    """The part of subprocess.Popen that a pod needs."""

    def wait(self) -> int:
        """Return the exit code, negative after a signal."""

    def send_signal(self, number: int, /) -> None:
        """Send a signal, unless the process has ended."""


Popen = Callable[..., Process]
"""subprocess.Popen or ForkServer.popen."""


class PodProcess(threading.Thread):
    """One pod, from its volumes to its last status."""

    def __init__(self, api: Api, folder: Path, pod: Json, popen: Popen) -> None:
        super().__init__(name=f"pod {pod['metadata']['name']}", daemon=True)
        self.pod = pod
        self.files = PodFiles(api, folder, pod)
        self._api = api
        self._popen = popen
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._reason = ""
        self._deleted = False
        self._ended = False

    @property
    def pod_name(self) -> str:
        """The pod's name."""
        return str(self.pod["metadata"]["name"])

    @property
    def owner(self) -> str:
        """The name of the object that the pod works for."""
        return str(self.pod["metadata"]["labels"]["tunery.dev/owner"])

    def run(self) -> None:
        """Run the container to its end and report each state."""
        # The pod may be deleted by force, or the API server stopped, at any time.
        with suppress(Refused, urllib3.exceptions.HTTPError):
            if self._start_container():
                self._follow()
            with self._lock:
                self._ended = True
            if self._deleted:
                self._remove()

    def _start_container(self) -> bool:
        """Start the process, unless the pod was deleted before; report why it cannot start, and return False then."""
        try:
            self.files.write()
            with self._lock:
                if not self._deleted:
                    self._process = self._start_process()
        except Exception as error:  # noqa: BLE001 (the status shows it, whatever it is)
            self._report("Pending", {"waiting": {"reason": "CreateContainerError", "message": str(error)}})
            return False
        return True

    def _follow(self) -> None:
        started, code = timestamp(), _SIGNALLED + SIGKILL
        if self._process is not None:
            self._report("Running", {"running": {"startedAt": started}})
            code = self._process.wait()
        code = code if code >= 0 else _SIGNALLED - code
        ended = {
            "exitCode": code,
            "reason": self._reason or ("Error" if code else "Completed"),
            "message": self.files.termination_message,
            "startedAt": started,
            "finishedAt": timestamp(),
        }
        self._report("Failed" if code else "Succeeded", {"terminated": ended})

    def _start_process(self) -> Process:
        with self.files.log.open("wb") as log:
            return self._popen(
                self.files.command(),
                env=self.files.environment(),
                cwd=self.files.work,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def terminate(self, grace_seconds: float) -> None:
        """End a pod that was deleted: SIGTERM, and SIGKILL after its grace period."""
        with self._lock:
            first, self._deleted = not self._deleted, True
            ended = self._ended
        if not first:
            return
        if ended:
            with suppress(Refused):
                self._remove()
            return
        self._signal(SIGTERM)
        timer = threading.Timer(grace_seconds, self.kill)
        timer.daemon = True
        timer.start()

    def kill(self, reason: str = "") -> None:
        """Send SIGKILL; `reason` is reported of it, such as OOMKilled."""
        self._reason = reason or self._reason
        self._signal(SIGKILL)

    def _signal(self, number: Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    @property
    def _path(self) -> str:
        return f"/api/v1/namespaces/{self.pod['metadata']['namespace']}/pods/{self.pod['metadata']['name']}"

    def _report(self, phase: str, state: Json) -> None:
        """Write the status: phase, conditions and the container's state."""
        running = phase == "Running"
        container = {
            "name": self.pod["spec"]["containers"][0]["name"],
            "image": self.pod["spec"]["containers"][0]["image"],
            "imageID": "",
            "ready": running,
            "restartCount": 0,
            "state": {"waiting": None, "running": None, "terminated": None} | state,
        }
        conditions = {"PodReadyToStartContainers": running, "Initialized": True} | dict.fromkeys(
            ("Ready", "ContainersReady"), running
        )
        status = {
            "phase": phase,
            "startTime": self.pod["status"].get("startTime", timestamp()),
            "conditions": [
                {"type": type_, "status": str(value), "lastTransitionTime": timestamp()}
                for type_, value in conditions.items()
            ],
            "containerStatuses": [container],
        }
        body = {"metadata": {"uid": self.pod["metadata"]["uid"]}, "status": status}
        self._api.call("PATCH", f"{self._path}/status", body, "application/strategic-merge-patch+json")

    def _remove(self) -> None:
        """Take the pod out of the API, as the last step of its deletion."""
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.pod["metadata"]["uid"]}}
        self._api.call("DELETE", self._path, {"kind": "DeleteOptions", "apiVersion": "v1", **options})


class ProcessKubelet(threading.Thread):
    """Registers the node and starts each pod that is bound to it."""

    def __init__(self, kubeconfig: Path, folder: Path, popen: Popen = subprocess.Popen) -> None:
        super().__init__(name="kubelet", daemon=True)
        self._api = Api(kubeconfig)
        self._folder = folder
        self._popen = popen
        self._pods: dict[str, PodProcess] = {}
        self._stopped = threading.Event()

    def __enter__(self) -> ProcessKubelet:
        self._register()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for pod in list(self._pods.values()):
            pod.kill()
        for pod in list(self._pods.values()):
            pod.join(20)

    def run(self) -> None:
        """Follow the node's pods by watches, each as long as the node's heartbeat lasts."""
        while not self._stopped.is_set():
            with suppress(Refused, urllib3.exceptions.HTTPError):
                self._renew_lease()
                for type_, pod in watch(self._api, "/api/v1/pods", _SELECTOR, _HEARTBEAT_SECONDS):
                    self._handle_event(type_, pod)

    def find(self, namespace: str, name: str) -> PodProcess:
        """Return a pod by its name."""
        return next(
            each
            for each in list(self._pods.values())
            if (each.pod["metadata"]["namespace"], each.pod["metadata"]["name"]) == (namespace, name)
        )

    def of_namespace(self, namespace: str) -> list[PodProcess]:
        """Return the pods there ever were in a namespace, oldest first."""
        return [each for each in list(self._pods.values()) if each.pod["metadata"]["namespace"] == namespace]

    def _handle_event(self, type_: str, pod: Json) -> None:
        uid = pod["metadata"]["uid"]
        if self._stopped.is_set():
            return
        if uid not in self._pods and type_ != "DELETED":
            self._pods[uid] = PodProcess(self._api, self._folder / uid, pod, self._popen)
            self._pods[uid].start()
        if type_ == "DELETED":
            if uid in self._pods:
                self._pods[uid].kill()
        elif "deletionTimestamp" in pod["metadata"]:
            self._pods[uid].terminate(pod["metadata"]["deletionGracePeriodSeconds"])

    def _register(self) -> None:
        labels = PLACEMENT["nodeSelector"]
        taint = {"key": PLACEMENT["tolerations"][0]["key"], "effect": "NoSchedule"}
        node = {"metadata": {"name": NODE, "labels": labels}, "spec": {"taints": [taint]}}
        self._api.call("POST", "/api/v1/nodes", node)
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": timestamp()}
        status = {"capacity": _CAPACITY, "allocatable": _CAPACITY, "conditions": [ready]}
        content = "application/strategic-merge-patch+json"
        self._api.call("PATCH", f"/api/v1/nodes/{NODE}/status", {"status": status}, content)

    def _renew_lease(self) -> None:
        now = timestamp().replace("Z", ".000000Z")
        spec = {"holderIdentity": NODE, "leaseDurationSeconds": 4 * _HEARTBEAT_SECONDS, "renewTime": now}
        lease = {"metadata": {"name": NODE}, "spec": spec}
        try:
            self._api.patch(f"{_LEASES}/{NODE}", lease)
        except Refused as refused:
            if refused.status != 404:
                raise
            self._api.call("POST", _LEASES, lease)
