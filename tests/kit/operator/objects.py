"""Objects that the tests apply, and one namespace with what is in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from kit.operator.api import LIMIT_SECONDS, Json, Refused, eventually
from kit.operator.kubelet import Kubelet

_ADMISSION = "/apis/admissionregistration.k8s.io/v1"
UNSEEN: Json = {"observedGeneration": -1}
"""The status that the API server shows of an object which nobody has seen yet."""
RESULT: Json = {
    "adapter": {"uri": "s3://adapters/x", "manifestSha256": "ab" * 32, "sizeBytes": 12, "rank": 16},
    "metrics": {"loss": "1.2", "evalLoss": "1.4", "baseEvalLoss": "2.5"},
}
REPORT: Json = {
    "dataset": {"rows": 90, "invalidRows": 0, "format": "PromptCompletion"},
    "disk": {"estimateBytes": 70 * 2**30 + 1},
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


def adapterserver(name: str, **spec: Any) -> Json:
    """Return an AdapterServer of the tiny model, without a GPU."""
    return _object("AdapterServer", name, {"model": {"uri": "s3://models/tiny"}, "resources": {"gpus": 0}, **spec})


def batchinference(name: str, **spec: Any) -> Json:
    """Return a BatchInference that asks the server `support`."""
    base: Json = {
        "serverRef": {"name": "support"},
        "input": {"uri": "s3://data/in.jsonl", "secretRef": {"name": "data"}},
        "output": {"uri": f"s3://answers/{name}", "secretRef": {"name": "s3"}},
    }
    return _object("BatchInference", name, base | spec)


def lorasweep(name: str, **spec: Any) -> Json:
    """Return a LoRASweep over learning rates of jobs that need no GPU."""
    base: Json = {
        "template": {
            "model": {"uri": "s3://models/tiny"},
            "dataset": {"uri": "s3://datasets/d.jsonl", "evaluation": {"fraction": 0.1}},
            "method": "LoRA",
            "evaluation": {"times": 8},
            "resources": {"gpus": 0},
        },
        "parameters": [{"path": "training.learningRate", "range": {"min": 1e-5, "max": 1e-1, "log": True}}],
        "maxTrials": 4,
        "parallelTrials": 2,
        "output": {"uri": f"s3://adapters/{name}", "secretRef": {"name": "s3"}},
    }
    return _object("LoRASweep", name, base | spec)


def _object(kind: str, name: str, spec: Json) -> Json:
    return {"apiVersion": "tunery.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def _is_about(event: Json, name: str) -> bool:
    regarded = event["involvedObject"]
    return bool(regarded["name"] == name and regarded["apiVersion"].startswith("tunery.dev/"))


@dataclass(frozen=True)
class Namespace(Kubelet):
    """A namespace of one test, whose kubelet the test itself plays: no node runs any pod."""

    def apply(self, body: Json) -> Json:
        """Create an object of ours."""
        return self.api.call("POST", self.path(f"{body['kind'].lower()}s"), body)

    def get(self, plural: str, name: str) -> Json | None:
        """Return an object, or None where there is none."""
        return self.api.get(self.path(plural, name))

    def delete(self, plural: str, name: str) -> None:
        """Delete an object, its children in the background."""
        self.api.delete(self.path(plural, name))

    def orphan(self, plural: str, name: str) -> None:
        """Delete an object, and leave its children behind."""
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Orphan"}
        self.api.call("DELETE", self.path(plural, name), options)

    def status(self, name: str, plural: str = "lorajobs") -> Json:
        """Return the status of an object of ours; empty before there is one."""
        status: Json = (self.get(plural, name) or {}).get("status", {})
        return {} if status == UNSEEN else status

    def condition(self, name: str, type_: str, plural: str = "lorajobs") -> Json:
        """Return a condition, empty where it is not set."""
        conditions = self.status(name, plural).get("conditions", [])
        return next((c for c in conditions if c["type"] == type_), {})

    def event_reasons(self, name: str) -> list[str]:
        """Return the reasons of the events about an object of ours, as `kubectl describe` sorts them."""
        events = [e for e in self.api.items(f"/api/v1/namespaces/{self.name}/events") if _is_about(e, name)]
        return [event["reason"] for event in sorted(events, key=lambda event: str(event["lastTimestamp"]))]

    def patch_spec(self, name: str, plural: str = "lorajobs", **spec: Any) -> None:
        """Change fields of a spec."""
        self.api.patch(self.path(plural, name), {"spec": spec})

    def annotate(self, name: str, plural: str = "lorajobs", **annotations: str | None) -> None:
        """Set annotations; those of ours are named by what follows `tunery.dev/`."""
        full = {f"tunery.dev/{key}": value for key, value in annotations.items()}
        self.api.patch(self.path(plural, name), {"metadata": {"annotations": full}})

    def wait_phase(self, name: str, phase: str, plural: str = "lorajobs", timeout: float = LIMIT_SECONDS) -> Json:
        """Return the status once it has this phase."""

        def check() -> Json | None:
            status = self.status(name, plural)
            return status if status.get("phase") == phase else None

        try:
            return eventually(f"{name} is {phase}", check, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {json.dumps(self.status(name, plural), indent=1)}") from error

    def wait_reason(self, name: str, reason: str, plural: str = "lorajobs", timeout: float = LIMIT_SECONDS) -> Json:
        """Return the status once a condition gives this reason."""

        def check() -> Json | None:
            status = self.status(name, plural)
            return status if reason in {c["reason"] for c in status.get("conditions", [])} else None

        try:
            return eventually(f"a condition of {name} says {reason}", check, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {json.dumps(self.status(name, plural), indent=1)}") from error

    def wait_failure(self, name: str, reason: str, timeout: float = LIMIT_SECONDS) -> Json:
        """Return the status of a LoRAJob once `failure.reason` is this, whether it has failed for good or not."""

        def check() -> Json | None:
            status = self.status(name)
            return status if status.get("failure", {}).get("reason") == reason else None

        return eventually(f"the status of {name} says {reason}", check, timeout)

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

    def pass_preflight(self, name: str) -> None:
        """Run the preflight Job of a LoRAJob to its end."""
        self.end_pod(self.run_pod(f"{name}-preflight"), message=REPORT)

    def finish(self, name: str, result: Json | None = None) -> None:
        """Run the train Job of a LoRAJob to its end."""
        self.end_pod(self.run_pod(f"{name}-train"), message=result or RESULT)

    def limit(self, **hard: str) -> None:
        """Set a ResourceQuota, such as pods="0"."""
        body = {"metadata": {"name": "limit"}, "spec": {"hard": hard}}
        self.api.call("POST", self.path("resourcequotas"), body)
        path = self.path("resourcequotas", "limit")
        eventually("the quota holds", lambda: (self.api.get(path) or {}).get("status", {}).get("hard"))

    def unlimit(self) -> None:
        """Remove the quota of `limit`."""
        self.delete("resourcequotas", "limit")

    def deny(self, group: str, resource: str, message: str) -> None:
        """Refuse to create objects of a resource here, by an admission policy that says `message`."""
        rules = [
            {"apiGroups": [group], "apiVersions": ["*"], "operations": ["CREATE"], "resources": [resource]},
        ]
        here = {"matchLabels": {"kubernetes.io/metadata.name": self.name}}
        spec = {
            "matchConstraints": {"resourceRules": rules, "namespaceSelector": here},
            "validations": [{"expression": "false", "message": message}],
        }
        meta = {"name": f"deny-{self.name}"}
        self.api.call("POST", f"{_ADMISSION}/validatingadmissionpolicies", {"metadata": meta, "spec": spec})
        binding = {"policyName": meta["name"], "validationActions": ["Deny"]}
        self.api.call("POST", f"{_ADMISSION}/validatingadmissionpolicybindings", {"metadata": meta, "spec": binding})
        eventually("the policy is in force", lambda: self._is_denied(resource))

    def allow(self) -> None:
        """Remove the policy of `deny`."""
        for plural in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
            self.api.delete(f"{_ADMISSION}/{plural}/deny-{self.name}")

    def _is_denied(self, resource: str) -> bool:
        container = {"name": "c", "image": "i"}
        template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
        specs: Json = {"jobs": {"template": template}, "services": {"ports": [{"port": 80}]}}
        body: Json = {"metadata": {"name": "probe"}, **({"spec": specs[resource]} if resource in specs else {})}
        body = lorajob("probe") if resource == "lorajobs" else body
        try:
            self.api.call("POST", f"{self.path(resource)}?dryRun=All", body)
        except Refused as refused:
            return refused.status in (403, 422)
        return False
