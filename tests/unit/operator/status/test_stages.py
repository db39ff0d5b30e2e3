"""What the status says between the pods: suspended, queued, refused, waiting, and words that are gone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tunery_api.errors import FieldError
from tunery_api.failures import Failure
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy, is_fixable, recreate, remedies_for, retry
from tunery_api.runspec import TrainerStatus
from tunery_api.status import CheckpointStatus, LoRAJobStatus
from tunery_operator.controllers.jobs import has_lost_report
from tunery_operator.observed.attempt import Attempt
from tunery_operator.planning.inputs import UnfinishedInput
from tunery_operator.status.compute import compute_status
from tunery_operator.status.deadline import MAX_SECONDS, MIN_SECONDS, requeue_after
from tunery_operator.status.events import transitions
from tunery_operator.status.results import needs_report

from kit.operator.objects import REPORT, RESULT
from kit.operator.statuskit import (
    NOW,
    OWNER,
    TRAINING,
    again,
    at,
    condition,
    deleting,
    ended,
    job,
    message_of,
    pod,
    queued_job,
    running,
    snapshot,
    status_for,
)

STOPPING = ("False", "Stopping")
SUSPENDED = ("True", "Suspended")
OURS: dict[str, Any] = {"suspend": True, "suspended_by_us": True}

SUSPENSION: dict[str, tuple[dict[str, Any], tuple[str, str], str]] = {
    "no SIGTERM yet": ({"train": job(active=1), "pods": (running(),)}, STOPPING, "Suspending"),
    "SIGTERM": ({"train": job(active=1, **OURS), "pods": (running(meta=deleting(60)),)}, STOPPING, "Suspending"),
    "the Job controller counts one": ({"train": job(active=1, **OURS)}, STOPPING, "Suspending"),
    "the pod has not ended": ({"train": job(**OURS), "pods": (running(meta=deleting(60)),)}, STOPPING, "Suspending"),
    "the pod has ended": ({"train": job(**OURS), "pods": (ended(code=143),)}, SUSPENDED, "Suspended"),
    "no pod": ({"train": job(**OURS)}, SUSPENDED, "Suspended"),
    "no Job": ({"main": None}, SUSPENDED, "Suspended"),
    "the Job is gone, its pod is not": (
        {"main": None, "leftovers": (running(meta=deleting(60)),)},
        STOPPING,
        "Suspending",
    ),
    "the queue could start it any time": ({"train": queued_job(suspend=True)}, STOPPING, "Suspending"),
    "preflight runs": (
        {"main": None, "preflight_needed": True, "preflight": Attempt(job(active=1), (running(),))},
        STOPPING,
        "Suspending",
    ),
    "lost node": (
        {"train": job(active=1, **OURS), "pods": (running(meta=deleting(-60)),)},
        STOPPING,
        "Suspending",
    ),
}


@pytest.mark.parametrize(("seen", "told", "phase"), SUSPENSION.values(), ids=SUSPENSION.keys())
def test_suspended_means_that_nothing_runs(seen: dict[str, Any], told: tuple[str, str], phase: str) -> None:
    status = status_for(suspend=True, **seen)
    assert (condition(status, "Suspended"), status["phase"]) == (told, phase)
    assert (condition(status, "Reconciling") is None) is (phase == "Suspended")


def test_resumed() -> None:
    suspended = snapshot(suspend=True, train=job(**OURS))
    status = compute_status(again(suspended, suspend=False, train=job()))
    assert condition(status, "Suspended") == ("False", "Resumed")
    assert status["phase"] == "Starting"


# Kueue

HELD = queued_job(suspend=True)
ADMITTED = queued_job(admitted=True)


def quota(status: dict[str, Any]) -> Any:
    return status["phase"], condition(status, "QuotaReserved"), status.get("queue")


def test_queued_admitted_preempted_and_queued_again() -> None:
    seen = snapshot(train=HELD)
    assert quota(compute_status(seen)) == ("Queued", ("False", "WaitingForQuota"), "team-a")
    seen = again(seen, running(), train=ADMITTED)
    assert quota(compute_status(seen)) == ("Starting", ("True", "QuotaReserved"), "team-a")
    seen = again(seen, running(meta=deleting(60)), train=HELD)
    assert quota(compute_status(seen)) == ("Queued", ("False", "Preempted"), "team-a")
    assert condition(compute_status(seen), "Running") == ("True", "Stopping")
    seen = again(seen, ended(code=143, meta=deleting(60)), train=HELD)
    assert quota(compute_status(seen)) == ("Queued", ("False", "Preempted"), "team-a")
    assert compute_status(seen)["attemptHistory"][0]["reason"] == "Preempted"
    seen = again(seen, running("p2"), train=ADMITTED)
    assert quota(compute_status(seen)) == ("Starting", ("True", "QuotaReserved"), "team-a")


def test_a_label_without_a_queue_controller_reserves_nothing() -> None:
    status = status_for(running(), train=queued_job())
    assert quota(status) == ("Starting", ("Unknown", "NoQueueController"), "team-a")


def test_a_queue_controller_that_leaves_no_marks_is_known_by_what_it_does() -> None:
    held = snapshot(train=HELD)
    assert quota(compute_status(again(held, running(), train=queued_job()))) == (
        "Starting", ("True", "QuotaReserved"), "team-a",
    )  # fmt: skip


def test_a_job_that_is_no_more_holds_no_quota() -> None:
    runs = again(snapshot(train=HELD, queue="team-a"), running(), train=ADMITTED)
    stopped = again(runs, suspend=True, main=None, leftovers=(running(meta=deleting(60)),))
    assert quota(compute_status(stopped)) == ("Suspending", ("Unknown", "Released"), "team-a")
    resumed = again(stopped, suspend=False, leftovers=(), train=HELD)
    assert quota(compute_status(resumed)) == ("Queued", ("False", "WaitingForQuota"), "team-a")


def test_what_we_suspended_waits_for_no_quota() -> None:
    status = status_for(train=queued_job(**OURS), suspend=True)
    assert condition(status, "QuotaReserved") is None


def test_the_queue_is_that_of_the_job_whoever_named_it() -> None:
    assert status_for(running(), queue=None, train=ADMITTED)["queue"] == "team-a"
    assert "queue" not in status_for(running(), queue="label-that-came-later")
    assert status_for(main=None, queue="team-b")["queue"] == "team-b"


def test_a_failed_attempt_of_preflight_is_told_before_the_next_one() -> None:
    status = status_for(main=None, preflight_needed=True, preflight=Attempt(job(), (ended(code=75),)))
    assert condition(status, "Preflight") == ("Unknown", "AttemptFailed")
    assert message_of(status, "Preflight").startswith("attempt 1 of preflight failed: ")


@pytest.mark.parametrize(
    ("remedies", "retried"),
    [
        ([], True),
        ([retry("Correct line 3")], True),
        ([recreate("Raise training.maxLength", "training.maxLength")], False),
        ([retry("Correct line 3"), recreate("Raise training.maxLength", "training.maxLength")], True),
    ],
)
def test_only_what_the_object_can_recover_from_offers_a_retry(remedies: list[Remedy], retried: bool) -> None:
    said = Failure(reason="DatasetInvalid", message="no row fits", remedies=remedies).to_json_dict()
    status = status_for(ended(code=64, says={"failure": said}), train=job(failed_reason="PodFailurePolicy"))
    assert ("kubectl annotate" in status["failure"]["hint"]) is retried


def test_who_does_not_run_ends_at_no_known_time() -> None:
    report = TrainerStatus(progress_percentage=42, estimated_remaining_seconds=200, last_updated_time=at(-1))
    trains = compute_status(first := snapshot(running(), progress=report))
    assert trains["progress"]["eta"] == "3m20s"
    held = compute_status(again(first, train=job(**OURS), status=trains, suspend=True, progress=report))
    assert held["phase"] == "Suspended"
    assert held["progress"]["percent"] == 42
    assert not held["progress"].keys() & {"eta", "etaSeconds"}


def test_preflight_waits_in_a_queue_too() -> None:
    held = snapshot(main=None, preflight_needed=True, preflight=Attempt(HELD))
    status = compute_status(held)
    assert quota(status) == ("Queued", ("False", "WaitingForQuota"), "team-a")
    assert condition(status, "Preflight") == ("Unknown", "PreflightQueued")
    goes = compute_status(again(held, main=None, preflight=Attempt(ADMITTED, (running(),))))
    assert goes["phase"] == "Preflight"


# Refused, waiting, no longer to be planned

REFUSALS = [reason for reason in FailureReason if reason in ("QuotaExceeded", "CreateRefused", "FieldContested")]


@pytest.mark.parametrize("reason", REFUSALS)
@pytest.mark.parametrize("needed", [True, False], ids=["preflight", "train"])
def test_a_refused_create_is_told_in_the_servers_words(reason: FailureReason, needed: bool) -> None:
    refused = snapshot(
        main=None, preflight_needed=needed, rejection=Failure(reason=reason, message="admission webhook says no")
    )
    status = compute_status(refused)
    stage = ("Preflight", "Unknown") if needed else ("Running", "False")
    assert condition(status, stage[0]) == (stage[1], reason.value)
    assert (status["failure"]["reason"], status["failure"]["message"]) == (reason.value, "admission webhook says no")
    assert status["failure"]["hint"].startswith(remedies_for(reason)[0].text)
    assert status["failure"]["hint"].endswith("The LoRAJob then continues without a retry.")
    assert status["phase"] not in ("Failed", "Succeeded")
    gone = compute_status(again(refused, main=None, rejection=None))
    assert "failure" not in gone


def test_a_contested_field_does_not_hide_that_a_pod_runs() -> None:
    status = status_for(running(), rejection=Failure(reason=FailureReason.FIELD_CONTESTED, message="suspend is undone"))
    assert condition(status, "Running") == ("True", "PodStarted")
    assert status["failure"]["reason"] == "FieldContested"


def test_an_accepted_spec_is_never_failed_by_todays_settings() -> None:
    lost = (FieldError("spec.output.uri", "is required: the platform has no default output"),)
    status = status_for(main=None, planning_errors=lost)
    assert condition(status, "Running") == ("False", "PlatformChanged")
    assert "no default output" in status["failure"]["message"]
    assert status["phase"] == "Starting"
    runs = status_for(running(), planning_errors=lost)
    assert "failure" not in runs
    assert condition(runs, "Running") == ("True", "PodStarted")


def test_what_ends_still_is_waited_for() -> None:
    status = status_for(main=None, preflight_needed=True, waiting_for="Job x-preflight of an earlier LoRAJob x")
    assert condition(status, "Preflight") == ("Unknown", "WaitingForPredecessor")
    assert status["phase"] == "Waiting"
    assert "failure" not in status
    work = status_for(main=None, waiting_for="pod x of an earlier Job")
    assert (condition(work, "Running"), work["phase"]) == (("False", "WaitingForPredecessor"), "Waiting")


def test_of_what_has_ended_nobody_says_that_it_could_go_on() -> None:
    held = status_for(train=job(**OURS), suspend=True)
    assert condition(held, "Suspended") == ("True", "Suspended")
    for ending in ({"train": DONE, "pods": (ended(says=RESULT),)}, {"train": job(failed_reason="x"), "pods": ()}):
        status = status_for(**ending, suspend=True, status=held)
        assert status["phase"] in ("Succeeded", "Failed")
        assert "Suspended" not in [each["type"] for each in status["conditions"]]
    full = status_for(main=None, preflight_needed=True, waiting_for="room", waiting_reason="WaitingForPreflightSlot")
    assert condition(full, "Preflight") == ("Unknown", "WaitingForPreflightSlot")


# Words that are gone

DONE = job(complete=True, ended_at=None)
NOTHING = {"failure": {"reason": "AdapterMissing", "message": "nothing of uid-1 is published at s3://adapters/x"}}


def reported(*pods: Any, **changes: Any) -> Attempt:
    return Attempt(job(name="x-report", uid="r", **changes), pods)


LOOKUPS: dict[str, tuple[dict[str, Any], bool, str, str | None]] = {
    "its own words": ({"pods": (ended(says=RESULT),)}, False, "Succeeded", None),
    "pod gone": ({}, True, "Uploading", None),
    "words gone": ({"pods": (ended(says="oops"),)}, True, "Uploading", None),
    "asks": ({"report": reported(running())}, True, "Uploading", None),
    "cannot ask yet": (
        {"report": reported(pod(state={"waiting": {"reason": "ErrImagePull"}}))},
        True,
        "Uploading",
        "ImagePullFailed",
    ),
    "answers": ({"report": reported(ended(says=RESULT), complete=True)}, False, "Succeeded", None),
    "the answer is gone too": ({"report": reported(complete=True)}, True, "Uploading", None),
    "there is nothing": (
        {"report": reported(ended(code=64, says=NOTHING), failed_reason="PodFailurePolicy")},
        False,
        "Failed",
        "AdapterMissing",
    ),
    "says nothing": ({"report": reported(ended(says="{}"), complete=True)}, False, "Failed", "AdapterMissing"),
}


@pytest.mark.parametrize(("seen", "needed", "phase", "reason"), LOOKUPS.values(), ids=LOOKUPS.keys())
def test_a_result_is_looked_up_where_it_lies(
    seen: dict[str, Any], needed: bool, phase: str, reason: str | None
) -> None:
    complete = snapshot(train=DONE, **seen)
    status = compute_status(complete)
    assert needs_report(complete) is needed
    assert (status["phase"], status.get("failure", {}).get("reason")) == (phase, reason)
    if needed:
        assert condition(status, "Running") == ("False", "ResultLookup")


def test_a_deadline_does_not_end_what_is_done() -> None:
    status = status_for(train=DONE, status={"runSeconds": 100}, deadline_seconds=100)
    assert status["phase"] == "Uploading"


@pytest.mark.parametrize(
    ("pods", "needed", "told"),
    [
        ((ended(says=REPORT),), False, ("True", "PreflightPassed")),
        ((), True, ("Unknown", "PreflightRepeated")),
        ((ended(says="{}"),), False, ("False", "InternalError")),
        ((ended(says=NOTHING),), False, ("False", "AdapterMissing")),
    ],
    ids=["said", "gone", "nothing said", "failed"],
)
def test_preflight_runs_again_where_its_words_are_gone(pods: Any, needed: bool, told: tuple[str, str]) -> None:
    seen = snapshot(main=None, preflight_needed=True, preflight=Attempt(DONE, pods))
    assert has_lost_report(Attempt(DONE, pods)) is needed
    assert condition(compute_status(seen), "Preflight") == told


def test_checkpoints_that_were_removed_are_no_longer_promised() -> None:
    saved = {"uri": "s3://adapters/tunery-checkpoints/uid-1/step-000200", "step": 200}
    before = status_for(ended(code=143, says={"checkpoint": saved}), train=job(failed_reason="BackoffLimitExceeded"))
    assert before["checkpoint"] == saved
    trained = snapshot(running(), status={"checkpoint": saved, "conditions": _saved()})
    done = compute_status(again(trained, ended(says=RESULT), train=DONE))
    assert "checkpoint" not in done
    assert condition(done, "CheckpointSaved") == ("False", "Removed")
    kept = compute_status(again(trained, ended(says={**RESULT, "checkpoint": saved}), train=DONE))
    assert kept["checkpoint"] == saved


def test_the_checkpoint_that_a_stopped_pod_wrote_is_the_newest() -> None:
    old, new = ({"uri": f"s3://adapters/c/step-{step:06}", "step": step} for step in (200, 250))
    told = snapshot(running(), progress=TrainerStatus(checkpoint=CheckpointStatus(**old)))
    stopped = again(told, ended(code=143, says={"checkpoint": new}, meta=deleting(60)))
    assert compute_status(stopped)["checkpoint"] == new
    assert compute_status(again(stopped, running("p2")))["checkpoint"] == new


def test_a_checkpoint_that_cannot_be_stored_is_said_until_one_is() -> None:
    first, second = (CheckpointStatus(uri=f"s3://adapters/c/step-{step:06}", step=step) for step in (200, 400))
    why = "the checkpoint of step 300 was not stored: s3://adapters/c: AccessDenied"
    none = compute_status(snapshot(running(), progress=TrainerStatus(checkpoint_error=why)))
    assert condition(none, "CheckpointSaved") == ("False", "CheckpointNotStored")
    assert message_of(none, "CheckpointSaved") == f"{why}; the next attempt would start from the beginning"
    (event,) = (each for each in transitions({}, none) if each.reason == "CheckpointNotStored")
    assert event.warning

    # As each report tells all that holds: the newest one that is stored, and why a later one is not.
    told = snapshot(running(), progress=TrainerStatus(checkpoint=first, checkpoint_error=why))
    status = compute_status(told)
    assert condition(status, "CheckpointSaved") == ("False", "CheckpointNotStored")
    assert status["checkpoint"] == first.to_json_dict()
    assert compute_status(again(told, running(), status=status, seconds=60)) == status, "it settles"
    ended_then = compute_status(again(told, ended(says=RESULT), train=DONE))
    assert condition(ended_then, "CheckpointSaved") == ("False", "Removed")
    assert "checkpoint" not in ended_then
    for later in (first, second):
        mended = compute_status(again(told, running(), status=status, progress=TrainerStatus(checkpoint=later)))
        assert condition(mended, "CheckpointSaved") == ("True", "CheckpointSaved")
        assert mended["checkpoint"] == later.to_json_dict()


def _saved() -> list[dict[str, Any]]:
    true = {"status": "True", "reason": "CheckpointSaved", "lastTransitionTime": at(-60)}
    return [{"type": "CheckpointSaved", **true}]


# When to look again

LOOKS: dict[str, tuple[dict[str, Any], float | None]] = {
    "succeeded": ({"train": DONE, "pods": (ended(says=RESULT),)}, None),
    "a pod runs": ({"pods": (running(),)}, 76),
    "it reports": ({"pods": (running(),), "progress": TRAINING}, 121),
    "a pod starts": ({"pods": (running(started=-1),), "taking_reports_since": NOW - timedelta(hours=1)}, 120),
    "it has been silent for long": (
        {"pods": (running(started=-121),), "taking_reports_since": NOW - timedelta(hours=1)},
        None,
    ),
    "a pod ends": ({"pods": (running(meta=deleting(30)),)}, 46),
    "its grace is over": ({"pods": (running(meta=deleting(-10)),)}, 6),
    "its node is lost": ({"pods": (running(meta=deleting(-100)),)}, None),
    "no pod, at first": ({"train": job(started_at=None, created=at(-5))}, MIN_SECONDS),
    "no pod, for long": ({"train": job(started_at=None, created=at(-3600))}, MAX_SECONDS),
    "the container is created": (
        {"train": job(started_at=None, created=at(-5)), "pods": (pod(state={"waiting": {}}),)},
        MIN_SECONDS,
    ),
    "held by a queue": ({"train": HELD}, None),
    "waits for inputs": ({"main": None, "inputs": (UnfinishedInput("y", "is Training"),)}, None),
    "refused": ({"main": None, "rejection": Failure(reason=FailureReason.QUOTA_EXCEEDED, message="full")}, MIN_SECONDS),
}


@pytest.mark.parametrize(("seen", "after"), LOOKS.values(), ids=LOOKS.keys())
def test_when_time_alone_changes_a_status(seen: dict[str, Any], after: float | None) -> None:
    looked = snapshot(**seen)
    assert requeue_after(looked, compute_status(looked)) == after


# One condition for programs


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (status_for(main=None), ("Unknown", "InProgress")),
        (status_for(running()), ("Unknown", "InProgress")),
        (status_for(train=job(**OURS), suspend=True), ("Unknown", "InProgress")),
        (status_for(ended(says=RESULT), train=DONE), ("True", "Succeeded")),
        (status_for(ended(code=64, says=NOTHING), train=job(failed_reason="x")), ("False", "AdapterMissing")),
    ],
    ids=["nothing yet", "runs", "suspended", "done", "failed"],
)
def test_one_condition_tells_programs_how_it_stands(status: dict[str, Any], told: tuple[str, str]) -> None:
    assert condition(status, "Succeeded") == told
    LoRAJobStatus.model_validate(status)
    assert OWNER.generation == status["observedGeneration"]


@pytest.mark.parametrize("reason", FailureReason)
def test_a_hint_names_the_way_back_where_there_is_one(reason: FailureReason) -> None:
    said = {"failure": {"reason": reason.value, "message": "it is so"}}
    hint = status_for(ended(code=64, says=said), train=job(failed_reason="PodFailurePolicy"))["failure"]["hint"]
    remedies = remedies_for(reason)
    assert [each.text for each in remedies if each.text[1:] not in hint] == []
    assert ("kubectl annotate lorajob x -n ns" in hint) is is_fixable(remedies)
    assert is_fixable(remedies) or "in a new LoRAJob" in hint
