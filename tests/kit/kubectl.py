"""kubectl as a function: arguments in, parsed JSON out."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class KubectlError(Exception):
    """kubectl ended with an error; the message is what it printed."""


class Kubectl:
    """kubectl against one cluster.

    `environment` holds KUBECONFIG and a PATH on which kubectl and helm are found.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)

    def run(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Return what `kubectl ARGUMENTS` prints; raises KubectlError when it fails."""
        return self.program("kubectl", *arguments, stdin=stdin, timeout=timeout)

    def program(self, *arguments: str, stdin: str | None = None, timeout: float = 300) -> str:
        """Return what a program of the cluster's environment, such as helm, prints; raises KubectlError."""
        done = subprocess.run(
            arguments, input=stdin, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode != 0:
            raise KubectlError(f"{' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def apply(self, *objects: Mapping[str, Any], namespace: str | None = None) -> str:
        """Apply `objects` as a user does, with strict validation."""
        where = ["-n", namespace] if namespace else []
        # As JSON: PyYAML writes the string "1e-3" without quotes, which kubectl reads as a number.
        bundle = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        return self.run("apply", *where, "-f", "-", stdin=json.dumps(bundle))

    def get(self, kind: str, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        """Return one object, or None where there is none."""
        where = ["-n", namespace] if namespace else []
        text = self.run("get", kind, name, *where, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def list(self, kind: str, namespace: str | None = None, selector: str = "") -> list[dict[str, Any]]:
        """Return the objects of a kind."""
        where = ["-n", namespace] if namespace else ["--all-namespaces"]
        chosen = ["-l", selector] if selector else []
        items: list[dict[str, Any]] = json.loads(self.run("get", kind, *where, *chosen, "-o", "json"))["items"]
        return items

    def delete(self, kind: str, name: str, namespace: str | None = None, *, wait: bool = True) -> None:
        """Delete one object; it is no error when it is gone already."""
        where = ["-n", namespace] if namespace else []
        self.run("delete", kind, name, *where, "--ignore-not-found", f"--wait={str(wait).lower()}")


def wait_for(what: str, check: Callable[[], T | None], timeout: float, every: float = 0.5) -> T:
    """Return the first true answer of `check`; raises TimeoutError naming `what` after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {timeout:.0f} s")
        time.sleep(every)
