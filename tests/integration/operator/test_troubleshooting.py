"""docs/troubleshooting.md shows what kubectl prints of each symptom: it is made here, and both are compared."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterator

import pytest

from integration.operator.test_kueue import hold, queued
from integration.operator.test_nodes_story import on_nodes, waiting

from kit.kubectl import Kubectl, wait_for
from kit.operator.api import Api, Json
from kit.operator.objects import Namespace, adapterserver, lorajob
from kit.operator.process import OperatorProcess
from kit.operator.stage import make_namespace
from kit.shown import PROMPT, ROOT, Block, blocks

PAGE = ROOT / "docs" / "troubleshooting.md"
HERE = "integration/operator/test_troubleshooting.py::test_each_symptom_prints_what_the_page_shows"
JOB, SERVER = "support-bot", "support"
NODE = "cpu-1"


def full_quota(namespace: Namespace) -> None:
    namespace.limit(**{"count/jobs.batch": "0"})
    namespace.apply(lorajob(JOB))


def no_account(namespace: Namespace) -> None:
    namespace.apply(lorajob(JOB, scheduling={"serviceAccountName": "trainer"}))


def no_node(namespace: Namespace) -> None:
    namespace.apply(lorajob(JOB, preflight="Skip"))


def no_input(namespace: Namespace) -> None:
    namespace.apply(lorajob(JOB, continueFrom={"loraJobRef": {"name": "tone"}}))


def no_room_in_the_queue(namespace: Namespace) -> None:
    namespace.apply(queued(JOB))
    namespace.job(f"{JOB}-train")
    hold(namespace, f"{JOB}-train", queue="team-a")


def no_kueue(namespace: Namespace) -> None:
    namespace.apply(queued(JOB))


def room_for_one_of_two(namespace: Namespace) -> None:
    namespace.apply(on_nodes(JOB, 2))
    namespace.start_pod(waiting(namespace, f"{JOB}-train", 2)[0])


def no_adapter(namespace: Namespace) -> None:
    namespace.apply(adapterserver(SERVER, adapters=[{"name": JOB, "loraJobRef": {"name": JOB}}]))


SYMPTOMS: list[Callable[[Namespace], None]] = [
    full_quota,
    no_account,
    no_input,
    no_room_in_the_queue,
    no_kueue,
    no_node,
    room_for_one_of_two,
    no_adapter,
]
"""In the order in which the page shows them."""


@pytest.fixture
def node(api: Api) -> Iterator[None]:
    """A node that is ready, and that no pod of a job tolerates."""
    room = {"cpu": "8", "memory": "32Gi", "pods": "110", "ephemeral-storage": "100Gi"}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    ready = {"type": "Ready", "status": "True", "lastHeartbeatTime": now, "lastTransitionTime": now}
    body: Json = {
        "metadata": {"name": NODE},
        "spec": {"taints": [{"key": "pool", "value": "cpu", "effect": "NoSchedule"}]},
        "status": {"capacity": room, "allocatable": room, "conditions": [ready]},
    }
    api.call("POST", "/api/v1/nodes", body)
    yield
    api.call("DELETE", f"/api/v1/nodes/{NODE}")


def as_shown(text: str) -> re.Pattern[str]:
    """Return what a text of the page stands for: an ellipsis for anything, spaces for any number of them."""
    parts = (re.escape(" ".join(part.split())) for part in text.split("…"))
    return re.compile(".*".join(parts), re.DOTALL)


class Shown:
    """A block of the page, and what its command prints in a namespace."""

    def __init__(self, block: Block, kubectl: Kubectl, namespace: Namespace) -> None:
        self.command, _, self.output = block.text.removeprefix(PROMPT).partition("\n")
        self.where = block.where
        self.printed = ""
        self._words = [*shlex.split(self.command)[1:], "-n", namespace.name]
        self._kubectl = kubectl

    def is_true(self) -> bool:
        """Ask kubectl, and compare."""
        self.printed = self._kubectl.run(*self._words)
        return as_shown(self.output).fullmatch(" ".join(self.printed.split())) is not None


@pytest.mark.slow
def test_each_symptom_prints_what_the_page_shows(
    api: Api, operator: OperatorProcess, api_server: Kubectl, node: None
) -> None:
    shown = [block for block in blocks(PAGE) if block.run_by == HERE]
    namespaces = [make_namespace(api) for _ in SYMPTOMS]
    for make, namespace in zip(SYMPTOMS, namespaces, strict=True):
        make(namespace)
    for block, namespace in zip(shown, namespaces, strict=True):
        told = Shown(block, api_server, namespace)
        try:
            wait_for("what the page shows", told.is_true, timeout=30)
        except TimeoutError:
            pytest.fail(f"{told.where}: {told.command}\nprints\n{told.printed}\nand not\n{told.output}")
