"""Hints about trials: what they ask for is done to the sweep, since that of a trial alone leads nowhere."""

from __future__ import annotations

from typing import Any

import pytest

from controller.statuskit import NOW
from tunery_api.kinds import Kind
from tunery_api.names import REJECTED_AT
from tunery_api.reasons import ADVICE, FailureReason
from tunery_api.runspec import Failure
from tunery_api.search.decide import Decision, Moment, decide
from tunery_api.search.rows import trial_of
from tunery_api.search.totals import without_removed
from tunery_api.status import ConditionType
from tunery_api.sweepstatus import TrialStatus
from tunery_operator.plan.lorasweep import trial_name
from tunery_operator.status.draft import Draft
from tunery_operator.status.events import transitions
from tunery_operator.status.removed import after_removal
from tunery_operator.status.search import Search
from tunery_operator.status.snapshot import Snapshot
from tunery_operator.status.stopping import check_stop
from tunery_operator.status.sweep import check_search
from tunery_operator.views.owner import Key, Owner, parse_owner

from kit.sweeps import lorajob, read, sweep

TRIAL = Owner(Key(Kind.LORAJOB, "ns", "s-001"), "uid-1", 1, {}, sweep="s")
SWEEP = Owner(Key(Kind.LORASWEEP, "ns", "s"), "uid-2", 1, {})
NEW_SWEEP = "needs a new sweep, which learns from this one by warmStartFrom: [{name: s}]"
RETRY_OF_SWEEP = "kubectl annotate lorasweep s -n ns --overwrite tunery.dev/retry="


def failed(reason: FailureReason, **status: object) -> str:
    draft = Draft(Snapshot(Kind.LORAJOB, TRIAL, status, NOW))
    draft.fail_for(reason, "m")
    return str(draft.fields["failure"]["hint"])


@pytest.mark.parametrize("reason", [*FailureReason])
def test_no_hint_of_a_failed_trial_leads_away_from_its_sweep(reason: FailureReason) -> None:
    hint = failed(reason, checkpoint={"step": 5, "uri": "s3://a/tunery-checkpoints/x"})
    assert hint.startswith(ADVICE[reason].hint)
    assert "a retry of the trial is not followed" in hint
    assert "annotate lorajob" not in hint
    assert "resumeFrom.loraJobRef" not in hint, "once its sweep has published, its checkpoints are gone"
    assert RETRY_OF_SWEEP in hint or not ADVICE[reason].mendable or "new job" in ADVICE[reason].hint
    assert "new job" not in ADVICE[reason].hint or NEW_SWEEP in hint


def test_what_waits_says_that_a_change_is_for_it_alone() -> None:
    draft = Draft(Snapshot(Kind.LORAJOB, TRIAL, {}, NOW))
    draft.show_obstacle(Failure(reason=FailureReason.UNSCHEDULABLE, message="no node"))
    hint = draft.fields["failure"]["hint"]
    assert "s-001 is a trial of LoRASweep s: what is changed in its LoRAJob is for this trial alone" in hint
    assert NEW_SWEEP in hint
    draft.show_obstacle(Failure(reason=FailureReason.CLUSTER_UNAVAILABLE, message="away"))
    assert draft.fields["failure"]["hint"] == ADVICE[FailureReason.CLUSTER_UNAVAILABLE].hint


def test_a_sweep_that_failed_for_its_template_asks_for_a_new_one() -> None:
    draft = Draft(Snapshot(Kind.LORASWEEP, SWEEP, {}, NOW, search=Search(sweep(), (), Decision())))
    draft.fail_for(FailureReason.DISK_FULL, "trial 0")
    hint = draft.fields["failure"]["hint"]
    assert NEW_SWEEP in hint
    draft.fail_for(FailureReason.BUDGET_EXHAUSTED, "spec.budget ran out")
    assert NEW_SWEEP not in draft.fields["failure"]["hint"]


def body(status: dict[str, Any]) -> dict[str, Any]:
    """Return the LoRAJob of TRIAL with a status."""
    job = lorajob(1, status)
    return {**job, "metadata": {**job["metadata"], "name": TRIAL.key.name}}


