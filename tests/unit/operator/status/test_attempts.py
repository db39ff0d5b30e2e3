"""The ledger of attempts: counted once, closed once, exact across restarts and new Jobs; and what follows from it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from tunery_api.runspec import TrainerStatus
from tunery_api.status import MAX_ATTEMPTS, LoRAJobStatus
from tunery_operator.client.apply import merge_patch
from tunery_operator.observed.pod import LostPod, PodView
from tunery_operator.status.compute import compute_status
from tunery_operator.status.deadline import deadline_left, requeue_after, run_seconds
from tunery_operator.status.retries import reopened
from tunery_operator.status.snapshot import Snapshot

from kit.operator.objects import RESULT
from kit.operator.statuskit import (
    NODE,
    NOW,
    again,
    at,
    condition,
    deleting,
    ended,
    job,
    pod,
    queued_job,
    running,
    snapshot,
    status_for,
)

GONE: tuple[PodView, ...] = ()


def totals(status: dict[str, Any]) -> tuple[int, int, int]:
    """Return attempts, run seconds and GPU seconds."""
    return status.get("attempts", 0), status.get("runSeconds", 0), status.get("gpuSeconds", 0)


def ends(status: dict[str, Any]) -> list[tuple[str, int]]:
    """Return reason and seconds of each attempt that has ended."""
    return [(item["reason"], item["seconds"]) for item in status.get("attemptHistory", ()) if "endTime" in item]


def test_an_attempt_is_opened_with_what_is_known_of_it() -> None:
    status = status_for(running(started=-300), gpus=1)
    assert status["attemptHistory"] == [{"uid": "p1", "pod": "p1", "node": NODE, "startTime": at(-300)}]
    assert totals(status) == (1, 0, 0)
    assert status["startTime"] == at(-300)
    assert status["podName"] == "p1"


def test_the_newest_pod_is_named_while_it_waits_and_none_before_it_is_there() -> None:
    first = snapshot(pod())
    assert compute_status(first)["podName"] == "p1"
    ends = again(first, ended(code=64), train=job(failed_reason="BackoffLimitExceeded"))
    retried = reopened(compute_status(ends), "1")
    assert retried is not None
    new = again(snapshot(status=retried), train=job(uid="j2"))
    assert "podName" not in compute_status(dataclasses.replace(new, status=retried))
    waits = compute_status(again(new, pod("p2"), status=retried, train=job(uid="j2")))
    assert (waits["podName"], waits["attempts"], len(waits["attemptHistory"])) == ("p2", 1, 1)
    told = compute_status(again(new, status=waits, train=job(uid="j2")))
    assert told["podName"] == "p2", "whose pod is gone is told on"


def test_an_attempt_is_closed_with_its_containers_own_end() -> None:
    seen = again(snapshot(running(started=-300), gpus=2), ended(code=75, started=-300, stopped=-60))
    status = compute_status(seen)
    assert status["attemptHistory"] == [
        {
            "uid": "p1", "pod": "p1", "node": NODE, "startTime": at(-300), "endTime": at(-60),
            "reason": "InternalError", "exitCode": 75, "seconds": 240, "gpuSeconds": 480,
        }
    ]  # fmt: skip
    assert totals(status) == (1, 240, 480)


def test_totals_hold_across_a_restart_and_a_new_job() -> None:
    """An hour, suspended, the operator starts anew, the Job is another one, half an hour: 5,400 s and two attempts."""
    first = snapshot(ended(code=143, started=-9000, stopped=-5400, meta=deleting(0)), gpus=1, suspend=True)
    second = again(first, running("p2", started=-1800), suspend=False, train=job(uid="j2"))
    third = again(second, ended("p2", started=-1800, stopped=0, says=RESULT), train=job(uid="j2", complete=True))
    status = compute_status(third)
    assert totals(status) == (2, 5400, 5400)
    assert ends(status) == [("Suspended", 3600), ("Succeeded", 1800)]
    assert status["startTime"] == at(-9000)
    assert status["completionTime"] == at(0)


def test_computing_again_changes_nothing_and_never_goes_back() -> None:
    steps: list[Snapshot] = [snapshot(running(), gpus=1)]
    steps.append(again(steps[-1], ended(code=143), seconds=5))
    steps.append(again(steps[-1], seconds=5))
    steps.append(again(steps[-1], running("p2", started=20), seconds=30))
    steps.append(again(steps[-1], *GONE, seconds=30))
    steps.append(again(steps[-1], running("p3", started=70), ended("p1", code=143), seconds=30))
    before = (0, 0, 0)
    for seen in steps:
        status = compute_status(seen)
        assert merge_patch(status, compute_status(dataclasses.replace(seen, status=status))) == {}
        assert totals(status) >= before
        before = totals(status)
    assert before[0] == 3


REPORT = TrainerStatus(last_updated_time=at(40), step=7)
UNSEEN: dict[str, tuple[dict[str, Any], tuple[str, int]]] = {
    "seen as it went": (
        {"lost_pods": (LostPod("p1", "p1", at(-550), 90.0, NOW, NODE, "PreemptionByScheduler"),)},
        ("Preempted", 90),
    ),
    "deleted by somebody, seen": ({"lost_pods": (LostPod("p1", "p1", at(-550), 90.0, NOW, NODE),)}, ("PodDeleted", 90)),
    "deleted before its Job was resumed": (
        {
            "train": job(started_at=NOW + timedelta(seconds=95)),
            "lost_pods": (LostPod("p1", "p1", at(-550), 90.0, NOW, NODE),),
        },
        ("Suspended", 90),
    ),
    "preempted and admitted again, unseen": (
        {
            "train": job(started_at=NOW + timedelta(seconds=95), queue="team-a"),
            "lost_pods": (LostPod("p1", "p1", at(-550), 90.0, NOW, NODE),),
        },
        ("Preempted", 90),
    ),
    "its last report": ({"progress": REPORT}, ("Vanished", 40)),
    "a report of the attempt before does not count": (
        {"progress": TrainerStatus(last_updated_time=at(-100))},
        ("Vanished", 600),
    ),
    "a report from the future does not count": (
        {"progress": TrainerStatus(last_updated_time=at(10**8))},
        ("Vanished", 600),
    ),
    "nobody watched": ({"watched_before": NOW + timedelta(seconds=90)}, ("Vanished", 90)),
    "nobody has watched since it began": ({"watched_before": NOW - timedelta(seconds=2)}, ("Vanished", 0)),
    "watched until a time to come": ({"watched_before": NOW + timedelta(days=9)}, ("Vanished", 600)),
    "the start of the next attempt": ({"pods": (running("p2", started=200),)}, ("Vanished", 200)),
    "suspended": ({"suspend": True, "main": None, "progress": REPORT}, ("Suspended", 40)),
    "the queue took its quota": (
        {"train": queued_job(suspend=True), "progress": REPORT},
        ("Preempted", 40),
    ),
}


@pytest.mark.parametrize(("seen", "end"), UNSEEN.values(), ids=UNSEEN.keys())
def test_a_pod_that_is_gone_is_closed_by_the_best_evidence(seen: dict[str, Any], end: tuple[str, int]) -> None:
    changes = dict(seen)
    pods = changes.pop("pods", ())
    status = compute_status(again(snapshot(running(started=0)), *pods, seconds=600, **changes))
    assert ends(status) == [end]


HELD: dict[str, Any] = {"pods": (running(),), "suspend": True, "train": job(suspend=True, suspended_by_us=True)}
ON: dict[str, Any] = {"pods": (running(meta=deleting(60)),), "suspend": False, "train": job()}
LEFT: dict[str, Any] = {"pods": (), "main": None, "leftovers": (running(meta=deleting(60)),)}
KILLED = ended(code=143, meta=deleting(60))
LOST = LostPod("p1", "p1", at(-300), 240.0, NOW, NODE)
STOPS: dict[str, tuple[tuple[dict[str, Any], ...], str]] = {
    "it is there": ((HELD, ON, ON | {"pods": (KILLED,)}), "Suspended"),
    "it was seen to go": ((HELD, ON, ON | {"pods": (), "lost_pods": (LOST,)}), "Suspended"),
    "it is gone": ((HELD, ON, ON | {"pods": ()}), "Suspended"),
    "its Job is gone": (
        (LEFT | {"suspend": True}, LEFT | {"suspend": False}, LEFT | {"leftovers": (KILLED,)}),
        "Suspended",
    ),
    "it fails before": ((HELD, ON, ON | {"pods": (ended(code=1),)}), "InternalError"),
    "its queue held it": (
        ({"pods": ON["pods"], "train": queued_job(suspend=True)}, ON, ON | {"pods": (KILLED,)}),
        "Preempted",
    ),
}


def after(seen: Snapshot, *changes: dict[str, Any]) -> Snapshot:
    """Return the last of several snapshots that follow each other; `pods` are those of the Job."""
    for each in changes:
        seen = again(seen, *each["pods"], **{name: value for name, value in each.items() if name != "pods"})
    return seen


@pytest.mark.parametrize(("changes", "reason"), STOPS.values(), ids=STOPS.keys())
def test_a_stop_that_is_taken_back_is_still_why_the_pod_ended(changes: tuple[dict[str, Any], ...], reason: str) -> None:
    seen = after(snapshot(running()), *changes)
    for status in (compute_status(seen), compute_status(after(seen, changes[-1]))):
        assert [item["reason"] for item in status["attemptHistory"]] == [reason]
        assert "counts as a retry" not in str(status["conditions"])


def test_a_pod_that_a_stop_did_not_reach_ends_for_what_ends_it_later() -> None:
    spared = after(snapshot(running()), HELD, ON | {"pods": (running(),)})
    status = compute_status(spared)
    assert "reason" not in status["attemptHistory"][0]
    assert [reason for reason, _ in ends(compute_status(again(spared, KILLED)))] == ["PodDeleted"]


def test_a_pod_that_is_there_is_charged_whoever_watched_before() -> None:
    """Its container tells no end, as after a lost node: what the Lease said of an earlier operator is no evidence."""
    dead = pod("p1", {"running": {"startedAt": at(-300)}}, phase="Failed")
    assert [seconds for _, seconds in ends(status_for(dead, watched_before=NOW - timedelta(days=1)))] == [300]


def test_a_node_whose_clock_is_years_behind_charges_what_ran() -> None:
    made = {"creationTimestamp": at(-100)}
    behind = -7 * 365 * 86_400.0
    runs = status_for(running(started=behind, meta=made), gpus=1, deadline_seconds=3600)
    assert (runs["phase"], runs["startTime"]) == ("Starting", at(-100))
    over = status_for(ended(code=75, started=behind, stopped=behind + 40, meta=made), gpus=1, deadline_seconds=3600)
    assert ends(over) == [("InternalError", 40)]
    assert totals(over) == (1, 40, 40)


def test_a_node_whose_clock_is_years_ahead_charges_what_was_seen() -> None:
    made, ahead = {"creationTimestamp": at(-100)}, 10 * 365 * 86_400.0
    first = snapshot(running(started=ahead, meta=made, seen=NOW), gpus=1, deadline_seconds=3600)
    opened = compute_status(first)
    assert opened["startTime"] == at(0)
    later = NOW + timedelta(seconds=30)
    assert run_seconds(opened, [running(started=ahead, meta=made, seen=later)], later) == 30
    over = status_for(ended(code=75, started=ahead, stopped=ahead + 3600, meta=made, seen=NOW), gpus=1, status=opened)
    assert totals(over) == (1, 0, 0)


def test_the_end_of_a_pod_that_is_gone_is_told_of_its_job() -> None:
    status = status_for(running(), train=job())
    gone = status_for(*GONE, status=status, train=job(failed_reason="BackoffLimitExceeded"))
    assert gone["failure"]["reason"] == "RetriesExhausted"
    assert "the last attempt's end: Vanished" in gone["failure"]["message"]


def test_a_pod_that_came_and_went_between_two_looks_is_counted() -> None:
    lost = LostPod("p1", "p1", at(-550), 90.0, NOW, NODE)
    status = status_for(lost_pods=(lost,), gpus=1)
    assert totals(status) == (1, 90, 90)


def test_a_truncated_attempt_is_never_counted_again() -> None:
    pods = [ended(f"p{i:02}"[-3:], 75, started=-9000 + 100 * i, stopped=-8950 + 100 * i) for i in range(30)]
    status = status_for(*pods)
    assert len(status["attemptHistory"]) == MAX_ATTEMPTS
    assert status["attemptHistory"][-1]["uid"] == pods[-1].uid
    assert totals(status) == (30, 1500, 0)
    later = status_for(*pods, running("p99", started=-10), status=status)
    assert totals(later) == (31, 1500, 0)
    LoRAJobStatus.model_validate(later)


def test_what_runs_as_the_object_ends_is_closed_with_its_reason() -> None:
    status = status_for(running(started=-300), deadline_seconds=200, gpus=1)
    assert ends(status) == [("DeadlineExceeded", 300)]
    assert totals(status) == (1, 300, 300)


# The deadline


def test_only_seconds_in_which_a_pod_ran_count() -> None:
    waits = snapshot(now=NOW, deadline_seconds=60)
    assert deadline_left(waits) == 60
    assert compute_status(waits)["phase"] == "Starting"
    runs = snapshot(running(started=-50), status={"runSeconds": 5}, deadline_seconds=60)
    assert deadline_left(runs) == 5
    assert requeue_after(runs, compute_status(runs)) == 5


def test_beyond_the_deadline_the_object_fails_and_its_hint_mends_it() -> None:
    seen = snapshot(running(started=-70), deadline_seconds=60)
    status = compute_status(seen)
    assert status["failure"]["reason"] == "DeadlineExceeded"
    assert "ran for 70 s" in status["failure"]["message"]
    assert "Raise activeDeadlineSeconds above 70" in status["failure"]["hint"]
    assert "kubectl annotate lorajob x -n ns --overwrite tunery.dev/retry=" in status["failure"]["hint"]
    fresh = reopened(status, "1")
    assert fresh is not None
    kept = dataclasses.replace(seen, status=fresh, main=None, retry="1")
    assert compute_status(kept)["phase"] == "Failed"
    raised = compute_status(dataclasses.replace(kept, deadline_seconds=600))
    assert raised["phase"] == "Pending"
    assert totals(raised) == totals(status)


def test_a_pod_that_stores_a_checkpoint_as_it_ends_is_waited_for_until_its_grace_is_over() -> None:
    late = snapshot(running(started=-170), deadline_seconds=60, status=status_for(running(started=-170)))
    saves = dataclasses.replace(late, main=None, leftovers=(running(started=-170, meta=deleting(100)),))
    status = compute_status(saves)
    assert (status["phase"], condition(status, "Running")) == ("Stopping", ("True", "OutOfTime"))
    assert requeue_after(saves, status) == 116
    for leftover in (
        running(started=-170, meta=deleting(-20)),
        running(started=-170, meta=deleting(100), disruption="DeletionByTaintManager"),
        running(started=-170),
    ):
        over = compute_status(dataclasses.replace(saves, leftovers=(leftover,)))
        assert over["failure"]["reason"] == "DeadlineExceeded", leftover


def test_a_pod_that_is_gone_counts_before_its_end_is_written_down() -> None:
    trained = status_for(running(started=-70))
    lost = LostPod("p1", "p1", at(-70), 70.0, NOW - timedelta(seconds=70), NODE)
    gone = snapshot(main=None, status=trained, deadline_seconds=60, lost_pods=(lost,))
    assert deadline_left(gone) == -10
    written = again(gone, main=None)
    assert written.status["runSeconds"] == 70
    assert deadline_left(written) == -10


def test_a_pod_on_a_lost_node_does_not_use_up_the_deadline() -> None:
    assert run_seconds({}, [running(started=-300, meta=deleting(-200))], NOW) == 100


def test_a_job_that_is_complete_has_made_its_deadline() -> None:
    done = ended(started=-300, says=RESULT)
    assert status_for(done, train=job(complete=True), deadline_seconds=10)["phase"] == "Succeeded"


# Times


def test_the_end_is_when_it_ended_and_not_when_somebody_looked() -> None:
    late = {"train": job(complete=True, ended_at=NOW)}
    assert status_for(ended(says=RESULT, stopped=-3600, started=-7200), **late)["completionTime"] == at(-3600)
    failed = {"train": job(failed_reason="BackoffLimitExceeded", ended_at=NOW)}
    assert status_for(ended(code=1, stopped=-3600, started=-7200), **failed)["completionTime"] == at(-3600)


# Another try


def test_a_failed_object_is_reopened_once_for_each_new_value() -> None:
    status = status_for(ended(code=64), train=job(failed_reason="PodFailurePolicy"), retry="1")
    assert status["observedRetry"] == "1"
    assert reopened(status, None) is None
    assert reopened(status, "1") is None
    fresh = reopened(status, "2")
    assert fresh is not None
    assert fresh["phase"] == "Pending"
    assert "failure" not in fresh
    assert "completionTime" not in fresh
    assert reopened(fresh, "3") is None
    later = compute_status(snapshot(main=None, status=fresh, retry="2"))
    assert condition(later, "Failed") is None
    assert condition(later, "Succeeded") == ("Unknown", "InProgress")
    assert totals(later) == totals(status)


@pytest.mark.parametrize(("values", "kept"), [((None, None), False), (("2.0", None), True)], ids=["none", "one"])
def test_a_sweep_that_measured_nothing_forgets_what_its_trials_read(values: Sequence[str | None], kept: bool) -> None:
    """What was mended may be the data; where a loss is known, others would not compare with it."""
    rows = [{"number": number, "value": value} if value else {"number": number} for number, value in enumerate(values)]
    failed = {"phase": "Failed", "conditions": [], "trials": rows, "trialInputs": {"datasetSha256": "1" * 64}}
    fresh = reopened(failed, "1")
    assert fresh is not None
    assert ("trialInputs" in fresh, fresh["forgiven"]) == (kept, 2)


def test_a_long_annotation_is_remembered_by_its_digest() -> None:
    status = status_for(ended(code=64), train=job(failed_reason="PodFailurePolicy"), retry="x" * 5000)
    assert reopened(status, "x" * 5000) is None
    assert reopened(status, "x" * 5001) is not None
    LoRAJobStatus.model_validate(status)


@pytest.mark.parametrize("seed", range(40))
def test_totals_are_exact_whenever_one_looks(seed: int) -> None:
    """Up to 40 attempts, looked at in random moments, over Jobs that come and go, with pods that stay or go."""
    chance = random.Random(seed)
    runs, start = [], -50_000
    for _ in range(chance.randint(1, 40)):
        stop = start + chance.randint(1, 900)
        runs.append((start, stop))
        start = stop + chance.randint(1, 300)
    removed: set[int] = set()
    status: dict[str, Any] = {}
    before = (0, 0, 0)
    for moment in sorted(chance.sample(range(-50_000, start + 1000), 60)):
        begun = [number for number, (started, _) in enumerate(runs) if started <= moment]
        pods = [_pod_at(number, runs[number], moment) for number in begun if number not in removed]
        seen = snapshot(*pods, status=status, gpus=2, now=NOW + timedelta(seconds=moment), train=job(uid=f"j{moment}"))
        status = compute_status(seen)
        assert totals(status) >= before
        before = totals(status)
        # Only a pod that was seen to end may go: of the others it is known only about when they ended.
        ended_by_now = [number for number in begun if runs[number][1] <= moment]
        removed |= {number for number in ended_by_now if chance.random() < 0.3}
    seconds = sum(stop - started for started, stop in runs)
    final = snapshot(
        *[_pod_at(n, run, start + 2000) for n, run in enumerate(runs) if n not in removed], status=status, gpus=2
    )
    assert totals(compute_status(final)) == (len(runs), seconds, 2 * seconds)


def _pod_at(number: int, run: tuple[int, int], moment: int) -> PodView:
    started, stopped = run
    name = f"n{number:02}"
    if stopped <= moment:
        return dataclasses.replace(ended("p1", 75, started=started, stopped=stopped), uid=name, name=name)
    return dataclasses.replace(running("p1", started=started), uid=name, name=name)
