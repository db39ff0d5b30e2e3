"""The status of a sweep in tables: what it says of its trials, why none is made, and which events that makes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tunery_api.failures import Failure
from tunery_api.kinds import Kind
from tunery_api.reasons import FailureReason
from tunery_api.remedies import edit, retry
from tunery_api.sweepstatus import EndReason, LoRASweepStatus, TrialState
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.metadata import Key, Owner
from tunery_operator.status.compute import compute_status
from tunery_operator.status.deadline import requeue_after
from tunery_operator.status.events import transitions
from tunery_operator.status.retries import reopened
from tunery_operator.status.snapshot import SAMPLER_BUSY, SUGGESTION_FAILED, Blocker, Search, Snapshot
from tunery_search.decision import Decision, DecisionContext, decide
from tunery_search.trials import Live, Trial

from kit.operator.statuskit import NOW, at, ended, job
from kit.operator.statuskit import running as at_work
from kit.sweeps import running, sweep, trial

OWNER = Owner(Key(Kind.LORASWEEP, "ns", "support"), "uid-1", 3, {})
SPEC = sweep(maxTrials=4)
Json = dict[str, Any]


def snapshot(*trials: Trial, decision: Decision | None = None, status: Json | None = None, **more: Any) -> Snapshot:
    of_search = ("importance", "exhausted", "blocker", "foreign", "not_suspended")
    names = {name: more.pop(name) for name in of_search if name in more}
    search = Search(SPEC, trials, decision or Decision(), **names)
    return Snapshot(Kind.LORASWEEP, OWNER, status or {}, NOW, search=search, **more)


def status_with(*trials: Trial, **more: Any) -> Json:
    return compute_status(snapshot(*trials, **more))


def condition(status: Json, type_: str) -> tuple[str, str, str]:
    found = next(each for each in status["conditions"] if each["type"] == type_)
    return found["status"], found["reason"], found.get("message", "")


def test_it_tells_of_every_trial_and_of_the_best() -> None:
    done = [trial(0, value=2.0, base_value="3.0"), trial(1, TrialState.PRUNED, why="worse"), trial(2, value=1.5)]
    status = status_with(*done, running(3, 2.5), importance={"training.learningRate": 0.9, "lora.rank": 0.1})
    assert status["phase"] == "Searching"
    assert condition(status, "Searching")[:2] == ("True", "Searching")
    assert [row["number"] for row in status["trials"]] == [0, 1, 2, 3]
    assert (status["best"]["trial"], status["best"]["value"], status["countsText"]) == (2, "1.5", "3/4")
    assert status["counts"]["running"] == 1
    assert status["convergence"] == [{"trial": 0, "value": "2"}, {"trial": 2, "value": "1.5"}]
    assert status["gpuSeconds"] == 200
    assert [each["path"] for each in status["importance"]] == ["training.learningRate", "lora.rank"]
    assert LoRASweepStatus.model_validate(status).trials is not None


def test_importances_stay_where_nobody_asked() -> None:
    before = {"importance": [{"path": "lora.rank", "share": "0.7"}]}
    assert status_with(trial(0), status=before)["importance"] == before["importance"]


@pytest.mark.parametrize("end", list(EndReason))
def test_the_end_of_the_search_says_why(end: EndReason) -> None:
    status = status_with(trial(0), running(1), decision=Decision(end_reason=end))
    assert status["endReason"] == end.value
    told_status, reason, message = condition(status, "Searching")
    assert (told_status, reason) == ("False", end.value)
    assert message.endswith("; waits for support-001 to end")


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (Decision(), "trials are created: 2 of 3 points of the grid"),
        (
            Decision(end_reason=EndReason.MAX_TRIALS, publish=0),
            "all trials of spec.maxTrials have been created, 2 of 3 points of the grid",
        ),
    ],
    ids=["begun", "over"],
)
def test_of_a_grid_it_says_how_much_is_tried(decision: Decision, message: str) -> None:
    ranks = {"path": "lora.rank", "choices": ["4", "8", "16"]}
    search = Search(sweep(parameters=[ranks], sampler={"type": "Grid"}, maxTrials=2), (trial(0),), decision)
    status = compute_status(Snapshot(Kind.LORASWEEP, OWNER, {}, NOW, search=search))
    assert condition(status, "Searching")[2] == message


def test_an_exhausted_space_is_written_down_since_only_the_sampler_knows() -> None:
    status = status_with(trial(0), exhausted=True, decision=Decision(create=(1,)))
    assert status["endReason"] == "SpaceExhausted"
    seen = snapshot(trial(0), exhausted=True, decision=Decision(create=(1,)))
    assert requeue_after(seen, compute_status(seen)) == 0.0, "nothing else would have it looked at again"


def test_a_trial_that_waits_holds_the_others_back_and_is_named() -> None:
    status = status_with(trial(0), trial(1, TrialState.WAITING, live=Live(waiting=True)))
    assert condition(status, "Searching")[:2] == ("Unknown", "TrialsQueued")
    assert "kubectl describe lorajob support-001 -n " in condition(status, "Searching")[2]
    assert status["phase"] == "Searching"


def test_what_stands_in_a_trials_way_stands_in_the_sweeps() -> None:
    remedies = [retry("Add a node"), edit("Change scheduling", "scheduling")]
    why = Failure(reason="Unschedulable", message="support-001: 0/1 nodes are available", remedies=remedies)
    seen = (trial(0), trial(1, TrialState.WAITING, live=Live(waiting=True, blocker=why)))
    shown = status_with(*seen)["failure"]
    assert (shown["reason"], shown["message"]) == ("Unschedulable", "support-001: 0/1 nodes are available")
    assert shown["hint"] == (
        "Add a node. The LoRASweep then continues without a retry. Or, in the template of a new LoRASweep: change "
        "scheduling."
    )
    assert [each.get("fields") for each in shown["remedies"]] == [None, ["template.scheduling"]]
    after = status_with(trial(0), running(1), status={"failure": shown})
    assert "failure" not in after


def test_a_sampler_that_fails_is_told_and_asked_again() -> None:
    seen = snapshot(trial(0), blocker=Blocker(SUGGESTION_FAILED, "the sampler ended with 1: boom", 30.0))
    status = compute_status(seen)
    assert condition(status, "Searching") == ("Unknown", "SuggestionFailed", "the sampler ended with 1: boom")
    assert requeue_after(seen, status) == 30.0


def test_a_sampler_that_is_busy_is_shown_once_it_takes_long() -> None:
    for is_shown, reason in ((False, "Searching"), (True, "SamplerBusy")):
        seen = snapshot(trial(0), blocker=Blocker(SAMPLER_BUSY, "waits for Optuna", 5.0, is_shown))
        status = compute_status(seen)
        assert condition(status, "Searching")[1] == reason
        assert requeue_after(seen, status) == 5.0


def test_time_alone_has_it_looked_at_again() -> None:
    seen = snapshot(trial(0), decision=Decision(requeue_at=NOW + timedelta(seconds=7)))
    assert requeue_after(seen, compute_status(seen)) == 7.0


def test_it_has_failed_once_no_trial_runs() -> None:
    failure = Failure(reason=FailureReason.SECRET_NOT_FOUND, message="the Secret s3 is missing")
    failed = trial(0, TrialState.FAILED, reason="SecretNotFound", why="the Secret s3 is missing")
    status = status_with(failed, running(1), decision=Decision(fail=failure))
    assert status["phase"] != "Failed"
    assert status["failure"]["reason"] == "SecretNotFound"
    assert "kubectl annotate lorasweep support" in status["failure"]["hint"], "it does not continue without a retry"
    assert condition(status, "Searching")[2].endswith("waits for support-001 to end")
    status = status_with(failed, decision=Decision(fail=failure))
    assert (status["phase"], status["failure"]["reason"]) == ("Failed", "SecretNotFound")
    assert "kubectl annotate lorasweep support" in status["failure"]["hint"]


@pytest.mark.parametrize(
    "later",
    [
        {"decision": Decision(end_reason=EndReason.DEADLINE)},
        {"decision": Decision(fail=Failure(reason=FailureReason.SECRET_NOT_FOUND, message="the Secret s3 is missing"))},
        {
            "decision": Decision(end_reason=EndReason.BUDGET),
            "rejection": Failure(reason="CreateRefused", message="no changes today"),
        },
    ],
    ids=["over", "failing", "refused"],
)
def test_it_searches_until_its_last_trials_have_ended(later: Json) -> None:
    before = status_with(trial(0), running(1))
    # An earlier version has written it where something was refused.
    refused = {"type": "Running", "status": "False", "reason": "CreateRefused", "lastTransitionTime": at(-60)}
    before = {**before, "conditions": [*before["conditions"], refused]}
    status = status_with(trial(0), running(1, stopping=True), status=before, **later)
    assert condition(status, "Searching")[0] == "False"
    assert status["phase"] == "Searching"


def test_it_searches_until_there_is_a_job_that_publishes_the_best() -> None:
    publishing = {"decision": Decision(publish=0, end_reason=EndReason.MAX_TRIALS)}
    before = status_with(trial(0), **publishing)
    assert before["phase"] == "Searching"
    no_room = Failure(reason="QuotaExceeded", message="count/jobs.batch is used up")
    seen = replace(snapshot(status=before, rejection=no_room), search=None)
    status = compute_status(seen)
    assert (status["phase"], status["failure"]["reason"]) == ("Searching", "QuotaExceeded")
    assert condition(status, "Searching") == ("False", "QuotaExceeded", "count/jobs.batch is used up")
    waits = requeue_after(replace(seen, status=status, now=NOW + timedelta(minutes=2)), status)
    assert waits == 20.0, "the longer that lasts, the more seldom"
    started = status_with(trial(0), status=status, main=Attempt(job(name="support-publish-best"), ()), **publishing)
    assert (started["phase"], condition(started, "Searching")[1]) == ("Starting", "MaxTrials")


def test_a_retry_while_trials_of_a_failing_sweep_still_end_is_answered_once_it_has_failed() -> None:
    failed = trial(0, TrialState.FAILED, reason=FailureReason.SECRET_NOT_FOUND.value, why="the Secret s3 is missing")
    given_up = trial(1, TrialState.PRUNED, why="the sweep has failed")

    def look(status: Json, *trials: Trial, retry: str, **more: Any) -> Json:
        return status_with(
            *trials, status=status, decision=decide(SPEC, trials, DecisionContext(NOW, NOW)), retry=retry, **more
        )

    before = look({}, running(0), running(1), retry="1")
    assert before["observedRetry"] == "1", "it goes on, and that is the answer"
    ending = look(before, failed, running(1, stopping=True), retry="2")
    unknown = compute_status(replace(snapshot(status=ending, retry="2"), search=None))
    over = look(unknown, failed, given_up, retry="2")
    assert [each["observedRetry"] for each in (ending, unknown, over)] == ["1", "1", "1"]
    assert over["phase"] == "Failed"
    again = reopened(over, "2")
    assert again is not None
    assert (again["observedRetry"], again["forgiven"]) == ("2", 2)


def test_where_people_have_ended_all_trials_it_says_how_it_goes_on() -> None:
    gone = [trial(0, TrialState.DELETED), trial(1, TrialState.PRUNED, why="by hand: enough")]
    decision = decide(sweep(maxTrials=2), gone, DecisionContext(NOW, NOW))
    hint = status_with(*gone, decision=decision)["failure"]["hint"]
    assert hint.startswith("Raise maxTrials above 2, as deleted and stopped trials count. To retry: kubectl annotate")
    assert "new LoRASweep" not in hint


def test_a_retry_forgives_what_had_failed() -> None:
    failure = Failure(reason=FailureReason.SECRET_NOT_FOUND, message="the Secret s3 is missing")
    status = status_with(trial(0, TrialState.FAILED), trial(1, TrialState.FAILED), decision=Decision(fail=failure))
    again = reopened({**status, "endReason": "Budget"}, "1")
    assert again is not None
    assert again["forgiven"] == 2
    assert "endReason" not in again
    assert [row["state"] for row in again["trials"]] == ["Failed", "Failed"]


def test_suspended_it_names_the_trial_that_still_works() -> None:
    status = status_with(running(0), suspend=True, not_suspended=("support-000",))
    assert condition(status, "Suspended")[0] == "False"
    assert "support-000" in condition(status, "Suspended")[2]
    assert status_with(running(0), suspend=True)["phase"] == "Suspended"


def test_suspended_it_says_that_no_trial_is_made() -> None:
    assert condition(status_with(running(0), suspend=True), "Searching")[:2] == ("Unknown", "SearchSuspended")
    over = status_with(trial(0), suspend=True, decision=Decision(end_reason=EndReason.MAX_TRIALS))
    assert condition(over, "Searching")[1] == "MaxTrials"


def test_a_deleted_trial_that_a_finalizer_keeps_is_named() -> None:
    kept = trial(1, TrialState.WAITING, live=Live(finalizers=("example.org/keep", "foregroundDeletion")))
    waits = condition(status_with(trial(0), kept), "Searching")
    assert waits[:2] == ("Unknown", "TrialKept")
    assert "support-001, which was deleted and is kept by the finalizer example.org/keep:" in waits[2]
    beside = condition(status_with(kept, running(2)), "Searching")
    assert beside[:2] == ("True", "Searching")
    assert "support-001, which was deleted" in beside[2]
    at_the_end = status_with(kept, decision=Decision(end_reason=EndReason.DEADLINE))
    assert "the finalizer example.org/keep" in condition(at_the_end, "Searching")[2]
    going = trial(1, TrialState.WAITING, live=Live(finalizers=("foregroundDeletion",)))
    assert condition(status_with(trial(0), going), "Searching")[1] == "Searching", "that one goes by itself"


def test_who_only_claims_to_be_a_trial_is_named() -> None:
    claims = condition(status_with(running(0), foreign=("a", "b", "c", "d")), "Searching")
    assert claims[:2] == ("True", "Searching")
    assert claims[2].endswith("not counted, as the sweep owns them but did not create them: a, b, c and 1 more")


def test_while_the_best_is_published_it_uploads_and_then_has_succeeded() -> None:
    publishing = {"decision": Decision(publish=0, end_reason=EndReason.MAX_TRIALS)}
    attempt = Attempt(job(name="support-publish-best"), (at_work("p1"),))
    assert status_with(trial(0), main=attempt, **publishing)["phase"] in ("Starting", "Uploading")
    words = {"adapter": {"uri": "s3://a/s", "manifestSha256": "ab" * 32, "sizeBytes": 5}}
    over = Attempt(job(name="support-publish-best", complete=True), (ended("p1", says=words),))
    status = status_with(trial(0), main=over, **publishing)
    assert status["phase"] == "Succeeded"
    assert status["adapter"]["uri"] == "s3://a/s"
    assert status["trials"][0]["adapter"]["uri"] == "s3://out/0"
    assert status["attempts"] == 1
    assert status["gpuSeconds"] == 100, "what its trials took; its own Job has no GPU"


def test_once_the_best_is_published_only_what_is_kept_is_named() -> None:
    words = {"adapter": {"uri": "s3://a/s", "manifestSha256": "ab" * 32, "sizeBytes": 5}}
    over = Attempt(job(name="support-publish-best", complete=True), (ended("p1", says=words),))
    ends = Decision(publish=1, end_reason=EndReason.MAX_TRIALS)
    status = status_with(trial(0, value=2.0), trial(1, value=1.5), trial(2, value=1.6), main=over, decision=ends)
    assert status["phase"] == "Succeeded"
    assert [("adapter" in row) for row in status["trials"]] == [False, True, False]


def test_events_tell_of_a_new_best_and_of_failures_and_not_of_each_trial() -> None:
    old = status_with(trial(0, value=2.0))
    failed = trial(2, TrialState.INFEASIBLE, reason="GPUOutOfMemory", why="no room")
    new = status_with(trial(0, value=2.0), trial(1, value=1.5), failed, trial(3, TrialState.PRUNED), status=old)
    events = {event.reason: event for event in transitions(old, new)}
    assert set(events) == {"NewBest", "TrialFailed"}
    assert events["NewBest"].note == "support-001 has a held-out loss of 1.5, support-000 had 2"
    assert (events["TrialFailed"].note, events["TrialFailed"].warning) == ("support-002: GPUOutOfMemory: no room", True)
    assert not list(transitions(new, new))
