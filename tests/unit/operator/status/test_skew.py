"""Operator, trainer and CRD of different versions: what one does not know never breaks the other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunery_api.runspec import ProgressMetric, TrainerStatus
from tunery_api.status import LoRAJobStatus
from tunery_operator.status.reports import parse_report, parse_result

from kit.operator.objects import RESULT
from kit.operator.statuskit import at, condition, ended, job, running, status_for

DONE = job(complete=True)


def test_a_newer_trainer_may_say_more() -> None:
    result = {**RESULT, "energy": {"kWh": 3}, "adapter": {**RESULT["adapter"], "signature": "abc"}}
    status = status_for(ended(says=result), train=DONE)
    assert status["phase"] == "Succeeded"
    assert "signature" not in status["adapter"]


def test_a_reason_of_a_newer_trainer_is_kept_as_it_is() -> None:
    said = {"failure": {"reason": "CosmicRay", "message": "a bit has flipped", "severity": "high"}}
    status = status_for(ended(code=64, says=said), train=job(failed_reason="PodFailurePolicy"))
    assert status["failure"]["reason"] == "CosmicRay"
    assert status["failure"]["message"] == "a bit has flipped"
    assert "the Tunery version that reported it" in status["failure"]["hint"]


def test_conditions_and_phases_of_a_newer_operator_stay_and_harm_nothing() -> None:
    newer = {"type": "Signed", "status": "True", "reason": "Signed", "lastTransitionTime": at(-60)}
    status = status_for(running(), status={"phase": "Contemplating", "conditions": [newer], "energy": 3})
    assert status["conditions"][-1] == newer
    assert status["phase"] == "Starting"


def test_a_phase_that_is_not_known_says_no_more_than_none() -> None:
    report = TrainerStatus.model_validate({"phase": "Contemplating", "progressPercentage": 7})
    status = status_for(running(), progress=report)
    assert status["phase"] == "Training"
    assert status["progress"]["percent"] == 7


BAD: dict[str, dict[str, Any]] = {
    "beyond 64 bits": {"total_steps": 10**300},
    "an epoch of 40 characters": {"metrics": [ProgressMetric(name="current_epoch", value="1" * 40)]},
    "steps as a text": {"metrics": [ProgressMetric(name="total_steps", value="1e300")]},
}


@pytest.mark.parametrize("said", BAD.values(), ids=BAD.keys())
def test_what_a_pod_reports_never_costs_a_write(said: dict[str, Any]) -> None:
    """The API server would refuse the whole status, and each one after it."""
    status = status_for(running(), progress=TrainerStatus(step=7, **said))
    assert status["progress"]["step"] == 7
    assert set(status["progress"]) == {"step"}
    LoRAJobStatus.model_validate_json(json.dumps(status), strict=True)


RESULTS: dict[str, tuple[Any, bool]] = {
    "a metric of 40 characters": ({**RESULT, "metrics": {"loss": "1" * 40, "evalLoss": "1.4"}}, True),
    "a step of another type": ({**RESULT, "checkpoint": {"uri": "s3://a/b", "step": "many"}}, True),
    "no address": ({**RESULT, "adapter": {"manifestSha256": "ab"}}, False),
    "not an object": ([1], False),
    "not JSON": ("done", False),
    "too deep": ("[" * 100_000, False),
}


@pytest.mark.parametrize(("said", "counts"), RESULTS.values(), ids=RESULTS.keys())
def test_of_a_result_what_can_be_used_is_used(said: Any, counts: bool) -> None:
    text = said if isinstance(said, str) else json.dumps(said)
    status = status_for(ended(says=text), train=DONE)
    assert (status["phase"] == "Succeeded") is counts
    LoRAJobStatus.model_validate_json(json.dumps(status), strict=True)


def test_a_report_that_says_nothing_of_ours_is_none() -> None:
    assert parse_report('{"adapter": {}}') is None
    assert parse_report("{}") is None
    assert parse_report('{"dataset": {"rows": 3, "color": "blue"}}') is not None
    assert parse_result("{}") is not None


def test_every_status_says_by_whose_rules_it_was_judged() -> None:
    assert status_for(running())["specVersion"] == "v1alpha1"
    assert condition(status_for(running()), "Validated") == ("True", "SpecValid")
