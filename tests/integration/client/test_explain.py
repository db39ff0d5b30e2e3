"""`tunery explain` against a real API server: inputs and events."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from kit.operator.api import eventually
from kit.operator.objects import Namespace, lorajob


def warn(team: Namespace, about: dict[str, Any], reason: str, message: str) -> None:
    """Create a warning event."""
    event = {
        "metadata": {"generateName": "e-"},
        "involvedObject": {"namespace": team.name, **about},
        "reason": reason,
        "message": message,
        "type": "Warning",
        "lastTimestamp": "2026-12-01T12:00:00Z",
    }
    team.api.call("POST", f"/api/v1/namespaces/{team.name}/events", event)


def test_a_job_that_waits_for_a_missing_input(
    team: Namespace, tunery: Callable[..., Any], put_status: Callable[..., None]
) -> None:
    team.apply(lorajob("a", continueFrom={"loraJobRef": {"name": "base"}}))
    put_status("a", phase="Waiting", reason="InputMissing", observedGeneration=1)
    done = tunery("explain", "a")
    assert done.code == 0
    assert "lorajob/base does not exist." in done.out
    assert f"kubectl delete lorajob/a -n {team.name}" in done.out
    team.apply(lorajob("base"))
    put_status("base", phase="Training", progress={"step": 3, "totalSteps": 9})
    assert "lorajob/base is Training, step 3/9." in tunery("explain", "a").out


def test_the_events_of_a_pod_that_has_not_started(
    team: Namespace, tunery: Callable[..., Any], put_status: Callable[..., None]
) -> None:
    team.apply(lorajob("a"))
    eventually("the namespace's ServiceAccount", lambda: team.get("serviceaccounts", "default"))
    spec = {"containers": [{"name": "trainer", "image": "none"}], "schedulerName": "none"}
    team.api.call("POST", team.path("pods"), {"metadata": {"name": "a-train-x"}, "spec": spec})
    put_status("a", phase="Starting", podName="a-train-x", observedGeneration=1)
    warn(team, {"kind": "Pod", "name": "a-train-x"}, "FailedMount", 'secret "s3" [not] found')
    warn(team, {"kind": "Pod", "name": "another"}, "Killed", "of another pod")
    done = tunery("explain", "lorajob/a")
    assert 'Event FailedMount of a-train-x: secret "s3" [not] found' in done.out
    assert "of another pod" not in done.out
    team.start_pod("a-train-x")
    assert "Event" not in tunery("explain", "lorajob/a").out


def test_a_job_without_a_pod_shows_the_events_of_its_job(
    team: Namespace, tunery: Callable[..., Any], put_status: Callable[..., None]
) -> None:
    team.apply(lorajob("a"))
    warn(team, {"kind": "Job", "name": "a-train"}, "FailedCreate", "exceeded quota: team")
    put_status("a", phase="Starting", jobName="a-train", observedGeneration=1)
    assert "Event FailedCreate of a-train: exceeded quota: team" in tunery("explain", "a").out
    failure = {"reason": "QuotaExceeded", "message": "exceeded quota: team", "hint": "Free it."}
    put_status("a", failure=failure)
    assert "Event" not in tunery("explain", "a").out


def test_json(team: Namespace, tunery: Callable[..., Any], put_status: Callable[..., None]) -> None:
    team.apply(lorajob("a"))
    put_status("a", phase="Training", observedGeneration=1)
    said = json.loads(tunery("-o", "json", "explain", "a").out)
    assert (said["object"], said["phase"], said["now"]) == ("lorajob/a", "Training", ["Its pod trains."])
