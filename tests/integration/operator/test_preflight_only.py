"""spec.preflight Only: the checks are all that happens, and what a job was refused for can be read."""

from __future__ import annotations

from typing import Any

import pytest

from kit.operator.api import Json, Refused, eventually
from kit.operator.objects import REPORT, Namespace, lorajob
from kit.operator.runs import run_of

ONLY: Json = {"preflight": "Only"}
PLACE = "s3://adapters/tunery-reports/ns/a-1/data-report.md"
REFUSED: Json = {
    "failure": {"reason": "DatasetInvalid", "message": "2 of 9 rows are invalid", "facts": {"dataReport": PLACE}},
    "dataset": {"rows": 7, "invalidRows": 2, "firstInvalid": ["d.jsonl line 3: text: is missing"], "report": PLACE},
}
SHORT: list[Json] = [
    {"name": "Alpha", "result": "Passed", "message": "32 is 2 times the rank"},
    {"name": "Padding", "result": "Skipped"},
]
"""As last words have them that were too long."""
GOOD: Json = {**REPORT, "dataset": {"rows": 9, "invalidRows": 0, "report": PLACE}, "checks": SHORT}


def test_a_dry_run_succeeds_with_its_checks_and_trains_nothing(namespace: Namespace) -> None:
    namespace.apply(lorajob("dry", **ONLY))
    namespace.end_pod(namespace.run_pod("dry-preflight"), message=GOOD)
    status = namespace.wait_phase("dry", "Succeeded")
    told = {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}
    assert told == {
        "Validated": ("True", "SpecValid"),
        "Preflight": ("True", "PreflightPassed"),
        "Succeeded": ("True", "PreflightOnly"),
        "Finished": ("True", "Succeeded"),
    }
    assert status["reason"] == "PreflightOnly", "beside the phase in a list"
    assert status["dataset"]["report"] == PLACE
    assert [check["message"] for check in status["checks"]] == ["32 is 2 times the rank", "checked in training"]
    assert status["completionTime"]
    assert not {"adapter", "runSeconds", "startTime", "jobName"} & status.keys(), "no run is counted"
    assert "failure" not in status
    assert namespace.get("jobs", "dry-train") is None
    eventually("there is an event", lambda: "PreflightOnly" in namespace.event_reasons("dry"))
    eventually(
        "nobody watches its Job", lambda: "tunery.dev/done" in namespace.job("dry-preflight")["metadata"]["labels"]
    )


def test_a_dry_run_that_fails_can_be_tried_again(namespace: Namespace) -> None:
    namespace.apply(lorajob("again", **ONLY))
    namespace.end_pod(namespace.run_pod("again-preflight"), 64, REFUSED)
    status = namespace.wait_phase("again", "Failed")
    assert f"Data report: {PLACE}." in status["failure"]["hint"]
    assert namespace.api.columns(f"{namespace.path('lorajobs')}/again")["Reason"] == "DatasetInvalid"
    assert status["dataset"] == REFUSED["dataset"]
    namespace.annotate("again", retry="1")
    namespace.end_pod(namespace.run_pod("again-preflight"), message=GOOD)
    status = namespace.wait_phase("again", "Succeeded")
    assert status["dataset"] == GOOD["dataset"], "nothing of the first look is left"


@pytest.mark.parametrize("field", ["continueFrom", "resumeFrom"])
def test_nobody_waits_for_what_trains_nothing(namespace: Namespace, field: str) -> None:
    """Also while it has not ended: it will never have an adapter."""
    namespace.apply(lorajob("dry", **ONLY))
    namespace.apply(lorajob("next", **{field: {"loraJobRef": {"name": "dry"}}}))
    failure = namespace.wait_phase("next", "Failed")["failure"]
    assert failure["reason"] == ("AdapterMissing" if field == "continueFrom" else "CheckpointMissing")
    assert "trains nothing: its spec.preflight is Only" in failure["message"]


def test_it_stays_a_dry_run(namespace: Namespace) -> None:
    created: dict[str, Any] = namespace.apply(lorajob("stays", **ONLY))
    with pytest.raises(Refused, match="preflight cannot be changed"):
        namespace.patch_spec("stays", preflight="Required")
    place = f"s3://adapters/tunery-reports/{namespace.name}/stays-{created['metadata']['uid']}"
    assert run_of(namespace, "stays-preflight")["reportUri"] == place
