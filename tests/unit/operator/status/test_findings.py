"""What a run found out about itself: in the status, as the condition Healthy, as one event for each reason, counted."""

from __future__ import annotations

from typing import Any

import pytest

from tunery_api.findings import CheckStatus, FindingStatus
from tunery_api.runspec import TrainerStatus
from tunery_operator.metrics import Facts, changes
from tunery_operator.observed.attempt import Attempt
from tunery_operator.status.compute import compute_status
from tunery_operator.status.events import transitions

from kit.operator.statuskit import (
    NOW,
    TRAINING,
    again,
    condition,
    ended,
    job,
    message_of,
    running,
    snapshot,
    status_for,
)

SLOW = FindingStatus(
    type="LearningRateTooLow",
    severity="Warning",
    step=20,
    field="training.learningRate",
    suggest="1e-5",
    message="It fell by 0.2 % only. Try training.learningRate: 1e-5 (now 1e-6).",
)
WORSE = FindingStatus(type="WorseThanBase", severity="Problem", step=5, field="training.learningRate", suggest="1e-3")
HINT = FindingStatus(type="StillLearning", severity="Info", step=40)
PASSED = CheckStatus(name="Alpha", result="Passed", message="16 is 2 times the rank")


def posted(*findings: FindingStatus, **more: Any) -> TrainerStatus:
    return TRAINING.model_copy(update={"findings": list(findings), **more})


def found(status: dict[str, Any]) -> list[str]:
    return [finding["type"] for finding in status.get("findings") or ()]


@pytest.mark.parametrize(
    ("findings", "healthy"),
    [
        ((), ("True", "Healthy")),
        ((HINT,), ("True", "Healthy")),
        ((SLOW, HINT), ("False", "LearningRateTooLow")),
        ((SLOW, WORSE), ("False", "WorseThanBase")),
    ],
)
def test_the_gravest_finding_is_the_reason(findings: tuple[FindingStatus, ...], healthy: tuple[str, str]) -> None:
    status = status_for(running(), progress=posted(*findings))
    assert condition(status, "Healthy") == healthy
    assert found(status) == [finding.type for finding in findings]


def test_the_message_of_the_condition_says_what_to_try() -> None:
    for finding, text in ((SLOW, SLOW.message), (WORSE, "training.learningRate: 1e-3")):
        assert message_of(status_for(running(), progress=posted(finding)), "Healthy") == text


def test_preflight_tells_the_checklist_and_nothing_of_health() -> None:
    words = {"dataset": {"rows": 10}, "checks": [PASSED.to_json_dict()]}
    preflight = Attempt(job(complete=True), (ended(says=words),))
    status = status_for(preflight=preflight, preflight_needed=True, main=None)
    assert [check["name"] for check in status["checks"]] == ["Alpha"]
    assert condition(status, "Healthy") is None


def test_a_run_that_says_nothing_of_it_is_neither_healthy_nor_not() -> None:
    assert condition(status_for(running(), progress=TRAINING), "Healthy") is None


def test_each_change_of_reason_is_one_warning() -> None:
    seen = snapshot(running(), progress=posted())
    told: list[tuple[str, bool]] = []
    steps = [posted(SLOW), posted(SLOW), posted(SLOW, HINT), posted(SLOW, WORSE), posted()]
    for progress in steps:
        later = again(seen, running(), seconds=10, progress=progress)
        events = transitions(later.status, compute_status(later))
        told += [(event.reason, event.warning) for event in events]
        seen = later
    assert told == [("LearningRateTooLow", True), ("WorseThanBase", True)]


def test_a_word_of_a_later_version_is_shown_and_warns() -> None:
    later = FindingStatus(type="Bored", severity="Warning", step=1)
    before = status_for(running(), progress=posted())
    status = status_for(running(), progress=posted(later))
    assert condition(status, "Healthy") == ("False", "Bored")
    assert [event.warning for event in transitions(before, status) if event.reason == "Bored"] == [True]