@pytest.mark.parametrize("length", [40, 700, 1500])
@pytest.mark.parametrize("reason", [*FailureReason])
def test_a_sweep_passes_on_what_its_trial_has_said(reason: FailureReason, length: int) -> None:
    hint, message = "Put back the data that the sweep began with, and retry.", ("the data has changed " * 99)[:length]
    draft = Draft(Snapshot(Kind.LORAJOB, TRIAL, {"curve": "s3://a/curve.jsonl"}, NOW))
    draft.fail_for(reason, message, hint)
    assert draft.fields["failure"]["hint"].startswith(hint)
    ended = trial_of(body(draft.finish() | {"runSeconds": 9}), read)
    decision = decide(sweep(maxTrials=1, maxFailedTrials=0), [ended], Moment(NOW, NOW))
    told = Draft(Snapshot(Kind.LORASWEEP, SWEEP, {}, NOW, search=Search(sweep(), (ended,), decision)))
    assert check_search(told)
    status = told.finish()
    assert status["failure"]["hint"].startswith(f"{hint} Once that is done: {RETRY_OF_SWEEP}")
    whole, said = (
        message in status["failure"]["message"],
        {c["type"]: c.get("message", "") for c in status["conditions"]},
    )
    assert whole is (length < 1000)
    assert said["Failed"] == status["failure"]["message"]
    assert said["Failed"].endswith("…") is not whole
    if length > 40:
        assert said["Searching"].endswith(f"(condition Failed has {'all' if whole else 'more'} of it)")


@pytest.mark.parametrize("reason", [*FailureReason])
def test_a_row_has_no_hint_that_its_reason_has(reason: FailureReason) -> None:
    draft = Draft(Snapshot(Kind.LORAJOB, TRIAL, {}, NOW))
    draft.fail_for(reason, "m")
    assert trial_of(body(draft.finish()), read).row.failure is None


def test_whose_trial_it_is_stands_in_its_owner_reference() -> None:
    meta = {"namespace": "ns", "name": "s-001", "uid": "u"}
    by = {"kind": "LoRASweep", "name": "s", "uid": "v", "controller": True}
    assert parse_owner(Kind.LORAJOB, {"metadata": {**meta, "ownerReferences": [by]}}).sweep == "s"
    assert parse_owner(Kind.LORAJOB, {"metadata": meta}).sweep is None


@pytest.mark.parametrize("sweep", ["s", "a-007", "long" * 40])
def test_a_copy_of_a_trial_under_another_name_is_none(sweep: str) -> None:
    def owner(name: str) -> str | None:
        by = [{"kind": "LoRASweep", "name": sweep, "uid": "v", "controller": True}]
        meta = {"namespace": "ns", "name": name, "uid": "u", "ownerReferences": by}
        return parse_owner(Kind.LORAJOB, {"metadata": meta}).sweep

    assert [owner(trial_name(sweep, 7)), owner(trial_name(sweep, 7, final=True))] == [sweep, sweep]
    assert [owner(name) for name in ("mybest", "mybest-007", f"{sweep}", f"{sweep}-7", f"{sweep}-best")] == [None] * 5


def test_the_place_of_a_removed_rejected_adapter_is_not_named() -> None:
    uri = "s3://a/x-trials/u/001-rejected"
    message = f"the held-out loss fell by 0.1 %, 5 % were asked for{REJECTED_AT}{uri}"
    draft = Draft(Snapshot(Kind.LORAJOB, TRIAL, {}, NOW))
    draft.fail_for(FailureReason.NOT_IMPROVED, message)
    after = after_removal({**draft.finish(), "rejectedAdapter": {"uri": uri}}, "s", 1, NOW)
    assert "s3://" not in str(after)
    assert after["failure"]["message"].endswith("what was trained was rejected, and is removed")
    row = TrialStatus(number=1, name="s-001", uid="u", state="Failed", origin="TPE", parameters={}, why=message)
    (told,) = without_removed([row], 0, 1)
    assert told.why == after["failure"]["message"]


def test_a_retry_of_a_trial_is_an_event() -> None:
    old = {"phase": "Failed", "failure": {"reason": "Killed", "message": "m", "hint": "Look at the node."}}
    (event,) = transitions(old, {**old, "observedRetry": "1"})
    assert (event.reason, event.warning) == ("RetryRefused", True)
    assert event.note == "a trial is not tried again by itself: Look at the node."


