"""What a job knows of itself, on its way into the status: preflight's estimate, and what an attempt finds out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunery_api.findings import MAX_FINDINGS, FindingType

from kit.operator.api import Json, eventually
from kit.operator.objects import REPORT, RESULT, Namespace, lorajob
from kit.operator.poster import Poster
from kit.operator.process import OperatorProcess

GIB = 2**30
PARTS = {"weightsBytes": 3 * GIB, "activationsBytes": GIB, "rowBytes": GIB // 4, "steps": 100, "tokens": 51_200}
PLANNED = [{"name": "Alpha", "result": "Passed", "message": "16 is 2 times the rank"}]
PREFLIGHT: Json = REPORT | {
    "memory": {"estimateBytes": 4 * GIB, "availableBytes": 24 * GIB},
    "estimate": PARTS,
    "checks": [*PLANNED, {"name": "Baseline", "result": "Skipped", "message": "checked in training"}],
}
MEASURED = [*PLANNED, {"name": "Baseline", "result": "Passed", "message": "2 → 1.5, −25.0 % (± 1.2 %)"}]
POINTS = [{"step": 50, "loss": "1.9802"}, {"step": 100, "loss": "1.5"}]


def finding(kind: str, severity: str, step: int) -> Json:
    return {"type": kind, "severity": severity, "step": step, "message": f"{kind} at step {step}"}


def findings_of(namespace: Namespace, name: str) -> list[str]:
    return [each["type"] for each in namespace.status(name).get("findings") or []]


@pytest.mark.slow
def test_what_is_estimated_measured_and_found_reaches_the_status_and_a_new_attempt_begins_anew(
    namespace: Namespace, operator: OperatorProcess, progress_tls: Path
) -> None:
    eventually("the namespace's ServiceAccount", lambda: namespace.get("serviceaccounts", "default"))
    namespace.apply(lorajob("d", retries=1))
    namespace.end_pod(namespace.run_pod("d-preflight"), message=PREFLIGHT)
    namespace.job("d-train")
    planned = namespace.status("d")
    assert planned["estimate"] == PARTS
    assert planned["memory"] == PREFLIGHT["memory"]
    assert planned["checks"] == PREFLIGHT["checks"]
    assert "findings" not in planned

    first = Poster(namespace, operator, progress_tls, namespace.run_pod("d-train"))
    namespace.wait_running("d")
    token = first.token()
    many = [finding(kind.value, "Warning", 5) for kind in list(FindingType)[:MAX_FINDINGS]]
    post = {"step": 50, "findings": many, "evaluations": POINTS[:1], "checks": PLANNED}
    assert first.post(token, {"trainerStatus": post}) == 200
    eventually("the findings show", lambda: len(findings_of(namespace, "d")) == MAX_FINDINGS)
    status = namespace.status("d")
    assert status["evaluations"] == POINTS[:1]
    assert status["checks"] == PLANNED
    assert namespace.condition("d", "Healthy")["reason"] == many[0]["type"]
    more = {"step": 55, "findings": [*many, finding("Bored", "Problem", 6)]}
    eventually("another report is taken", lambda: first.post(token, {"trainerStatus": more}) == 200)
    eventually("the step is shown", lambda: namespace.status("d")["progress"].get("step") == 55)
    assert findings_of(namespace, "d") == [each["type"] for each in many], (
        "more findings than a status holds are left out"
    )

    namespace.end_pod(first.name, 137, reason="OOMKilled")
    second = Poster(namespace, operator, progress_tls, namespace.run_pod("d-train"))
    namespace.wait_running("d")
    hint = finding("StillLearning", "Info", 100)
    assert second.post(second.token(), {"trainerStatus": {"step": 60, "findings": [hint]}}) == 200
    eventually("the older findings are gone", lambda: findings_of(namespace, "d") == ["StillLearning"])
    assert namespace.condition("d", "Healthy")["status"] == "True"

    words = {"findings": [hint], "evaluations": POINTS, "checks": MEASURED, "memory": {"peakBytes": 2 * GIB}}
    namespace.end_pod(second.name, message=RESULT | words)
    ended = namespace.wait_phase("d", "Succeeded")
    assert ended["memory"] == PREFLIGHT["memory"] | {"peakBytes": 2 * GIB}
    assert ended["estimate"] == PARTS, "what was planned stands beside what it took"
    assert (ended["evaluations"], ended["checks"]) == (POINTS, MEASURED)
    assert [each["type"] for each in ended["findings"]] == ["StillLearning"]
    events = namespace.event_reasons("d")
    assert events.count(many[0]["type"]) == 1, "one event for each change of Healthy's reason"