def test_what_a_new_attempt_does_not_find_is_gone() -> None:
    seen = snapshot(running(), progress=posted(SLOW))
    status = compute_status(again(seen, running("p2"), progress=posted(HINT), reporter="p2"))
    assert found(status) == ["StillLearning"]
    assert condition(status, "Healthy") == ("True", "Healthy")


def test_what_an_earlier_attempt_still_says_does_not_come_back() -> None:
    """A pod on a node that was lost may post once more while the next one is under way."""
    seen = snapshot(running(), progress=posted(SLOW))
    now = again(seen, running("p2"), progress=posted(HINT), reporter="p2")
    late = compute_status(again(now, running("p1"), running("p2"), progress=posted(SLOW), reporter="p1"))
    assert found(late) == ["StillLearning"]


def test_last_words_without_sentences_keep_those_that_were_posted() -> None:
    seen = snapshot(running(), progress=posted(SLOW, checks=[PASSED]))
    bare = {
        "adapter": {"uri": "s3://b/o", "manifestSha256": "0" * 64, "sizeBytes": 1},
        "findings": [SLOW.model_copy(update={"message": None}).to_json_dict()],
        "checks": [{"name": "Alpha", "result": "Passed"}, {"name": "Padding", "result": "Warning", "message": "41 %"}],
    }
    status = compute_status(again(seen, ended(says=bare), train=job(complete=True)))
    assert status["phase"] == "Succeeded"
    assert status["findings"][0]["message"] == SLOW.message
    assert [check.get("message") for check in status["checks"]] == [PASSED.message, "41 %"]
    assert condition(status, "Healthy") == ("False", "LearningRateTooLow")


def test_a_failed_run_keeps_what_it_found() -> None:
    failure = {"reason": "NotImproved", "message": "stopped at step 20 by diagnosis.action"}
    words = {"failure": failure, "findings": [WORSE.to_json_dict()]}
    status = status_for(ended(code=40, says=words), train=job(failed_reason="PodFailurePolicy"))
    assert (status["phase"], found(status)) == ("Failed", ["WorseThanBase"])
    assert condition(status, "Healthy") == ("False", "WorseThanBase")


def test_a_result_that_was_rejected_is_not_called_as_good_as_it_could_be() -> None:
    seen = snapshot(running(), progress=posted(HINT))
    text = "the run has no Warning or Problem; status.checks has the checks of the settings"
    assert message_of(compute_status(seen), "Healthy") == text
    adapter = {"uri": "s3://b/o-rejected", "manifestSha256": "0" * 64, "sizeBytes": 1}
    words = {"failure": {"reason": "NotImproved", "message": "m"}, "rejectedAdapter": adapter}
    over = ended(code=40, says=words)
    status = compute_status(again(seen, over, train=job(failed_reason="PodFailurePolicy")))
    assert (status["phase"], condition(status, "Healthy")) == ("Failed", ("True", "Healthy"))
    assert message_of(status, "Healthy").endswith("; the result was rejected all the same, as status.failure says")


def test_a_post_of_more_than_a_status_holds_is_no_post() -> None:
    body = {"findings": [HINT.to_json_dict()] * 13}
    with pytest.raises(ValueError, match="at most 12"):
        TrainerStatus.model_validate(body)


def test_a_credential_in_a_sentence_is_not_shown() -> None:
    leaky = SLOW.model_copy(update={"message": "look at s3://user:hunter2secret@bucket/rows"})
    status = status_for(running(), progress=posted(leaky))
    assert "hunter2secret" not in str(status)


def test_each_type_counts_once_a_run() -> None:
    facts = Facts("LoRAJob", "team", "2026-01-31T12:00:00Z", NOW)

    def told(old: list[FindingStatus], new: list[FindingStatus]) -> list[tuple[str, ...]]:
        one, other = ({"findings": [each.to_json_dict() for each in part]} for part in (old, new))
        return [seen.labels for seen in changes(one, other, facts)]

    assert told([], [SLOW, HINT]) == [("team", "LearningRateTooLow"), ("team", "StillLearning")]
    assert told([SLOW], [SLOW.model_copy(update={"step": 30})]) == []
    assert told([], [FindingStatus(type="Bored", severity="Info", step=1)]) == [("team", "Other")]
