"""One server of a test: the operator and Kubernetes' own controllers make its children, its replicas are played."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.operator.api import Json, eventually
from kit.operator.objects import Namespace
from kit.operator.poster import Poster
from kit.operator.process import OperatorProcess

SERVERS = "adapterservers"
CHILDREN = ("deployments", "configmaps", "services", "poddisruptionbudgets", "networkpolicies")


@dataclass
class Server:
    """An AdapterServer, its children, and its replicas as the test plays them."""

    namespace: Namespace
    operator: OperatorProcess | None = None
    """None: nobody reports."""
    tls: Path | None = None
    name: str = "support"
    revisions: dict[str, int] = field(default_factory=dict)
    """The newest revision of what is to be served that each replica has read, by pod."""

    @property
    def status(self) -> Json:
        """What the operator says of it."""
        return self.namespace.status(self.name, SERVERS)

    def child(self, plural: str, suffix: str = "server") -> Json:
        """Return a child once it is there."""
        name = f"{self.name}-{suffix}"
        return eventually(f"{plural} {name}", lambda: self.namespace.get(plural, name))

    def children(self) -> dict[str, list[str]]:
        """Return the names of all children, by resource."""
        found = {plural: self.namespace.api.items(self.namespace.path(plural)) for plural in CHILDREN}
        return {
            plural: sorted(item["metadata"]["name"] for item in items if item["metadata"].get("ownerReferences"))
            for plural, items in found.items()
        }

    def desired(self) -> Json:
        """Return what the replicas read from their ConfigMap."""
        desired: Json = json.loads(self.child("configmaps", "adapters")["data"]["adapters.json"])
        return desired

    def wanted(self) -> list[str]:
        """Return the names of what is to be served, as far as there is a list yet."""
        found = self.namespace.get("configmaps", f"{self.name}-adapters")
        adapters = json.loads(found["data"]["adapters.json"]).get("adapters", []) if found is not None else []
        return [item["name"] for item in adapters]

    def argument(self, flag: str) -> str:
        """Return what the engine is started with; empty where the flag is not there."""
        command = self.child("deployments")["spec"]["template"]["spec"]["containers"][0]["command"]
        return next((item.partition("=")[2] for item in command if item.startswith(f"{flag}=")), "")

    def wait_desired(self, *names: str) -> Json:
        """Return what is to be served once that is these adapters."""

        def check() -> Json | None:
            desired = self.desired()
            return desired if {item["name"] for item in desired.get("adapters", [])} == set(names) else None

        return eventually(f"{names} are to be served", check)

    def pods(self) -> list[str]:
        """Return the names of the pods that are not on their way out, oldest first."""
        selector = f"labelSelector=tunery.dev/owner%3D{self.name}"
        pods = self.namespace.api.items(f"{self.namespace.path('pods')}?{selector}")
        alive = [pod["metadata"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return [meta["name"] for meta in sorted(alive, key=lambda meta: (meta["creationTimestamp"], meta["name"]))]

    def wait_pods(self, count: int = 1) -> list[str]:
        """Return the pods once there are so many."""

        def check() -> list[str] | None:
            pods = self.pods()
            return pods if len(pods) == count else None

        return eventually(f"{count} pods of {self.name}", check)

    def start(self, count: int = 1) -> list[str]:
        """Return the pods once there are so many, all of them ready."""
        pods = self.wait_pods(count)
        for pod in pods:
            self.namespace.serve_pod(pod)
        return pods

    def poster(self, pod: str) -> Poster:
        """Return who reports for a pod."""
        assert self.operator is not None
        assert self.tls is not None
        return Poster(self.namespace, self.operator, self.tls, pod)

    def report(self, pod: str, *adapters: Json, **state: Any) -> Json:
        """Report for a pod until the operator takes it, as a gateway does; return the answer."""
        body = {
            "replicaStatus": {
                "revision": self.revisions.get(pod, 0),
                "engineReady": True,
                "engineVersion": "0.32.0",
                "adapters": list(adapters),
                **state,
            }
        }
        poster = self.poster(pod)
        token = poster.token()

        def check() -> Json | None:
            code, answer = poster.exchange(token, body)
            assert code in (200, 429, 503), code
            return answer if code == 200 else None

        answer = eventually(f"a report of {pod} is taken", check)
        if answer.get("desired"):
            self.revisions[pod] = answer["desired"]["revision"]
        return answer

    def wait_adapter(self, name: str, state: str) -> Json:
        """Return what the status says of an adapter once it is in a state."""

        def check() -> Json | None:
            found = [item for item in self.status.get("adapters", []) if item["name"] == name]
            return found[0] if found and found[0]["state"] == state else None

        try:
            return eventually(f"adapter {name} is {state}", check)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {json.dumps(self.status, indent=1)}") from error


def served(name: str, sha256: str = "ab" * 32, **more: Any) -> Json:
    """Return what a replica says of an adapter that it serves."""
    return {"name": name, "state": "Served", "manifestSha256": sha256, "rank": 16, "sizeBytes": 12, **more}
