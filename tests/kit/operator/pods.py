"""The operator as its platform team sees it: who leads, what it logged, whether it ever restarted."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.installation import NAMESPACE
from kit.kubectl import Kubectl, wait_for

SELECTOR = "app.kubernetes.io/name=tunery,app.kubernetes.io/component=operator"
CONTAINER = "operator"
WORST = frozenset({"ERROR", "CRITICAL", "FATAL"})
TRACEBACK = "Traceback (most recent call last)"
EVENT = "{.metadata.name} {.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].state}\n"
END_SECONDS = 10


def operator_pods(kubectl: Kubectl) -> list[dict[str, Any]]:
    """Return the operator's pods that are not being deleted."""
    pods = kubectl.list("pods", NAMESPACE, SELECTOR)
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def leader(kubectl: Kubectl) -> str | None:
    """Return the name of the pod that holds the Lease; None while nobody does."""
    holders = {lease["spec"].get("holderIdentity") or "" for lease in kubectl.list("leases", NAMESPACE)}
    names = [pod["metadata"]["name"] for pod in operator_pods(kubectl)]
    return next((name for name in names for holder in holders if holder.startswith(name)), None)


def wait_for_leader(kubectl: Kubectl, *, other_than: str | None = None, timeout: float = 60) -> str:
    """Return the name of the leading pod, once there is one that is not `other_than`."""

    def check() -> str | None:
        found = leader(kubectl)
        return found if found != other_than else None

    return wait_for(f"a leader other than {other_than}", check, timeout, every=0.2)


@dataclass(frozen=True)
class Run:
    """One start of the operator's container."""

    pod: str
    restarts: int
    log: Path


class OperatorRecord:
    """Follows every pod of the operator: each start of its container, and every line that it logs.

    Pods that are replaced take their logs with them, so the logs are followed, not read at the end.
    """

    def __init__(self, kubectl: Kubectl, folder: Path) -> None:
        self._kubectl = kubectl
        self._folder = folder
        self._runs: dict[tuple[str, int], Run] = {}
        self._first: dict[str, int] = {}
        self._killed: list[str] = []
        self._followers: list[subprocess.Popen[bytes]] = []
        self._ended = threading.Event()
        self._watcher: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._watch, name="operator-record", daemon=True)

    def start(self) -> None:
        """Begin to follow what runs and what will start."""
        self._thread.start()

    def killed(self, pod: str) -> None:
        """Note that a test made this pod's container start again: that restart is no fault."""
        self._killed.append(pod)

    def stop(self) -> None:
        """End following; what was written until now can be asked about."""
        self._ended.set()
        if self._watcher is not None:
            self._watcher.terminate()
        self._thread.join(END_SECONDS)
        for process in self._followers:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)

    def faults(self) -> list[str]:
        """Return a line for each restart that no test made, and for each line that no operator should log."""
        found = []
        for run in self._runs.values():
            allowed = self._first[run.pod] + self._killed.count(run.pod)
            if run.restarts > allowed:
                found.append(f"{run.pod}: its container started again ({run.restarts} restarts, {allowed} by tests)")
            found += [f"{run.pod}: {line}" for line in bad_lines(run.log.read_text(errors="replace"))]
        return found

    def starts(self) -> int:
        """Return how many starts of the container were seen; 0 means that nothing was looked at."""
        return len(self._runs)

    def _watch(self) -> None:
        """Read the watch until the end; it ends too when the API server closes it."""
        where = ("-n", NAMESPACE, "-l", SELECTOR)
        command = ["kubectl", "get", "pods", *where, "--watch", "-o", f"jsonpath={EVENT}"]
        while not self._ended.is_set():
            self._watcher = self._spawn(command, stdout=subprocess.PIPE, text=True)
            assert self._watcher.stdout is not None
            for line in self._watcher.stdout:
                self._see(line)
            self._ended.wait(1)

    def _see(self, line: str) -> None:
        """Follow the log of a start that is new."""
        name, _, rest = line.strip().partition(" ")
        count, _, state = rest.partition(" ")
        if not count.isdigit() or "running" not in state:
            return
        restarts = int(count)
        self._first.setdefault(name, restarts)
        if (name, restarts) in self._runs:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / f"{name}-{restarts}.log"
        command = ["kubectl", "logs", "-n", NAMESPACE, name, "-c", CONTAINER, "--follow"]
        with log.open("wb") as file:
            self._followers.append(self._spawn(command, stdout=file))
        self._runs[name, restarts] = Run(name, restarts, log)

    def _spawn(self, command: list[str], **streams: Any) -> subprocess.Popen[Any]:
        return subprocess.Popen(command, env=self._kubectl.environment, stderr=subprocess.DEVNULL, **streams)


def bad_lines(log: str) -> Iterator[str]:
    """Yield what stands in a log, text or JSON, at level ERROR or worse, or is the start of a traceback."""
    for line in log.splitlines():
        if TRACEBACK in line or _level(line) in WORST:
            yield line


def _level(line: str) -> str:
    """Return the level of a line: the field `level` of JSON, else the second word."""
    try:
        return str(json.loads(line).get("level", ""))
    except (ValueError, AttributeError):
        words = line.split(maxsplit=2)
        return words[1] if len(words) > 1 else ""
