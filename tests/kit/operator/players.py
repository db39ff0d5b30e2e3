"""Those who act in a cluster beside the operator, for tests with many objects: kubelets, and a witness."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import urllib3

from kit.operator.api import Api, Json, Refused
from kit.operator.kubelet import Kubelet
from kit.operator.objects import REPORT, RESULT

ROLE_LABEL = "tunery.dev/role"
MERGED: Json = {
    "adapter": {"uri": "s3://adapters/m", "manifestSha256": "cd" * 32, "sizeBytes": 5},
    "inputs": [{"uri": "s3://adapters/x", "sha256": "ab" * 32, "rank": 16, "weight": "1.0"}],
    "verification": {"maxError": "1e-7", "method": "deltas compared"},
    "rank": 32,
}
ANSWERED: Json = {
    "output": {"uri": "s3://answers/b", "manifestSha256": "ef" * 32, "sizeBytes": 5},
    "answers": {"lines": 10, "answered": 10},
}
WORDS = {
    "preflight": REPORT,
    "train": RESULT,
    "merge": MERGED,
    "publish": RESULT,
    "report": RESULT,
    "batch": ANSWERED,
    "publish-best": MERGED,
}
_MANAGED = "labelSelector=app.kubernetes.io%2Fmanaged-by%3Dtunery"
_UNFINISHED = "fieldSelector=status.phase!%3DSucceeded%2Cstatus.phase!%3DFailed"

End = Callable[[Json], "tuple[int, Any] | None"]
"""From a pod that runs to how it ends now: exit code and last words; None: it goes on."""


def ends_well(pod: Json) -> tuple[int, Any]:
    """Return the end of a pod that did what it was for."""
    return 0, WORDS[pod["metadata"]["labels"][ROLE_LABEL]]


class Pods(threading.Thread):
    """The pods of ours that have not ended, as a watch reports them."""

    def __init__(self, api: Api) -> None:
        super().__init__(name="pods", daemon=True)
        self._api = api
        self._answer: urllib3.BaseHTTPResponse | None = None
        self._found: dict[str, Json] = {}
        self._stop_now = threading.Event()

    def now(self) -> list[Json]:
        """Return them, as far as is known."""
        return list(self._found.values())

    def run(self) -> None:
        while not self._stop_now.wait(0.05):
            # A loaded API server ends a watch at times; the next one begins with all pods.
            with suppress(urllib3.exceptions.HTTPError, AttributeError, KeyError, ValueError):
                self._answer = self._api.stream(f"/api/v1/pods?watch=1&{_MANAGED}&{_UNFINISHED}&timeoutSeconds=3600")
                self._found.clear()
                for lines in self._answer:
                    for line in lines.splitlines():
                        self._note(json.loads(line))

    def _note(self, event: Json) -> None:
        uid = event["object"]["metadata"]["uid"]
        if event["type"] == "DELETED":  # or has ended
            self._found.pop(uid, None)
        else:
            self._found[uid] = event["object"]

    def stop(self) -> None:
        """Watch no more."""
        self._stop_now.set()
        if self._answer is not None:
            with suppress(OSError):  # the API server has just closed it
                self._answer.shutdown()


class Kubelets(threading.Thread):
    """Starts every pod of ours, and ends it as `end` says, a little later; a server's works on."""

    def __init__(self, api: Api, end: End = ends_well, seconds: float = 0.15) -> None:
        super().__init__(name="kubelets", daemon=True)
        self._api = api
        self._end = end
        self._seconds = seconds
        self._pods = Pods(api)
        self._done: set[tuple[str, str]] = set()
        """By uid of a pod and its phase, what was done: the watch may report it later."""
        self._stop_now = threading.Event()

    def run(self) -> None:
        self._pods.start()
        while not self._stop_now.wait(self._seconds):
            for pod in self._pods.now():
                self._act_on(pod)
        self._pods.stop()

    def _act_on(self, pod: Json) -> None:
        # A pod may go at any time, and a loaded API server refuses a call: the next round makes it good.
        with suppress(Refused, urllib3.exceptions.HTTPError):
            self._act(pod)

    def _act(self, pod: Json) -> None:
        meta = pod["metadata"]
        kubelet = Kubelet(self._api, meta["namespace"])
        role, phase = meta["labels"].get(ROLE_LABEL), pod["status"].get("phase", "")
        if "deletionTimestamp" in meta or (meta["uid"], phase) in self._done:
            return
        if role == "serve":
            if phase == "Pending":
                kubelet.serve_pod(meta["name"])
                self._done.add((meta["uid"], phase))
            return
        if role not in WORDS:
            return  # another test's, which is no pod of an operator
        if phase == "Pending":
            kubelet.start_pod(meta["name"])
            self._done.add((meta["uid"], phase))
            return
        end = self._end(pod)
        if end is not None:
            kubelet.end_pod(meta["name"], end[0], end[1])
            self._done.add((meta["uid"], phase))

    def stop(self) -> None:
        """Act no more."""
        self._stop_now.set()
        self.join(20)


class Witness(threading.Thread):
    """Watches the Jobs and our objects from outside: which Jobs there ever were, which phases were shown."""

    def __init__(self, api: Api, path: str) -> None:
        super().__init__(name="witness", daemon=True)
        self._api = api
        self._path = path
        self._answer: urllib3.BaseHTTPResponse | None = None
        self.uids: dict[tuple[str, str], set[str]] = defaultdict(set)
        """By namespace and name."""
        self.ended = threading.Event()

    def run(self) -> None:
        version = self._api.call("GET", f"{self._path}?limit=1")["metadata"]["resourceVersion"]
        query = f"?watch=1&resourceVersion={version}&timeoutSeconds=3600"
        with suppress(urllib3.exceptions.HTTPError, ValueError, AttributeError):
            self._answer = self._api.stream(self._path + query)
            for line in self._answer:
                self._note(line)
        self.ended.set()

    def _note(self, lines: bytes) -> None:
        for line in lines.splitlines():
            meta = json.loads(line)["object"]["metadata"]
            if "uid" in meta:
                self.uids[meta["namespace"], meta["name"]].add(meta["uid"])

    def made(self, namespace: str) -> dict[str, int]:
        """Return how many objects there ever were in a namespace, by name."""
        return {name: len(uids) for (ns, name), uids in list(self.uids.items()) if ns == namespace}

    def stop(self) -> None:
        """Look no more."""
        if self._answer is not None:
            with suppress(OSError):  # the API server has just closed it
                self._answer.shutdown()
