"""Verdicts over an object that is being stopped, as tables: what counts as a stop, and what is said meanwhile."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from tunery_api.failures import Failure
from tunery_api.findings import CHECK_NOT_REACHED, CHECK_PENDING
from tunery_api.reasons import FailureReason
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.event import ClusterWarning
from tunery_operator.observed.job import JobView
from tunery_operator.status.compute import compute_status
from tunery_operator.status.events import transitions
from tunery_operator.status.snapshot import Snapshot
from tunery_operator.status.stop import stop_of

from kit.operator.statuskit import (
    NOW,
    again,
    at,
    condition,
    deleting,
    ended,
    job,
    message_of,
    pod,
    running,
    snapshot,
    status_for,
)

ADAPTER = {"uri": "s3://adapters/x", "manifestSha256": "ab" * 32, "sizeBytes": 12}
PUBLISHED = {"adapter": ADAPTER, "stoppedAfterStep": 40}


def publish_job(**changes: Any) -> JobView:
    """Return the publishing Job of the LoRAJob."""
    return job(name="x-publish", uid="p", role="publish", **changes)


def left(**changes: Any) -> Snapshot:
    """Return a LoRAJob that was told to stop, whose pod has trained for five minutes and is gone."""
    status = status_for(running(), stop="enough")
    return snapshot(main=None, stop="enough", status=status, **changes)


def test_what_is_a_stop() -> None:
    hour = {"deadline_seconds": 3600}
    late = {"deadline_seconds": 60}
    begun = {"conditions": [{"type": "Stopped", "status": "False", "reason": "Stopping"}]}
    cases: list[tuple[Snapshot, str | None]] = [
        (snapshot(running(), **hour), None),
        (snapshot(running(), stop="enough", **hour), "StopRequested"),
        (snapshot(running(), **late), None),
        (snapshot(running(), on_stop="Discard", **late), None),
        (snapshot(running(), on_stop="Publish", **hour), None),
        (snapshot(running(), on_stop="Publish", **late), "DeadlineExceeded"),
        (snapshot(running(), on_stop="Publish", status=begun, **hour), "DeadlineExceeded"),
        (snapshot(running(), status=begun, **hour), None),
        # Its work is done, or nobody wants it any more.
        (snapshot(ended(), train=job(complete=True), stop="enough"), None),
        (snapshot(running(), stop="enough", blocking_finalizers=("example.com/hold",)), None),
    ]
    for found, reason in cases:
        stop = stop_of(found)
        assert (stop.reason if stop else None) == reason, found


def test_what_was_trained_is_published_unless_it_is_to_be_discarded() -> None:
    waiting = pod()
    for found, publishes in [
        (snapshot(running(), stop="enough"), True),
        (snapshot(running(), stop="enough", on_stop="Publish"), True),
        (snapshot(running(), stop="enough", on_stop="Discard"), False),
        (snapshot(waiting, stop="enough"), False),
        (snapshot(main=None, stop="enough"), False),
        (snapshot(main=None, stop="enough", status={"attempts": 1}), True),
        (snapshot(main=None, stop="enough", leftovers=(running(meta=deleting(60)),)), True),
    ]:
        stop = stop_of(found)
        assert stop is not None
        assert stop.publishes is publishes


def test_a_pod_that_ends_is_waited_for() -> None:
    status = status_for(main=None, stop="enough", leftovers=(running(meta=deleting(60)),))
    assert status["phase"] == "Stopping"
    assert condition(status, "Stopped") == ("False", "Stopping")
    assert message_of(status, "Stopped") == "enough; pod p1 is terminating, and may still write a checkpoint"
    assert condition(status, "Running") == ("True", "Stopping")
    assert condition(status, "Succeeded") == ("Unknown", "InProgress")


def test_only_a_pod_that_trains_may_still_write_a_checkpoint() -> None:
    suspended = Attempt(job(suspend=True, suspended_by_us=True), (running(meta=deleting(60)),))
    training = status_for(main=suspended, suspend=True)
    preflight = status_for(main=None, preflight_needed=True, preflight=suspended, suspend=True)
    assert (
        message_of(training, "Suspended")
        == "spec.suspend is true; pod p1 is terminating, and may still write a checkpoint"
    )
    assert message_of(preflight, "Suspended") == "spec.suspend is true; pod p1 is terminating"


def test_what_keeps_its_job_from_going_is_told() -> None:
    rejection = Failure(reason=FailureReason.CREATE_REFUSED, message="jobs.batch is forbidden")
    status = status_for(running(), stop="enough", rejection=rejection)
    assert status["phase"] == "Stopping"
    assert status["failure"]["reason"] == "CreateRefused"


@pytest.mark.parametrize("on_stop", [None, "Discard"])
def test_a_suspension_gives_way(on_stop: str | None) -> None:
    held = snapshot(main=None, suspend=True, stop="enough", on_stop=on_stop)
    status = compute_status(held)
    assert status["phase"] == "Stopped"
    assert condition(status, "Suspended") is None
    assert condition(status, "Failed") is None


def test_its_cost_is_closed_and_the_time_of_publishing_is_not_charged() -> None:
    gone = snapshot(running(started=-300), stop="enough", gpus=1)
    stopping = again(gone, main=None, leftovers=(ended(code=143, started=-300, stopped=0, meta=deleting(60)),))
    publisher = Attempt(publish_job(complete=True), (ended(says=PUBLISHED, started=100, stopped=200),))
    status = compute_status(again(stopping, main=None, leftovers=(), publishing=publisher, seconds=300))
    assert status["phase"] == "Stopped"
    assert (status["attempts"], status["runSeconds"], status["gpuSeconds"]) == (1, 300, 300)
    assert [entry["reason"] for entry in status["attemptHistory"]] == ["Stopped"], "nobody else deleted the pod"
    assert status["completionTime"] == at(200)


def test_a_publishing_pod_that_does_not_start_says_why() -> None:
    warning = ClusterWarning("FailedCreate", "exceeded quota: limit", at(0), "Job")
    publisher = Attempt(publish_job(), (), (warning,))
    status = compute_status(left(publishing=publisher))
    assert status["phase"] == "Stopping", "nothing is uploaded"
    assert status["failure"]["reason"] == "QuotaExceeded"
    assert condition(status, "Stopped") == ("False", "QuotaExceeded")
    assert "exceeded quota: limit" in message_of(status, "Stopped")
    again_fits = compute_status(left(publishing=Attempt(publish_job(), (running(),))))
    assert (again_fits["phase"], condition(again_fits, "Stopped")) == ("Uploading", ("False", "Publishing"))


def test_a_publishing_pod_without_room_is_told_beside_what_the_training_pod_waited_for() -> None:
    full = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes fit"}
    waits = pod(conditions=[full])
    trained = again(snapshot(waits), running())
    told = [event for event in transitions({}, trained.status) if event.reason == "Unschedulable"]
    publishes = left(publishing=Attempt(publish_job(), ()))
    stuck = compute_status(dataclasses.replace(publishes, publishing=Attempt(publish_job(), (waits,))))
    assert stuck["phase"] == "Stopping"
    told += [event for event in transitions(compute_status(publishes), stuck) if event.reason == "Unschedulable"]
    assert len({event.note for event in told}) == 2, "a repeated warning is known by its words"
    assert told[1].warning
    assert "Job x-publish" in told[1].note
    assert "room for this pod" in stuck["failure"]["hint"]


def test_no_checkpoint_is_named_that_nobody_told_of() -> None:
    publisher = Attempt(publish_job(), (running(),))
    before = left(publishing=publisher)
    assert message_of(compute_status(before), "Stopped") == (
        "enough; Job x-publish will check whether a checkpoint was stored, as none was reported, and publish its best "
        "weights"
    )
    known = {**before.status, "checkpoint": {"uri": "s3://c/step-000040", "step": 40}}
    assert message_of(compute_status(dataclasses.replace(before, status=known)), "Stopped") == (
        "enough; Job x-publish will publish the best weights of the latest checkpoint, of step 40"
    )


def test_a_publishing_pod_that_runs_out_of_memory_names_the_platforms_setting() -> None:
    died = ended(code=137, why="OOMKilled")
    publisher = Attempt(publish_job(failed_reason="BackoffLimitExceeded"), (died,))
    status = compute_status(left(publishing=publisher))
    assert (status["phase"], status["failure"]["reason"]) == ("Failed", "OutOfMemory")
    assert "preflight.resources" in status["failure"]["hint"]
    assert "kubectl annotate" in status["failure"]["hint"]
    assert condition(status, "Stopped") is None


def test_a_publishing_pod_without_a_result_is_a_defect() -> None:
    publisher = Attempt(publish_job(complete=True), (ended(says="{}"),))
    status = compute_status(left(publishing=publisher))
    assert (status["phase"], status["failure"]["reason"]) == ("Failed", "InternalError")


def test_what_is_not_better_is_told_and_is_no_adapter() -> None:
    rejected = {
        "failure": {"reason": "NotImproved", "message": "the evaluation loss went from 2.5 to 2.6"},
        "rejectedAdapter": {**ADAPTER, "uri": "s3://adapters/x-rejected"},
        "stoppedAfterStep": 4,
    }
    publisher = Attempt(publish_job(failed_reason="PodFailurePolicy"), (ended(code=64, says=rejected),))
    status = compute_status(left(publishing=publisher))
    assert (status["phase"], status["rejectedAdapter"]["uri"]) == ("Stopped", "s3://adapters/x-rejected")
    assert "adapter" not in status
    assert status["stopped"] == {"reason": "StopRequested", "afterStep": 4}
    assert message_of(status, "Stopped") == "enough; stopped after step 4; the evaluation loss went from 2.5 to 2.6"


def test_a_pod_that_had_published_it_all_has_succeeded() -> None:
    publisher = Attempt(publish_job(complete=True), (ended(says={"adapter": ADAPTER}),))
    status = compute_status(left(publishing=publisher))
    assert (status["phase"], condition(status, "Stopped")) == ("Succeeded", None)
    assert "checkpoint" not in status


def test_a_raised_deadline_does_not_undo_what_was_begun() -> None:
    late = snapshot(running(started=-300), on_stop="Publish", deadline_seconds=60)
    status = compute_status(dataclasses.replace(late, main=None, leftovers=(running(started=-300, meta=deleting(60)),)))
    assert status["phase"] == "Stopping"
    raised = dataclasses.replace(
        late, status=status, main=None, leftovers=(), deadline_seconds=86_400, now=NOW + timedelta(minutes=5)
    )
    assert stop_of(raised) is not None
    assert compute_status(raised)["phase"] == "Uploading"


PROGRESS = {"step": 39, "totalSteps": 80, "percent": 48, "percentText": "48%"}
CHECKS = [
    {"name": "Alpha", "result": "Passed", "message": "32 is 2 times the rank"},
    {"name": "Baseline", "result": "Skipped", "message": CHECK_PENDING},
]


def test_how_far_it_came_is_one_step_wherever_it_is_told() -> None:
    """The pod was told to end as it did step 40, and its last post was not taken any more."""
    publisher = Attempt(publish_job(complete=True), (ended(says=PUBLISHED, started=100, stopped=200),))
    before = left()
    status = compute_status(
        dataclasses.replace(before, publishing=publisher, status={**before.status, "progress": PROGRESS})
    )
    assert status["stopped"] == {"reason": "StopRequested", "afterStep": 40}
    assert {name: status["progress"][name] for name in PROGRESS} == {
        "step": 40, "totalSteps": 80, "percent": 50, "percentText": "50%",
    }  # fmt: skip
    assert "stopped after step 40" in message_of(status, "Stopped")


def test_without_a_checkpoint_the_last_step_is_that_of_the_reports() -> None:
    missing = {"failure": {"reason": "CheckpointMissing", "message": "no checkpoint is stored"}}
    publisher = Attempt(publish_job(failed_reason="PodFailurePolicy"), (ended(code=64, says=missing),))
    before = left()
    status = compute_status(
        dataclasses.replace(before, publishing=publisher, status={**before.status, "progress": PROGRESS})
    )
    assert status["stopped"] == {"reason": "StopRequested", "afterStep": 39}
    assert message_of(status, "Stopped") == "enough; stopped after step 39; no checkpoint is stored"


@pytest.mark.parametrize(
    ("evaluations", "said"),
    [
        ([(20, "1.4"), (30, "1.6")], "stopped after step 40, evaluation loss 1.4 of the weights of step 20, published"),
        ([(20, "1.4"), (40, "1.4")], "stopped after step 40, evaluation loss 1.4, published"),
        ([], "stopped after step 40, evaluation loss 1.4, published"),
    ],
)
def test_the_step_of_the_weights_is_told_where_it_is_not_the_last(
    evaluations: list[tuple[int, str]], said: str
) -> None:
    measured = {
        "metrics": {"evalLoss": "1.4"},
        "evaluations": [{"step": step, "loss": loss} for step, loss in evaluations],
    }
    publisher = Attempt(publish_job(complete=True), (ended(says={**PUBLISHED, **measured}, started=100, stopped=200),))
    assert said in message_of(compute_status(dataclasses.replace(left(), publishing=publisher)), "Stopped")


def test_checks_that_waited_for_training_wait_no_more() -> None:
    status = status_for(main=None, stop="enough", status={"checks": CHECKS})
    assert status["stopped"] == {"reason": "StopRequested"}
    assert [check["message"] for check in status["checks"]] == [CHECKS[0]["message"], CHECK_NOT_REACHED]
