"""An operator behind a proxy that does its worst, with kubelets and a witness; and one story that meets every call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kit.operator.api import Api, Json, Refused, eventually
from kit.operator.faults import Answer, Fault
from kit.operator.faults_proxy import FaultProxy
from kit.operator.kubelet import GROUP
from kit.operator.objects import Namespace, adaptermerge, lorajob
from kit.operator.players import End, Kubelets, Witness, ends_well
from kit.operator.process import OperatorProcess
from tools.cluster.certs import Authority

PLANTED = "hf_PlantedByTheTests0123456789"
"""A credential: in Secrets, in the words of servers and of pods; the operator must show it nowhere."""
FINAL = frozenset({"Succeeded", "Failed"})
QUIET_SECONDS = 3.0
QUIET_WITHIN_SECONDS = 45.0


@dataclass
class Adversity:
    """One operator behind a proxy, and who acts beside it."""

    api: Api
    proxy: FaultProxy
    operator: OperatorProcess
    jobs: Witness
    make_namespace: Callable[[Api], Namespace]

    def namespace(self) -> Namespace:
        """Return a new namespace with a Secret that holds what was planted."""
        namespace = self.make_namespace(self.api)
        data = {"AWS_ACCESS_KEY_ID": PLANTED, "AWS_SECRET_ACCESS_KEY": PLANTED}
        self.api.call("POST", namespace.path("secrets"), {"metadata": {"name": "s3"}, "stringData": data})
        return namespace

    def assert_sound(self) -> None:
        """Fail where the operator has ended, has logged an error, or has shown what was planted."""
        self.operator.assert_alive()
        self.operator.assert_clean_log()
        assert PLANTED not in self.operator.log.read_text()
        assert PLANTED not in self.operator.metrics()
        told = [e.call for e in self.proxy.calls() if PLANTED.encode() in e.body]
        assert told == []
        assert "secrets" not in {resource for _, resource in self.proxy.counts()}

    def assert_quiet(self, namespaces: list[Namespace]) -> None:
        """Fail where the operator goes on to write though nothing changes.

        What a fault has kept it from doing, such as a mark or an event, may follow when its pause is over.
        """
        names, end = {namespace.name for namespace in namespaces}, time.monotonic() + QUIET_WITHIN_SECONDS
        while True:
            since = time.monotonic()
            time.sleep(QUIET_SECONDS)
            writes = [e for e in self.proxy.writes(since=since) if e.call.namespace in names]
            if not writes:
                return
            told = [f"{e.call.verb} {e.call.resource} {e.call.namespace}/{e.call.name}: {e.body!r}" for e in writes]
            assert time.monotonic() < end, told


@contextmanager
def adversity(
    api: Api,
    operator: Callable[[Path], OperatorProcess],
    authority: Authority,
    kubeconfig: Path,
    folder: Path,
    make_namespace: Callable[[Api], Namespace],
    end: End = ends_well,
) -> Iterator[Adversity]:
    """Return an operator behind a proxy, started."""
    proxy = FaultProxy(folder, kubeconfig, authority).start()
    process = operator(proxy.kubeconfig)
    proxy.kill = process.kill_now
    kubelets, jobs = Kubelets(api, end), Witness(api, "/apis/batch/v1/jobs")
    # The storage of new kinds answers 429 for its first moments: a fault that no test has asked for.
    for plural in ("lorajobs", "adaptermerges"):
        eventually(f"{plural} are served", lambda plural=plural: _is_served(api, plural))  # type: ignore[misc]
    kubelets.start()
    jobs.start()
    try:
        process.start()
        yield Adversity(api, proxy, process, jobs, make_namespace)
    finally:
        proxy.clear()
        process.kill()
        kubelets.stop()
        jobs.stop()
        proxy.stop()


def _is_served(api: Api, plural: str) -> bool:
    try:
        return "items" in api.call("GET", f"{GROUP}/{plural}?limit=1")
    except Refused:
        return False


# The story


def begin(namespace: Namespace) -> None:
    """Apply a LoRAJob with preflight, and a merge that waits for it."""
    namespace.apply(lorajob("a"))
    namespace.apply(adaptermerge("m", [{"loraJobRef": {"name": "a"}}]))


MADE = {"a-preflight": 1, "a-train": 1, "m-merge": 1}
"""The Jobs of the story, each made once and never again."""


def phases(namespace: Namespace) -> tuple[str, str]:
    """Return the phases of both objects."""
    return (
        namespace.status("a").get("phase", ""),
        namespace.status("m", "adaptermerges").get("phase", ""),
    )


def wait_end(namespace: Namespace, seconds: float) -> None:
    """Return once both objects have ended."""
    what = f"the story in {namespace.name} has ended"
    eventually(what, lambda: FINAL.issuperset(phases(namespace)), seconds)


def with_secret(fault: Fault) -> Fault:
    """Return the fault, with a credential in what the server says."""
    if isinstance(fault, Answer):
        return replace(fault, message=f"the tests refuse it; the token {PLANTED} is not welcome")
    return fault


def verdict(namespace: Namespace) -> Json:
    """Return both statuses, for messages."""
    both: dict[str, Any] = {"a": namespace.status("a"), "m": namespace.status("m", "adaptermerges")}
    return both
