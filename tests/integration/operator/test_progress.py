"""The progress endpoint with real tokens: a pod reports for its own object, and for no other."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kit.operator.api import eventually
from kit.operator.objects import Namespace, lorajob
from kit.operator.poster import REPORT, Poster
from kit.operator.process import OperatorProcess


@pytest.fixture
def pod(namespace: Namespace, operator: OperatorProcess, progress_tls: Path) -> Poster:
    """The running train pod of a LoRAJob `c`."""
    eventually("the namespace's ServiceAccount", lambda: namespace.get("serviceaccounts", "default"))
    namespace.apply(lorajob("c", preflight="Skip"))
    name = namespace.run_pod("c-train")
    namespace.wait_running("c")
    return Poster(namespace, operator, progress_tls, name)


def test_a_report_becomes_status(namespace: Namespace, pod: Poster) -> None:
    begins = {"phase": "Starting", "doing": "downloading", "percent": 43, "curve": "s3://adapters/c/curve.jsonl"}
    assert pod.post(pod.token(), {"trainerStatus": begins}) == 200
    namespace.wait_phase("c", "Downloading")
    shown = namespace.api.columns(namespace.path("lorajobs", "c"))
    assert (shown["Phase"], shown["Progress"]) == ("Downloading", "43%")
    eventually("the next report is taken", lambda: pod.post(pod.token()) == 200)
    status = namespace.wait_phase("c", "Evaluating")
    assert status["progress"] == {
        "percent": 42,
        "percentText": "42%",
        "step": 42,
        "totalSteps": 100,
        "etaSeconds": 200,
        "eta": "3m20s",
        "lastUpdateTime": "2026-01-31T12:00:00+00:00",
    }
    assert status["metrics"] == {"loss": "1.23457"}
    assert status["curve"] == {"uri": "s3://adapters/c/curve.jsonl"}
    assert status["checkpoint"] == {"uri": "s3://adapters/c/step-000040", "step": 40}
    assert namespace.condition("c", "CheckpointSaved")["status"] == "True"
    assert namespace.condition("c", "ProgressReported")["status"] == "True"
    assert "NotReporting" not in namespace.event_reasons("c")


@pytest.mark.slow
def test_a_pod_that_is_silent_for_two_minutes_is_told_until_it_reports(namespace: Namespace, pod: Poster) -> None:
    """Long for the minutes."""
    started = time.monotonic()
    silent = namespace.wait_reason("c", "NotReporting", timeout=180)
    assert time.monotonic() - started < 120 + 30
    assert (silent["phase"], silent["reason"]) == ("Starting", "NotReporting")
    assert namespace.condition("c", "ProgressReported")["message"].startswith(f"pod {pod.name} has run for two minutes")
    eventually("there is an event", lambda: "NotReporting" in namespace.event_reasons("c"))
    assert pod.post(pod.token()) == 200
    eventually("it is heard", lambda: namespace.condition("c", "ProgressReported")["status"] == "True")
    assert "NotReporting" not in str(namespace.status("c"))


def test_junk_costs_the_api_server_nothing(pod: Poster) -> None:
    sample = 'tunery_api_requests_total{code="201",resource="tokenreviews",verb="create"}'
    assert pod.post(pod.token()) == 200
    before = pod.operator.metric(sample)
    assert before
    assert {pod.post(f"{index}.junk.junk") for index in range(50)} == {401}
    assert {pod.post(pod.token(f"other-{index}")) for index in range(10)} == {401}
    assert pod.operator.metric(sample) == before


def test_a_pod_that_is_not_ours_is_refused(namespace: Namespace, pod: Poster) -> None:
    container = {"name": "trainer", "image": "i"}
    labels = {"app.kubernetes.io/managed-by": "tunery", "tunery.dev/owner": "c", "tunery.dev/kind": "lorajob"}
    body = {"metadata": {"name": "impostor", "labels": labels}, "spec": {"containers": [container]}}
    namespace.api.call("POST", namespace.path("pods"), body)
    impostor = Poster(namespace, pod.operator, Path(pod.operator.tls or ""), "impostor")
    assert impostor.post(impostor.token()) == 403


@pytest.mark.parametrize(("body", "status"), [(b"\xff\xfe", 422), (b" " * 70_000, 413)], ids=["not text", "too large"])
def test_any_other_body_is_refused(pod: Poster, body: bytes, status: int) -> None:
    assert pod.post(pod.token(), body) == status


def test_progress_is_written_at_most_every_five_seconds(namespace: Namespace, pod: Poster) -> None:
    token = pod.token()
    assert pod.post(token) == 200
    namespace.wait_phase("c", "Evaluating")
    version = (namespace.get("lorajobs", "c") or {})["metadata"]["resourceVersion"]

    def report(percent: int) -> bool:
        status = {**REPORT["trainerStatus"], "progressPercentage": percent}
        return pod.post(token, {"trainerStatus": status}) == 200

    eventually("a second report is taken", lambda: report(50))
    assert (namespace.get("lorajobs", "c") or {})["metadata"]["resourceVersion"] == version
    eventually("it is written later", lambda: namespace.status("c")["progress"]["percent"] == 50)
