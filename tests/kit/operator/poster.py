"""A pod that posts to the progress endpoint of a running operator, with a real token."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from kit.operator.api import Json
from kit.operator.objects import Namespace
from kit.operator.process import OperatorProcess

REPORT: Json = {
    "trainerStatus": {
        "progressPercentage": 42,
        "estimatedRemainingSeconds": 200,
        "metrics": [{"name": "loss", "value": "1.2345678"}, {"name": "total_steps", "value": "100"}],
        "lastUpdatedTime": "2026-01-31T12:00:00+00:00",
        "step": 42,
        "phase": "Evaluating",
        "checkpoint": {"uri": "s3://adapters/c/step-000040", "step": 40},
    }
}


class Poster:
    """What runs in a pod: it has a token, a URL and a certificate authority."""

    def __init__(self, namespace: Namespace, operator: OperatorProcess, tls: Path, name: str) -> None:
        self.namespace, self.operator, self.name = namespace, operator, name
        self.context = ssl.create_default_context(cafile=tls / "ca.crt")

    def token(self, audience: str = "tunery-progress") -> str:
        """Return a token of this pod, as the kubelet asks for one."""
        uid = (self.namespace.get("pods", self.name) or {})["metadata"]["uid"]
        bound = {"kind": "Pod", "apiVersion": "v1", "name": self.name, "uid": uid}
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": [audience], "expirationSeconds": 3600, "boundObjectRef": bound},
        }
        path = self.namespace.path("serviceaccounts", "default") + "/token"
        token: str = self.namespace.api.call("POST", path, body)["status"]["token"]
        return token

    def post(self, token: str, body: Any = REPORT) -> int:
        """Return the HTTP status of a report."""
        return self.exchange(token, body)[0]

    def exchange(self, token: str, body: Any) -> tuple[int, Json]:
        """Return the HTTP status of a report, and the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.operator.progress_url, data=data, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=5, context=self.context) as answer:
                return int(answer.status), json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, {}