@pytest.mark.parametrize(
    ("status", "of_trial", "says"),
    [
        ({"phase": "Succeeded"}, False, "it has succeeded"),
        ({"phase": "Stopped"}, False, "in a new object of another name"),
        ({"phase": "Stopped", "checkpoint": {"step": 7, "uri": "s3://a/c"}}, False, "resumeFrom.loraJobRef.name"),
        ({"phase": "Stopped", "checkpoint": {"step": 7, "uri": "s3://a/c"}}, True, "its sweep counts it"),
    ],
)
def test_a_retry_of_what_has_succeeded_or_was_stopped_is_an_event(
    status: dict[str, Any], of_trial: bool, says: str
) -> None:
    (event,) = transitions(status, {**status, "observedRetry": "1"}, of_trial=of_trial)
    assert (event.reason, event.warning, event.time) == ("RetryRefused", True, "1")
    assert says in event.note
    noted = {**status, "observedRetry": "1"}
    assert transitions(noted, noted, of_trial=of_trial) == (), "once for each value"
    assert transitions({**noted, "phase": "Training"}, {**noted, "observedRetry": "2"}) == (), "it has just ended"


def test_a_stopped_trial_names_no_checkpoint_once_they_are_removed() -> None:
    draft = Draft(Snapshot(Kind.LORAJOB, TRIAL, {"attempts": 1}, NOW, stop="sweep: worse", on_stop="Discard"))
    draft.put(checkpoint={"step": 5, "uri": "s3://a/tunery-checkpoints/ns/s-001-uid-1/step-000005"})
    draft.conditions.set(ConditionType.CHECKPOINT_SAVED, True, "CheckpointSaved", "step 5 at s3://a/tunery-checkpoints")
    assert check_stop(draft)
    status = draft.finish()
    stopped = next(each for each in status["conditions"] if each["type"] == "Stopped")
    assert stopped["message"].endswith("its checkpoints stay until LoRASweep s has published its best")
    after = after_removal(status, "s", 1, NOW)
    assert "checkpoint" not in after
    assert "s3://" not in str(after["conditions"])
    assert after_removal(after, "s", 1, NOW) == after, "whoever was killed in between does it again"


@pytest.mark.parametrize(
    ("remains", "adapter", "end", "checkpoints"),
    [
        (
            True,
            "the others could not be removed, or not all of them",
            "does not keep it, and could not remove all that it does not keep",
            "could not be removed, or not all of them",
        ),
        (
            None,
            "whether the others were removed is not known",
            "does not keep it, and whether it was removed is not known",
            "were to be removed (whether they were is not known)",
        ),
    ],
)
def test_what_was_not_removed_or_nobody_knows_is_not_said_to_be(
    remains: bool | None, adapter: str, end: str, checkpoints: str
) -> None:
    draft = Draft(Snapshot(Kind.LORAJOB, TRIAL, {}, NOW))
    for kind in (ConditionType.ADAPTER_UPLOADED, ConditionType.CHECKPOINT_SAVED):
        draft.conditions.set(kind, True, kind.value, "at s3://a/x")
    draft.succeed("published at s3://a/x", NOW)
    after = after_removal({**draft.finish(), "adapter": {"uri": "s3://a/x"}}, "s", 1, NOW, remains=remains)
    told = {each["type"]: each.get("message", "") for each in after["conditions"]}
    assert "adapter" not in after
    assert told["AdapterUploaded"].endswith(f"(spec.keepAdapters); {adapter}")
    assert told["Succeeded"].endswith(f"LoRASweep s {end}")
    assert told["CheckpointSaved"].startswith(f"the checkpoints {checkpoints}")
    assert after_removal(after, "s", 1, NOW, remains=remains) == after


def test_the_report_beside_a_removed_adapter_is_not_named() -> None:
    adapter = {"uri": "s3://a/x", "manifestSha256": "0" * 64}
    data = {"rows": 4, "report": "s3://a/x/data-report.md"}
    assert after_removal({"adapter": adapter, "dataset": data}, "s", 1, NOW)["dataset"] == {"rows": 4}
    elsewhere = {**data, "report": "s3://a/tunery-reports/data-report.md"}
    assert after_removal({"adapter": adapter, "dataset": elsewhere}, "s", 1, NOW)["dataset"] == elsewhere
