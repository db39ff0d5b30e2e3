"""`tunery watch` and `tunery explain` on the statuses that the operator writes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tunery.cluster import Cluster
from tunery.errors import ExitCode
from tunery.follow import follow
from tunery.objects import find
from tunery.watching import Lines, show

from kit.operator.api import eventually
from kit.operator.objects import RESULT, Namespace, lorajob
from kit.operator.stage import Stage

QUEUE = "kueue.x-k8s.io/queue-name"


@pytest.fixture
def operated(team: Namespace, stage: Stage) -> Namespace:
    """The namespace of the test, served by the running operator."""
    stage.share()
    return team


@pytest.fixture
def watched(operated: Namespace, cluster: Cluster) -> Iterator[Callable[[str], list[str]]]:
    """Watches an object in the background: returns the lines, which grow."""
    threads: list[threading.Thread] = []

    def start(name: str) -> list[str]:
        lines: list[str] = []
        states = follow(cluster, find(cluster, name), 120)
        threads.append(threading.Thread(target=lambda: show(states, Lines(lines.append)), daemon=True))
        threads[-1].start()
        return lines

    yield start
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def has(lines: list[str], text: str) -> None:
    """Wait until a line has a text."""
    eventually(f"{text} in {lines}", lambda: any(text in line for line in lines))


def test_a_job_from_a_full_node_to_its_adapter(
    operated: Namespace, tunery: Callable[..., Any], watched: Callable[[str], list[str]]
) -> None:
    operated.apply(lorajob("a", preflight="Skip", retries=2))
    lines = watched("a")
    has(lines, "waits: Unschedulable")
    said = tunery("explain", "a").out
    assert "Unschedulable: no node fits: no nodes available to schedule pods\n" in said
    assert "Free or add a node" in said
    operated.wait_pod("a-train", "ImagePullBackOff", 'Back-off pulling image "example/trainer:1"')
    has(lines, "waits: ImagePullFailed")
    operated.end_pod(operated.run_pod("a-train"), 137, reason="OOMKilled")
    has(lines, "OutOfMemory, exit code 137")
    second = operated.run_pod("a-train")
    operated.wait_running("a")
    said = tunery("explain", "a").out
    assert "Attempt 2; pod a-train-" in said
    assert "Why" not in said
    operated.end_pod(second, message=RESULT)
    has(lines, "held-out loss: 2.5 → 1.4, −44.0 %")
    assert lines[-3].endswith("lorajob/a has succeeded")
    assert "adapter: s3://adapters/x" in tunery("explain", "a").out


def test_a_failed_preflight_and_its_retry(
    operated: Namespace, tunery: Callable[..., Any], watched: Callable[[str], list[str]]
) -> None:
    operated.apply(lorajob("p"))
    failure = {"reason": "DatasetInvalid", "message": "spec.dataset.uri: d.jsonl line 17: no completion"}
    lines = watched("p")
    operated.end_pod(operated.run_pod("p-preflight"), 64, {"failure": failure})
    has(lines, "lorajob/p failed: DatasetInvalid: spec.dataset.uri: d.jsonl line 17")
    said = tunery("explain", "p").out
    assert "Correct the named lines of the data set." in said
    assert f"\n    tunery -n {operated.name} retry lorajob/p\n" in said
    assert "kubectl annotate" not in said
    assert tunery("retry", "p").code == ExitCode.SUCCEEDED
    again = watched("p")
    has(again, "Preflight")
    assert not any("DatasetInvalid" in line for line in again)
    assert "preflight pod checks the data" in tunery("explain", "p").out
    operated.patch_spec("p", stop="enough")
    has(again, "lorajob/p was stopped")


def test_a_queue_and_a_suspension(
    operated: Namespace, tunery: Callable[..., Any], watched: Callable[[str], list[str]]
) -> None:
    body = lorajob("q", preflight="Skip")
    body["metadata"]["labels"] = {QUEUE: "team-a"}
    operated.apply(body)
    lines = watched("q")
    operated.job("q-train")
    operated.api.patch(operated.path("jobs", "q-train"), {"spec": {"suspend": True}})
    has(lines, "waits: WaitingForQuota: waiting for admission by queue team-a")
    assert f"kubectl describe localqueue team-a -n {operated.name}" in tunery("explain", "q").out
    assert tunery("suspend", "q").code == ExitCode.SUCCEEDED
    has(lines, "waits: Suspended")
    said = tunery("explain", "q").out
    assert f"Resume it: tunery -n {operated.name} resume lorajob/q" in said
    assert "Event" not in said
    assert tunery("logs", "q").out.startswith("lorajob/q is Suspended and has no such pod now.")
    assert tunery("resume", "q").code == ExitCode.SUCCEEDED
    operated.patch_spec("q", stop="enough")
    has(lines, "lorajob/q was stopped")
