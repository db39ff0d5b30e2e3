"""The first of several pods publishes alone: from then on another one's end, or its next pod, is nobody's."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tunery_api.runspec import TrainerStatus
from tunery_api.status import Phase
from tunery_operator.metrics import ATTEMPTS, changes
from tunery_operator.observed.attempt import last_end
from tunery_operator.observed.pod import PodView
from tunery_operator.status.compute import compute_status
from tunery_operator.status.deadline import deadline_left
from tunery_operator.status.snapshot import Snapshot
from unit.operator.status.test_nodes import FACTS, PLACELESS, UNREACHABLE, no, nodes, runs

from kit.operator.objects import RESULT
from kit.operator.statuskit import again, at, condition, deleting, ended, pod, snapshot, status_for

UPLOADING = TrainerStatus(progress_percentage=100, phase=Phase.UPLOADING)


def killed(**more: Any) -> PodView:
    return ended(code=137, meta=no(1, **more), stopped=-60)


def publishing(retries: int = 0) -> Snapshot:
    """Return two pods of which the first uploads, one second before the other one is killed."""
    train = nodes(2, retries=retries, failed_indexes_allowed=2)
    return snapshot(*runs(0, 1), train=train, progress=UPLOADING, reporter="a1-0", gpus=1, deadline_seconds=1000)


def told_to_end() -> PodView:
    return runs(1, **deleting(60))[0]


@pytest.mark.parametrize(
    ("others", "pods"),
    [
        ([killed()], "1/2"),
        ([ended(code=143, meta=no(1), stopped=-60)], "1/2"),
        ([ended(code=75, meta=no(1), stopped=-60, says=UNREACHABLE)], "1/2"),
        ([pod(phase="Failed", reason="Evicted", message="local ephemeral storage limit", meta=no(1))], "1/2"),
        ([told_to_end()], "2/2"),
        ([], "1/2"),
        ([killed(), pod(meta=no(1, 2, -20), conditions=[PLACELESS])], "1/2"),
        ([killed(), *runs(1, attempt=2, started=-10, created=-20)], "2/2"),
    ],
)
@pytest.mark.parametrize("retries", [0, 3])
def test_whatever_becomes_of_another_one_it_uploads(others: list[PodView], pods: str, retries: int) -> None:
    seen = again(publishing(retries), *runs(0), *others)
    for each in (seen, dataclasses.replace(seen, progress=None, reporter="")):
        status = compute_status(each)
        assert (status["phase"], status["pods"], status["attempts"]) == ("Uploading", pods, 1)
        assert condition(status, "Running") == ("True", "Uploading")
        assert {"failure", "reason"}.isdisjoint(status)
        assert status["podName"] == "a1-0"
    both = again(seen, ended(meta=no(0), says=RESULT, stopped=0), *others)
    assert compute_status(both)["phase"] == "Uploading"
    # Of two numbers one has failed for good and one has succeeded: that the Job controller calls failed.
    main = publishing(retries).main
    assert main is not None
    for job in (
        dataclasses.replace(main.job, complete=True),
        dataclasses.replace(main.job, failed_reason="FailedIndexes"),
    ):
        over = again(both, *(both.main.pods if both.main else ()), train=job)
        status = compute_status(over)
        assert (status["phase"], status["attempts"], status["adapter"]) == ("Succeeded", 1, RESULT["adapter"])
        assert last_end(status) == "Succeeded"
        counted = changes(over.status, status, FACTS)
        assert [each.labels[2] for each in counted if each.metric is ATTEMPTS] in ([], ["Succeeded"])
        assert status["completionTime"] == at(0)


def test_a_pod_that_starts_while_the_first_publishes_is_of_the_same_attempt() -> None:
    seen = again(publishing(2), *runs(0), killed(), *runs(1, attempt=2, started=-40, created=-50))
    three = [("a1-0", 1), ("a1-1", 1), ("a2-1", 1)]
    assert deadline_left(seen) == 700
    for each in (seen, dataclasses.replace(seen, status={})):
        assert [(item["pod"], item["attempt"]) for item in compute_status(each)["attemptHistory"]] == three
    train = nodes(2, complete=True)
    late = ended(code=143, meta=no(1, 2, -50), started=-40, stopped=-10)
    status = compute_status(again(seen, ended(meta=no(0), says=RESULT, stopped=-20), killed(), late, train=train))
    assert [(item["pod"], item["attempt"]) for item in status["attemptHistory"]] == three
    assert (status["runSeconds"], status["gpuSeconds"]) == (290, 280 + 240 + 30)


@pytest.mark.parametrize("takes", ["drained", "out of time"])
def test_what_came_beside_it_is_of_no_attempt_of_its_own(takes: str) -> None:
    """The first one is taken away, and its Job goes before another first pod is made: one attempt ran."""
    beside = runs(1, attempt=2, started=-40, created=-50)
    seen = again(publishing(), *runs(0), killed(), *beside)
    evicted = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    first = ended(code=143, meta=no(0, **deleting(60)), stopped=-5, conditions=[evicted])
    seen = again(seen, *([first] if takes == "drained" else runs(0)), killed(), *beside)
    status = compute_status(dataclasses.replace(seen, main=None, leftovers=(first, killed(), *beside)))
    assert {item["attempt"] for item in status["attemptHistory"]} == {1}
    assert (status["attempts"], len(status["attemptHistory"])) == (1, 3)
    # Another first pod is made after all: what waits for it is of its attempt.
    anew = again(seen, first, killed(), *beside, *runs(0, attempt=2, started=0, created=-1), progress=None, reporter="")
    history = compute_status(anew)["attemptHistory"]
    assert [(item["pod"], item["attempt"]) for item in history if item["attempt"] == 2] == [("a2-1", 2), ("a2-0", 2)]


@pytest.mark.parametrize(
    ("first", "retries", "phase", "reason"),
    [
        (ended(code=75, meta=no(0), stopped=-5, says=UNREACHABLE), 0, "Failed", "StorageUnavailable"),
        (ended(code=75, meta=no(0), stopped=-5, says=UNREACHABLE), 3, "Starting", "AttemptFailed"),
    ],
)
def test_where_it_ends_badly_all_of_them_begin_anew(first: PodView, retries: int, phase: str, reason: str) -> None:
    seen = again(publishing(retries), first, killed())
    status = compute_status(seen)
    assert (status["phase"], condition(status, "Running")) == (
        phase,
        ("False", reason if phase != "Failed" else "Ended"),
    )
    if phase == "Failed":
        assert status["failure"]["reason"] == reason
        return
    anew = again(seen, first, killed(), *runs(0, 1, attempt=2, started=0, created=-1), progress=None, reporter="")
    status = compute_status(anew)
    assert (status["phase"], status["attempts"]) == ("Starting", 2)


def test_the_attempt_ended_as_the_first_one_did_however_another_had_ended_before() -> None:
    """A drain of its node counts for nothing, and the user is told of the drain."""
    seen = again(publishing(), *runs(0), killed())
    evicted = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    first = ended(code=143, meta=no(0, **deleting(60)), stopped=-5, conditions=[evicted])
    status = compute_status(again(seen, first, killed()))
    assert [(item["pod"], item["reason"]) for item in status["attemptHistory"]] == [
        ("a1-0", "Evicted"),
        ("a1-1", "NotNeeded"),
    ]
    assert (last_end(status), "failure" in status) == ("Evicted", False)
    assert condition(status, "Running") == ("False", "Evicted")


def test_it_publishes_alone_only_while_it_says_so_and_may() -> None:
    """One that trains needs the others; one that is told to end, is held or does not answer publishes nothing."""
    trains = status_for(*runs(0), killed(), train=nodes(2, retries=0), progress=UPLOADING, reporter="a0-0")
    assert (trains["phase"], trains["failure"]["reason"]) == ("Failed", "Killed"), "an earlier pod said that"
    ends = runs(0, **deleting(60))
    status = compute_status(again(publishing(), *ends, killed(), seconds=1))
    assert (status["phase"], condition(status, "Running")) == ("Starting", ("True", "Stopping"))
    held = compute_status(again(publishing(3), *ends, killed(), train=nodes(2, suspend=True), suspend=True))
    assert held["phase"] == "Suspending"
