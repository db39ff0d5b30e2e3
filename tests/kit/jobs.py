"""LoRAJobs and AdapterMerges as a user sees them: apply, wait, and say why when it goes wrong."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from kit.kubectl import Kubectl, wait_for

FINAL = frozenset({"Succeeded", "Failed", "Stopped"})


class Job:
    """One LoRAJob or AdapterMerge."""

    def __init__(self, kubectl: Kubectl, manifest: dict[str, Any], namespace: str) -> None:
        self.kubectl = kubectl
        self.manifest = manifest
        self.namespace = namespace
        self.kind: str = manifest["kind"].lower()
        self.name: str = manifest["metadata"]["name"]

    def apply(self) -> Job:
        """Apply the manifest."""
        self.kubectl.apply(self.manifest, namespace=self.namespace)
        return self

    @property
    def status(self) -> dict[str, Any]:
        """The status now; empty before the operator wrote one."""
        found = self.kubectl.get(self.kind, self.name, self.namespace) or {}
        status: dict[str, Any] = found.get("status", {})
        return status

    def patch_spec(self, **fields: Any) -> None:
        """Merge-patch fields of the spec."""
        self.kubectl.run(
            "patch", self.kind, self.name, "-n", self.namespace, "--type=merge", "-p", json.dumps({"spec": fields})
        )

    def retry(self, value: str) -> None:
        """Ask for a failed job to be tried again, and return once the operator has taken it up."""
        annotation = f"tunery.dev/retry={value}"
        self.kubectl.run("annotate", self.kind, self.name, "-n", self.namespace, "--overwrite", annotation)
        wait_for(f"{self.name} to be reopened", lambda: self.status.get("phase") != "Failed", timeout=60)

    @property
    def uid(self) -> str:
        """The uid of the object, which a retry keeps."""
        found = self.kubectl.get(self.kind, self.name, self.namespace)
        assert found is not None, f"{self.kind} {self.name} does not exist"
        uid: str = found["metadata"]["uid"]
        return uid

    @property
    def failure(self) -> dict[str, Any]:
        """What the status says stands in the way, or ended the job; empty where nothing does."""
        failure: dict[str, Any] = self.status.get("failure") or {}
        return failure

    def wait_failure(self, reason: str, timeout: float) -> dict[str, Any]:
        """Return `status.failure` once its reason is `reason`; raises AssertionError with the whole story."""
        try:
            wait_for(f"{self.name}: {reason}", lambda: self.failure.get("reason") == reason, timeout)
        except TimeoutError as error:
            raise AssertionError(f"{error}; it says {self.failure}\n{self.story()}") from error
        return self.failure

    def wait_no_failure(self, timeout: float) -> None:
        """Return once nothing stands in the way any more; raises AssertionError with the whole story."""
        try:
            wait_for(f"{self.name}: nothing in the way", lambda: not self.failure, timeout)
        except TimeoutError as error:
            raise AssertionError(f"{error}; it says {self.failure}\n{self.story()}") from error

    def wait_phase(self, *phases: str, timeout: float = 300) -> dict[str, Any]:
        """Return the status once its phase is one of `phases`.

        Raises AssertionError with the whole story when the job ends in another phase or takes longer.
        """
        return self._wait(f"phase {' or '.join(phases)}", phases, timeout)

    def _wait(self, what: str, phases: Collection[str], timeout: float) -> dict[str, Any]:
        def check() -> dict[str, Any] | None:
            status = self.status
            phase = status.get("phase")
            if phase in phases:
                return status
            if phase in FINAL:
                raise AssertionError(f"{self.name} is {phase}, not {what}\n{self.story()}")
            return None

        try:
            return wait_for(f"{self.kind} {self.name}: {what}", check, timeout)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.story()}") from error

    def pods(self, role: str) -> list[dict[str, Any]]:
        """Return the pods of this job for `preflight`, `train` or `merge`."""
        selector = f"tunery.dev/owner={self.name},tunery.dev/role={role}"
        return self.kubectl.list("pods", self.namespace, selector)

    def jobs(self, role: str) -> list[dict[str, Any]]:
        """Return the batch Jobs of this job for a role."""
        selector = f"tunery.dev/owner={self.name},tunery.dev/role={role}"
        return self.kubectl.list("jobs.batch", self.namespace, selector)

    def condition(self, type_: str) -> dict[str, Any]:
        """Return one condition; empty where there is none."""
        return next((c for c in self.status.get("conditions", []) if c["type"] == type_), {})

    def events(self) -> list[dict[str, Any]]:
        """Return the events that regard this object."""
        events = self.kubectl.list("events.events.k8s.io", self.namespace)
        return [event for event in events if event.get("regarding", {}).get("name") == self.name]

    def story(self) -> str:
        """Return describe and the logs of the pods, for a failed test."""
        parts = [self.kubectl.run("describe", self.kind, self.name, "-n", self.namespace)]
        selector = f"tunery.dev/owner={self.name}"
        parts.append(self.kubectl.run("get", "pods,jobs", "-n", self.namespace, "-l", selector))
        logs = ("logs", "-n", self.namespace, "-l", selector, "--tail=40", "--prefix")
        try:
            parts.append(self.kubectl.run(*logs))
        except Exception as error:  # noqa: BLE001 - the story is told as far as it goes: a pod may not have started
            parts.append(str(error))
        return "\n".join(parts)
