"""Pods that train one adapter together: what the status says of them, and whose end it is that counts."""

from __future__ import annotations

import dataclasses
import random
from datetime import timedelta
from typing import Any

import pytest

from tunery_api.names import nodes_service
from tunery_api.runspec import TrainerStatus
from tunery_api.status import MAX_ATTEMPTS, LoRAJobStatus, Phase
from tunery_operator.client.apply import merge_patch
from tunery_operator.controllers.warnings import find_unstarted
from tunery_operator.metrics import ATTEMPTS, GPU_SECONDS, Facts, changes
from tunery_operator.observed.attempt import Attempt, last_end
from tunery_operator.observed.event import ClusterWarning
from tunery_operator.observed.job import JobView
from tunery_operator.observed.pod import LostPod, PodView
from tunery_operator.status.compute import compute_status
from tunery_operator.status.deadline import deadline_left, requeue_after
from tunery_operator.status.events import transitions
from tunery_operator.status.retries import failed_attempts, same_end_twice
from tunery_operator.status.snapshot import Snapshot

from kit.operator.objects import RESULT
from kit.operator.statuskit import (
    NODE,
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

INDEX = "batch.kubernetes.io/job-completion-index"
FACTS = Facts("LoRAJob", "ns", at(-900), NOW, "nvidia.com/gpu")
NO_NODE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
PLACELESS = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": NO_NODE}
OUT_OF_MEMORY = {"failure": {"reason": "GPUOutOfMemory", "message": "12 GiB were asked for"}}
UNREACHABLE = {"failure": {"reason": "StorageUnavailable", "message": "nobody answers"}}
ECHO = {"failure": {"reason": "PeerLost", "message": "node 2 is gone"}}


def nodes(count: int = 4, **more: Any) -> JobView:
    return dataclasses.replace(more.pop("of", job()), nodes=count, **more)


def no(index: int, attempt: int = 1, created: float = -400, **meta: Any) -> dict[str, Any]:
    """Return what the metadata of a pod says that has a number."""
    uid = f"a{attempt}-{index}"
    return {"name": uid, "uid": uid, "annotations": {INDEX: str(index)}, "creationTimestamp": at(created), **meta}


def runs(*indexes: int, attempt: int = 1, started: float = -300, created: float = -400, **meta: Any) -> list[PodView]:
    return [running(started=started, meta=no(index, attempt, created, **meta)) for index in indexes]


def test_all_of_them_train() -> None:
    status = status_for(*runs(3, 1, 2, 0), train=nodes(), progress=TRAINING, reporter="a1-0", gpus=8)
    assert (status["phase"], status["pods"], status["podName"], status["attempts"]) == ("Training", "4/4", "a1-0", 1)
    assert message_of(status, "Running").startswith(f"pod a1-0 on node {NODE} (the first of 4 pods)")
    assert [(item["pod"], item["index"], item["attempt"]) for item in status["attemptHistory"]] == [
        (f"a1-{index}", index, 1) for index in range(4)
    ]
    LoRAJobStatus.model_validate(status)


def test_half_of_them_wait_for_a_node() -> None:
    """What holds GPUs and does not train is said, with what keeps it."""
    waiting = [pod(meta=no(index), conditions=[PLACELESS]) for index in (1, 3)]
    seen = snapshot(*runs(0, 2), *waiting, train=nodes())
    status = compute_status(seen)
    assert (status["phase"], status["pods"], status["reason"]) == ("Starting", "2/4", "Unschedulable")
    assert condition(status, "Running") == ("False", "Unschedulable")
    assert message_of(status, "Running") == f"2 of 4 pods run; no node fits: {NO_NODE}"
    assert status["failure"]["message"] == message_of(status, "Running")
    later = again(seen, *runs(0, 1, 2, 3), seconds=30)
    assert "failure" not in compute_status(later)
    assert compute_status(later)["pods"] == "4/4"


def test_some_are_not_made_yet_or_are_refused() -> None:
    status = status_for(*runs(0, 1), train=nodes())
    assert (status["phase"], condition(status, "Running")) == ("Starting", ("False", "Starting"))
    assert "reason" not in status
    assert message_of(status, "Running") == "2 of 4 pods run"
    quota = ClusterWarning("FailedCreate", "exceeded quota: gpus", at(-5), "Job")
    seen = snapshot(main=Attempt(nodes(), tuple(runs(0, 1)), (quota,)))
    status = compute_status(seen)
    assert status["failure"]["reason"] == "QuotaExceeded"
    assert message_of(status, "Running").startswith("2 of 4 pods run; Job x-train cannot create its pod")
    assert requeue_after(seen, status) is not None
    over = ClusterWarning("FailedCreate", "exceeded quota: gpus", at(-401), "Job")
    assert "failure" not in compute_status(snapshot(main=Attempt(nodes(), tuple(runs(0, 1)), (over,))))


def test_each_is_told_of_what_was_said_of_it_and_of_no_other() -> None:
    """All of them have a node and no container; the first brings its image, and the last one's volume is not there."""
    waiting = [pod(meta=no(index, created=-60)) for index in range(3)]
    refused = ClusterWarning("FailedMount", "no such volume", at(-5), "Pod", "a1-2")
    quota = ClusterWarning("FailedCreate", "exceeded quota: gpus", at(-5), "Job", "j")
    assert [each.uid for each in find_unstarted(Attempt(nodes(), tuple(waiting)), NOW)] == ["a1-0", "a1-1", "a1-2", "j"]
    status = compute_status(snapshot(main=Attempt(nodes(), tuple(waiting), (quota, refused))))
    assert status["failure"]["reason"] == "MountFailed"
    assert "pod a1-2 on node" in status["failure"]["message"]
    status = compute_status(snapshot(main=Attempt(nodes(), tuple(waiting), (quota,))))
    assert status["failure"]["reason"] == "QuotaExceeded"


def test_the_cause_is_the_pods_own_that_ended_first_and_not_its_echo() -> None:
    pods = [
        ended(code=76, meta=no(0), stopped=-58, says=ECHO),
        ended(code=76, meta=no(1), stopped=-57),
        ended(code=64, meta=no(2), stopped=-60, says=OUT_OF_MEMORY),
        ended(code=1, meta=no(3), stopped=-59),
    ]
    status = status_for(*pods, train=nodes(failed_reason="PodFailurePolicy"), gpus=8)
    failure = status["failure"]
    assert (failure["reason"], failure["message"], failure["exitCode"]) == (
        "GPUOutOfMemory",
        "12 GiB were asked for (pod a1-2)",
        64,
    )
    assert status["completionTime"] == at(-60)
    assert [(item["index"], item["reason"]) for item in status["attemptHistory"]] == [
        (0, "PeerLost"),
        (1, "PeerLost"),
        (2, "GPUOutOfMemory"),
        (3, "InternalError"),
    ]
    assert "pods" not in status


def test_where_all_are_echoes_the_one_that_counts_is_told() -> None:
    """A pod is gone with its node: the others say so, and the first one's end, with 75, is what is counted."""
    says = {"failure": {"reason": "PeerLost", "message": "node 1 did not come within 15 minutes"}}
    pods = [ended(code=75, meta=no(0), stopped=-50, says=says), ended(code=76, meta=no(1), stopped=-60)]
    status = status_for(*pods, train=nodes(2, failed_reason="BackoffLimitExceeded"))
    assert status["failure"]["reason"] == "PeerLost"
    assert status["failure"]["message"] == "node 1 did not come within 15 minutes (pod a1-0)"


def test_an_attempt_that_failed_is_shown_until_the_next_one_begins() -> None:
    fault = {"failure": {"reason": "GPUFault", "message": "ECC"}}
    failed = [ended(code=76, meta=no(0), stopped=-30), ended(code=75, meta=no(1), stopped=-31, says=fault)]
    seen = again(snapshot(*runs(0, 1), train=nodes(2)), *failed)
    status = compute_status(seen)
    assert condition(status, "Running") == ("False", "AttemptFailed")
    assert message_of(status, "Running") == "attempt 1, pod a1-1, failed: GPUFault: ECC"
    counted = dataclasses.replace(seen, main=Attempt(nodes(2, retries=3), tuple(failed)))
    words = "attempt 1, pod a1-1, failed (1 of 3 retries used): GPUFault: ECC"
    assert message_of(compute_status(counted), "Running") == words
    half = again(seen, *failed, *runs(0, attempt=2, started=0, created=-5), seconds=5)
    assert condition(compute_status(half), "Running") == ("False", "Starting")
    assert message_of(compute_status(half), "Running") == "1 of 2 pods run"
    both = again(half, *failed, *runs(0, 1, attempt=2, started=0, created=-5), seconds=5)
    status = compute_status(both)
    assert (status["attempts"], status["podName"], status["pods"]) == (2, "a2-0", "2/2")
    assert condition(status, "Running") == ("True", "PodStarted")


EVICTION = {"code": 143, "disruption": "EvictionByEvictionAPI"}


@pytest.mark.parametrize(
    ("end", "note"),
    [
        (EVICTION, ("Evicted", "attempt 1, pod a1-0, was ended: Evicted; the next attempt continues", False)),
        (
            {"code": 75, "says": UNREACHABLE},
            (
                "AttemptFailed",
                "attempt 1, pod a1-0, failed (1 of 3 retries used): StorageUnavailable: nobody answers",
                True,
            ),
        ),
    ],
)
def test_how_an_attempt_ended_is_told_once_though_another_pod_still_waits(
    end: Any, note: tuple[str, str, bool]
) -> None:
    """The second has no node all along: what keeps it is told before and after, and stands in the condition."""
    train, waits = nodes(2, retries=3), pod(meta=no(1), conditions=[PLACELESS])
    alone = snapshot(*runs(0), waits, train=train)
    over = again(alone, ended(meta=no(0), stopped=-30, **end), waits, train=train)
    told_ = [(each.reason, each.note, each.warning) for each in transitions(over.status, compute_status(over))]
    assert told_ == [note]
    next_ = pod(meta=no(0, attempt=2, created=-20))
    later = again(over, ended(meta=no(0), stopped=-30, **end), waits, next_, train=train)
    assert transitions(later.status, compute_status(later)) == ()


def test_what_was_told_of_an_attempt_is_not_told_again_once_nothing_keeps_the_next_one() -> None:
    train, lost = nodes(2, retries=3), (gone(0, 1, -300, 100, disruption="EvictionByEvictionAPI"),)
    alone = snapshot(*runs(0), pod(meta=no(1), conditions=[PLACELESS]), train=train)
    over = again(alone, pod(meta=no(1), conditions=[PLACELESS]), train=train, lost_pods=lost)
    assert [each.reason for each in transitions(over.status, compute_status(over))] == ["Evicted"]
    placed = again(over, pod(meta=no(1)), pod(meta=no(0, attempt=2, created=-20)), train=train, seconds=3600)
    status = compute_status(placed)
    assert condition(status, "Running") == ("False", "Evicted")
    assert transitions(placed.status, status) == ()


def test_a_pod_that_ends_with_another_is_no_second_stop() -> None:
    """Pod 1 was deleted without a retry left: the Job controller ends pod 0, which nobody else told to."""
    train = nodes(2, retries=0)
    seen = snapshot(*runs(0, 1), train=train)
    first = again(seen, *runs(0), *runs(1, deletionTimestamp=at(60)), train=train)
    assert [each.reason for each in transitions(first.status, compute_status(first))] == ["Stopping"]
    gone_ = again(first, *runs(0), train=train, lost_pods=(gone(1, 1, -300, 100),))
    both = again(gone_, *runs(0, deletionTimestamp=at(60)), train=train)
    assert [each.reason for each in transitions(both.status, compute_status(both))] == []
    anew = again(both, *runs(0, 1, attempt=2, started=0, created=-5), seconds=5, train=train)
    stops = again(anew, *runs(0, 1, attempt=2, started=0, created=-5, deletionTimestamp=at(60)), train=train)
    assert [each.reason for each in transitions(stops.status, compute_status(stops))] == ["Stopping"]


def test_what_failed_an_attempt_ago_is_not_taken_for_the_newest() -> None:
    """Node 1 was lost in the second attempt, and nothing is left of its pod but what the first one said."""
    old = [ended(code=76, meta=no(0), stopped=-200), ended(code=75, meta=no(1), stopped=-201, says=OUT_OF_MEMORY)]
    new = ended(code=76, meta=no(0, 2, created=-190), started=-180, stopped=-30, says=ECHO)
    attempt = Attempt(nodes(2, failed_reason="BackoffLimitExceeded"), (*old, new))
    assert compute_status(snapshot(main=attempt))["failure"]["reason"] == "PeerLost"


def gone(index: int, attempt: int, started: float, seconds: float, **more: Any) -> LostPod:
    uid = f"a{attempt}-{index}"
    return LostPod(uid, uid, at(started - 10), seconds, NOW + timedelta(seconds=started), NODE, index=index, **more)


def deleted_twice(code: int | None = None) -> Snapshot:
    """Return two attempts of which pod 1 was deleted: pod 0 of the first ended by itself, the other with its Job."""
    train = nodes(2, retries=1)
    seen = snapshot(*runs(0, 1), train=train)
    echo = ended(code=76, meta=no(0), stopped=-200)
    seen = again(seen, echo, train=train, lost_pods=(gone(1, 1, -300, 98),))
    both = runs(0, 1, attempt=2, started=-180, created=-190)
    seen = again(seen, echo, *both, train=train)
    lost = (gone(1, 1, -300, 98), gone(0, 2, -180, 151, exit_code=code), gone(1, 2, -180, 150))
    return again(seen, echo, train=dataclasses.replace(train, failed_reason="FailedIndexes"), lost_pods=lost)


@pytest.mark.parametrize("code", [None, 76])
def test_the_pod_that_was_deleted_is_named_and_not_what_is_left_of_the_attempt_before(code: int | None) -> None:
    status = compute_status(deleted_twice(code))
    told_ = [(item["pod"], item["reason"]) for item in status["attemptHistory"]]
    assert told_ == [("a1-0", "PeerLost"), ("a1-1", "PodDeleted"), ("a2-0", "PeerLost"), ("a2-1", "PodDeleted")]
    failure = status["failure"]
    assert failure["reason"] == "RetriesExhausted"
    words = "pod a2-1 was deleted by another client (attempt 2), and no retry is left"
    assert failure["message"] == words
    assert "counts as a retry" in failure["hint"]
    assert "log" not in failure["hint"]
    assert "exitCode" not in failure
    assert status["completionTime"] == at(-30)


@pytest.mark.parametrize(
    ("which", "code", "says", "reasons", "words"),
    [
        (0, 76, ECHO, ["PodDeleted", "PeerLost"], "pod a1-0 was deleted by another client, and no retry"),
        (1, 76, ECHO, ["PeerLost", "PodDeleted"], "pod a1-1 was deleted by another client, and no retry"),
        (0, 75, ECHO, ["PeerLost", "PeerLost"], "node 2 is gone (pod a1-1)"),
        (0, 75, UNREACHABLE, ["PeerLost", "StorageUnavailable"], "nobody answers (pod a1-1)"),
        (0, 137, "", ["PeerLost", "Killed"], "pod a1-1 was killed (exit 137)"),
    ],
)
def test_a_deleted_pod_that_ends_after_its_own_echo_is_the_cause(
    which: int, code: int, says: Any, reasons: list[str], words: str
) -> None:
    """Pod 0 stores its checkpoint before it ends, and is gone then; the other has ended at once, with 76.

    Where that one failed by itself, the Job controller has deleted pod 0.
    """
    other, train = 1 - which, nodes(2, retries=0)
    seen = snapshot(*runs(0, 1), train=train)
    first = ended(code=code, meta=no(other), stopped=-9, says=says)
    ends = runs(which, **deleting(100))
    seen = again(seen, *sorted((first, *ends), key=lambda pod: pod.index or 0))
    lost = (gone(which, 1, -300, 296),)
    steps = [seen, again(seen, first, lost_pods=lost)]
    steps.append(again(steps[-1], first, train=dataclasses.replace(train, failed_reason="FailedIndexes")))
    at_once = again(seen, first, train=dataclasses.replace(train, failed_reason="FailedIndexes"), lost_pods=lost)
    down = dataclasses.replace(at_once, status=compute_status(snapshot(*runs(0, 1), train=train)))
    for last in (steps[-1], at_once, down):
        status = compute_status(last)
        assert [item["reason"] for item in status["attemptHistory"]] == reasons
        assert status["failure"]["message"].startswith(words)
        counted = changes(seen.status, status, FACTS)
        cause = next(
            reason for reason in [*reasons, "PeerLost"] if reason != "PeerLost" or set(reasons) == {"PeerLost"}
        )
        assert [each.labels[2] for each in counted if each.metric is ATTEMPTS] == [cause]


def test_one_deletion_without_a_retry_names_the_pod_though_none_is_left() -> None:
    seen = snapshot(*runs(0, 1), train=nodes(2, retries=0))
    lost = (gone(0, 1, -300, 101), gone(1, 1, -300, 100))
    status = compute_status(again(seen, train=nodes(2, failed_reason="FailedIndexes"), lost_pods=lost))
    words = "pod a1-1 was deleted by another client, and no retry is left"
    assert status["failure"]["message"] == words
    alone = snapshot(running("p1"), train=job())
    once = LostPod("p1", "p1", at(-310), 100.0, NOW - timedelta(seconds=300), NODE)
    status = compute_status(again(alone, train=job(failed_reason="BackoffLimitExceeded"), lost_pods=(once,)))
    assert status["failure"]["message"] == words.replace("a1-1", "p1")


@pytest.mark.parametrize(
    ("failed_indexes", "ends"),
    [("1", "; no retry is left"), ("", ", which counts as a retry; the next attempt continues")],
)
def test_while_the_job_controller_ends_the_others_the_one_that_was_deleted_is_named(
    failed_indexes: str, ends: str
) -> None:
    train = nodes(2, retries=0, failed_indexes=failed_indexes)
    seen = again(snapshot(*runs(0, 1), train=nodes(2, retries=0)), *runs(0), lost_pods=(gone(1, 1, -300, 297),))
    told_too = ended(code=143, meta=no(0, **deleting(3)), stopped=-1)
    over = again(seen, told_too, train=train)
    status = compute_status(over)
    assert [item["reason"] for item in status["attemptHistory"]] == ["PeerLost", "PodDeleted"]
    words = f"attempt 1, pod a1-1, was ended: PodDeleted{ends}"
    assert message_of(status, "Running") == words
    assert [event.note for event in transitions(over.status, status) if event.reason == "PodDeleted"] == [words]


def test_a_pod_that_the_job_controller_deletes_after_a_failure_is_not_the_cause() -> None:
    """Node 0 has failed by itself, and the Job controller has taken the other away: nobody deleted it."""
    seen = snapshot(*runs(0, 1), train=nodes(2))
    own = ended(code=75, meta=no(0), stopped=-200, says=UNREACHABLE)
    train = nodes(2, failed_reason="FailedIndexes")
    status = compute_status(again(seen, own, train=train, lost_pods=(gone(1, 1, -300, 101),)))
    assert status["failure"]["message"] == "nobody answers (pod a1-0)"
    assert [item["reason"] for item in status["attemptHistory"]] == ["StorageUnavailable", "PeerLost"]


def test_a_deleted_pod_is_told_as_that_while_the_next_ones_are_made() -> None:
    seen = snapshot(*runs(0, 1), train=nodes(2))
    echo = ended(code=76, meta=no(0), stopped=-200)
    status = compute_status(again(seen, echo, lost_pods=(gone(1, 1, -300, 98),)))
    assert condition(status, "Running") == ("False", "PodDeleted")
    assert (
        message_of(status, "Running")
        == "attempt 1, pod a1-1, was ended: PodDeleted, which counts as a retry; the next attempt continues"
    )


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_a_drain_that_takes_what_is_left_of_an_echo_is_told_as_of_the_pod_it_began_with(
    there: bool, closed: bool
) -> None:
    """Pod 0 is evicted, and the other ends with 76; once it has, the budget lets kubectl drain take that away, too."""
    evicted = "EvictionByEvictionAPI"
    seen = snapshot(*runs(0, 1), train=nodes(2))
    if closed:
        seen = again(seen, *runs(0, **deleting(100)), ended(code=76, meta=no(1), stopped=-9))
    left = [ended(code=76, meta=no(1), stopped=-9, disruption=evicted)] if there else []
    lost = [gone(0, 1, -300, 296, disruption=evicted)]
    lost += [] if there else [gone(1, 1, -300, 291, disruption=evicted, exit_code=76)]
    status = compute_status(again(seen, *left, lost_pods=tuple(lost)))
    assert [item["reason"] for item in status["attemptHistory"]] == ["Evicted", "PeerLost"]
    assert condition(status, "Running") == ("False", "Evicted")
    assert message_of(status, "Running") == "attempt 1, pod a1-0, was ended: Evicted; the next attempt continues"


STARTS = TrainerStatus(phase=Phase.STARTING)


@pytest.mark.parametrize(
    "said", [{}, {"progress": STARTS, "reporter": "a1-0"}, {"progress": TRAINING, "reporter": "a0-0"}]
)
def test_who_waited_for_another_one_is_of_the_attempt_that_begins_with_its_successor(said: dict[str, Any]) -> None:
    """Pod 1 is evicted before they have met; later somebody deletes the first one, and nothing else is its end's cause.

    One that has trained ends for it, if late: it stays in its own.
    """
    taken = ended(code=143, meta=no(1, **deleting(60)), stopped=-200, disruption="EvictionByEvictionAPI")
    anew = runs(1, attempt=2, started=-100, created=-190)
    seen = snapshot(*runs(0, 1), train=nodes(2, retries=0), **said)
    begun = again(again(seen, *runs(0), taken), *runs(0), taken, *anew)
    entries = [(item["pod"], item["attempt"], item.get("reason")) for item in compute_status(begun)["attemptHistory"]]
    assert entries == [("a1-0", 2, None), ("a1-1", 1, "Evicted"), ("a2-1", 2, None)]
    echo = ended(code=76, meta=no(1, 2, created=-190), started=-100, stopped=-40)
    train = nodes(2, retries=0, failed_reason="FailedIndexes")
    status = compute_status(again(begun, taken, echo, train=train, lost_pods=(gone(0, 1, -300, 250),)))
    assert status["failure"]["message"].startswith("pod a1-0 was deleted by another client")
    assert [item["reason"] for item in status["attemptHistory"]] == ["PodDeleted", "Evicted", "PeerLost"]
    trained = again(again(seen, *runs(0), taken, progress=TRAINING, reporter="a1-0"), *runs(0), taken, *anew)
    assert [item["attempt"] for item in compute_status(trained)["attemptHistory"]] == [1, 1, 2]


def test_an_attempt_is_counted_by_its_own_end_where_one_that_waited_went_on() -> None:
    """The first could not meet the other, which waited for the next one and was with it to its end."""
    seen = snapshot(*runs(0, 1), train=nodes(2, retries=1), progress=STARTS, reporter="a1-0")
    unmet = ended(code=75, meta=no(0), stopped=-200, says=ECHO)
    seen = again(again(seen, unmet, *runs(1)), unmet, *runs(0, attempt=2, started=-180, created=-190), *runs(1))
    over = [ended(meta=no(0, 2), says=RESULT, stopped=-5), ended(meta=no(1), stopped=-4)]
    status = compute_status(again(seen, unmet, *over, train=nodes(2, retries=1, complete=True)))
    counted = changes(seen.status, status, FACTS)
    assert [each.labels[2] for each in counted if each.metric is ATTEMPTS] == ["PeerLost", "Succeeded"]


def test_an_echo_is_no_news_once_the_successor_of_its_cause_runs() -> None:
    """Pod 0 stored its checkpoint for longer, and its own successor comes later."""
    taken = ended(code=143, meta=no(1, **deleting(60)), stopped=-200, disruption="EvictionByEvictionAPI")
    seen = snapshot(*runs(0, 1), train=nodes(2), progress=TRAINING, reporter="a1-0")
    echo = ended(code=76, meta=no(0), stopped=-190)
    seen = again(seen, echo, taken)
    assert condition(compute_status(seen), "Running") == ("False", "Evicted")
    status = compute_status(again(seen, echo, taken, *runs(1, attempt=2, started=-100, created=-180)))
    assert condition(status, "Running") == ("False", "Starting")
    assert message_of(status, "Running") == "1 of 2 pods run"


def test_a_retry_is_used_up_as_soon_as_the_container_has_ended() -> None:
    """Its pod is Failed a moment later, and nobody tells the number again."""
    killed = dataclasses.replace(ended(code=137, meta=no(1), stopped=-10), phase="Running")
    status = status_for(ended(code=76, meta=no(0), stopped=-5), killed, train=nodes(2, retries=3))
    assert "failed (1 of 3 retries used): Killed" in message_of(status, "Running")


def test_what_all_of_them_wait_for_once_they_run() -> None:
    """They have not begun: a look that comes by itself finds whether their Service is there, and says what may be."""
    seen = snapshot(
        *runs(0, 1, started=-60), train=nodes(2), reporter="a1-0", progress=TrainerStatus(phase=Phase.STARTING)
    )
    status = compute_status(seen)
    assert (status["phase"], condition(status, "Running")) == ("Starting", ("True", "PodStarted"))
    words = f"pod a1-0 on node {NODE} (the first of 2 pods) starts: it loads what it needs, and then begins with the"
    assert message_of(status, "Running") == f"{words} others"
    assert (requeue_after(seen, status) or 99) <= 30
    late = again(seen, *runs(0, 1, started=-60), seconds=61, reported_at=NOW + timedelta(seconds=61))
    told = message_of(compute_status(late), "Running")
    assert told.startswith(f"{words} others. All of them have run for 2 minutes")
    assert f"Service {nodes_service(OWNER.uid)}" in told
    assert "TCP 29500, 29501 and further ports" in told
    trains = again(late, *runs(0, 1, started=-60), progress=TRAINING)
    assert message_of(compute_status(trains), "Running") == f"pod a1-0 on node {NODE} (the first of 2 pods)"
    assert (requeue_after(trains, compute_status(trains)) or 99) > 30


def test_a_full_disk_of_any_ends_the_job() -> None:
    evicted = pod(phase="Failed", reason="Evicted", message="local ephemeral storage limit", meta=no(1))
    status = status_for(*runs(0), dataclasses.replace(evicted, started_at=NOW), train=nodes(2))
    assert (status["phase"], status["failure"]["reason"]) == ("Failed", "DiskFull")
    assert "pods" not in status


def test_the_memory_of_two_pods_of_one_attempt_is_one_end() -> None:
    """The second time in a row ends a job: two that are killed together are one time."""

    def killed(index: int, attempt: int, stopped: float) -> PodView:
        meta = no(index, attempt, created=stopped - 100)
        return ended(code=137, why="OOMKilled", meta=meta, started=stopped - 90, stopped=stopped)

    first = [killed(0, 1, -300), killed(1, 1, -300)]
    seen = snapshot(*first, train=nodes(2))
    status = compute_status(seen)
    assert condition(status, "Running") == ("False", "AttemptFailed")
    assert not same_end_twice(status, first, "OutOfMemory")
    second = [*first, ended(code=76, meta=no(0, 2, created=-120), started=-110, stopped=-20), killed(1, 2, -20)]
    status = compute_status(again(seen, *second))
    assert (status["phase"], status["failure"]["reason"]) == ("Failed", "OutOfMemory")
    assert "second time in a row" in status["failure"]["message"]


def test_what_fails_all_of_them_at_once_is_one_failure() -> None:
    """Storage that answers none of them is tried again as often as where one pod alone asks it."""

    def outage(attempt: int, stopped: float, *codes: int) -> list[PodView]:
        return [
            ended(code=code, meta=no(index, attempt, stopped - 90), started=stopped - 80, stopped=stopped, says=says)
            for index, code in enumerate(codes)
            for says in [{75: UNREACHABLE, 76: ECHO}.get(code, "")]
        ]

    train = nodes(3, retries=1)
    first = outage(1, -300, 75, 75, 75)
    taken, *echoes = outage(2, -180, 137, 76, 76)
    lost = [dataclasses.replace(taken, disruption="DeletionByTaintManager"), *echoes]
    seen = snapshot(*first, *lost, train=train)
    assert condition(compute_status(seen), "Running") == ("False", "NodeLost")
    second = [*first, *lost, *outage(3, -20, 76, 75, 75)]
    status = compute_status(again(seen, *second))
    assert (status["phase"], status["failure"]["reason"], status["attempts"]) == ("Failed", "StorageUnavailable", 3)
    assert status["failure"]["message"] == "nobody answers (pod a3-1, attempt 3)"
    assert (status["failure"]["exitCode"], status["completionTime"]) == (75, at(-20))


@pytest.mark.parametrize(("code", "says"), [(1, ""), (75, ECHO), (137, ""), (75, UNREACHABLE)])
def test_the_hint_sends_nobody_to_pods_that_are_deleted_with_their_job(code: int, says: Any) -> None:
    pods = [ended(code=76, meta=no(0), stopped=-50, says=ECHO), ended(code=code, meta=no(1), stopped=-60, says=says)]
    failure = status_for(*pods, train=nodes(2, retries=0))["failure"]
    assert "kubectl logs" not in failure["hint"]
    assert ("status.attemptHistory" in failure["hint"]) == (failure["reason"] == "PeerLost")


def test_a_pod_that_fails_before_the_others_begin_and_one_that_fails_later_are_two_failures() -> None:
    """Node 1 fails as it prepares, and its next pod trains with node 0, which fails then."""
    train = nodes(2, retries=2)
    waits = runs(0, started=-390)
    alone = ended(code=75, meta=no(1, created=-400), started=-390, stopped=-350, says=UNREACHABLE)
    seen = again(snapshot(*waits, alone, train=train), *waits, alone, *runs(1, attempt=2, started=-330, created=-340))
    assert failed_attempts(compute_status(seen), Attempt(train)) == 1
    failed = ended(code=75, meta=no(0, created=-400), started=-390, stopped=-30, says=UNREACHABLE)
    echo = ended(code=76, meta=no(1, 2, created=-340), started=-330, stopped=-28, says=ECHO)
    seen = again(seen, failed, alone, echo)
    assert failed_attempts(compute_status(seen), Attempt(train)) == 2
    status = compute_status(again(seen, failed, alone, echo, *runs(0, 1, attempt=3, started=-5, created=-15)))
    assert (failed_attempts(status, Attempt(train)), status["attempts"]) == (2, 3)
    later = dataclasses.replace(train, created=at(-1))
    assert failed_attempts(status, Attempt(later)) == 0, "those were of another Job"


def test_attempts_that_the_history_has_no_room_for_use_up_retries_too() -> None:
    """The history has three attempts of eight pods; each time another pod fails."""
    train, pods = nodes(8, retries=4, created=at(-9000)), list[PodView]()
    seen = snapshot(train=train)
    for attempt in range(1, 6):
        begun = -3000 + 500 * attempt
        pods += [
            ended(
                code=75 if index == attempt else 76, meta=no(index, attempt, begun), started=begun, stopped=begun + 100
            )
            for index in range(8)
        ]
        seen = again(seen, *pods)
        status = compute_status(seen)
        assert failed_attempts(status, Attempt(train, tuple(pods))) == attempt
        assert status["attempts"] == attempt
        assert (status["phase"] == "Failed") == (attempt == 5)
    assert {item["attempt"] for item in status["attemptHistory"]} == {3, 4, 5}


def test_one_that_stores_its_checkpoint_until_another_one_is_there_again_fails_once_with_it() -> None:
    """Ten seconds after one was killed the next of its number is made; the other one may take longer to end."""
    seen = snapshot(*runs(0, 1), train=nodes(2, retries=1), progress=TRAINING, reporter="a1-0")
    killed = ended(code=137, meta=no(1), stopped=-60)
    seen = again(seen, *runs(0), killed)
    assert "(1 of 1 retries used)" in message_of(compute_status(seen), "Running")
    anew = runs(1, attempt=2, started=-45, created=-50)
    seen = again(seen, *runs(0), killed, *anew)
    status = compute_status(seen)
    assert (status["phase"], status["pods"], status["attempts"]) == ("Starting", "2/2", 2)
    assert message_of(status, "Running") == "2 of 2 pods run, and a1-0, of the previous attempt, is terminating"
    outlived = ended(code=75, meta=no(0), stopped=-40, says=ECHO)
    seen = again(seen, outlived, killed, *anew)
    assert seen.main is not None
    status = compute_status(seen)
    assert (status["phase"], status["attempts"]) == ("Starting", 2)
    assert message_of(status, "Running") == "1 of 2 pods run"
    seen = again(seen, outlived, killed, *anew, *runs(0, attempt=2, started=-20, created=-30), reporter="a2-0")
    assert (compute_status(seen)["phase"], compute_status(seen)["attempts"]) == ("Training", 2)
    twice = again(seen, outlived, killed, *anew, ended(code=137, meta=no(0, 2, created=-30), started=-20, stopped=0))
    assert (compute_status(twice)["phase"], compute_status(twice)["failure"]["reason"]) == ("Failed", "Killed")


def test_the_next_first_one_is_not_of_the_attempt_before_whose_other_one_has_ended_well() -> None:
    seen = snapshot(*runs(0, 1), train=nodes(2), progress=TRAINING, reporter="a1-0")
    before = (
        ended(code=143, meta=no(0), stopped=-50, disruption="EvictionByEvictionAPI"),
        ended(meta=no(1), stopped=-60),
    )
    seen = again(seen, *before)
    seen = again(seen, *before, *runs(0, attempt=2, started=-20, created=-30), reporter=None, progress=None)
    status = compute_status(seen)
    assert (status["attempts"], condition(status, "Running")) == (2, ("True", "PodStarted"))
    assert message_of(status, "Running").startswith(f"pod a2-0 on node {NODE} (the first of 2 pods) starts")


def test_one_that_outlived_its_attempt_and_ends_the_job_is_told_with_its_own() -> None:
    """Another one was evicted before the first checkpoint, and the next of its number was there as this one ended."""
    train = nodes(2, retries=0)
    seen = snapshot(*runs(0, 1), train=train, progress=TRAINING, reporter="a1-0")
    evicted = ended(code=137, meta=no(1), stopped=-60, disruption="EvictionByEvictionAPI")
    seen = again(seen, *runs(0), evicted)
    anew = runs(1, attempt=2, started=-45, created=-50)
    seen = again(seen, *runs(0), evicted, *anew)
    failed = dataclasses.replace(train, failed_reason="FailedIndexes")
    outlived = ended(code=75, meta=no(0), stopped=-40, says=ECHO)
    seen = again(seen, outlived, *anew, train=failed)
    status = compute_status(seen)
    assert (status["phase"], status["attempts"]) == ("Failed", 2)
    assert status["failure"]["message"] == "node 2 is gone (pod a1-0, attempt 1)"


@pytest.mark.parametrize("doing", [None, "waiting for storage"])
def test_one_that_has_only_said_that_it_is_there_trains_not(doing: str | None) -> None:
    """It repeats its report every so often, also where it has nothing to say yet, as while storage does not answer."""
    said = TrainerStatus(doing=doing, last_updated_time=at(-1))
    status = status_for(*runs(0, 1), train=nodes(2), progress=said, reporter="a1-0")
    assert (status["phase"], condition(status, "Running")) == ("Starting", ("True", "PodStarted"))
    alone = status_for(running(), progress=said, reporter="p1")
    assert (alone["phase"], condition(alone, "Running")) == ("Starting", ("True", "PodStarted"))


@pytest.mark.parametrize("ending", [1, 4])
def test_those_that_were_told_to_end(ending: int) -> None:
    pods = [*runs(*range(ending), deletionTimestamp=at(60)), *runs(*range(ending, 4))]
    status = status_for(*pods, train=nodes(suspend=True), suspend=True)
    assert (status["phase"], condition(status, "Running")) == ("Suspending", ("True", "Stopping"))
    many = f"{ending} of 4 pods are terminating"
    assert message_of(status, "Running").startswith(many if ending > 1 else f"pod a1-0 on node {NODE} is terminating")


def test_a_node_that_is_lost_is_named_though_the_first_is_well() -> None:
    ends, outlives = runs(1, deletionTimestamp=at(60)), runs(2, deletionTimestamp=at(-60))
    status = status_for(*runs(0), *ends, *outlives, *runs(3), train=nodes())
    assert condition(status, "Running") == ("Unknown", "NodeLost")
    assert "pod a1-2" in status["failure"]["message"]


def test_kueue_takes_all_of_them_back() -> None:
    admitted = nodes(2, of=queued_job(admitted=True))
    seen = snapshot(*runs(0, 1), train=admitted, progress=TRAINING, reporter="a1-0", gpus=1)
    held = nodes(2, of=queued_job(suspend=True))
    ending = again(seen, *runs(0, 1, deletionTimestamp=at(60)), train=held, progress=None)
    assert compute_status(ending)["phase"] == "Queued"
    over = [ended(code=143, meta=no(0, **deleting(60))), ended(code=76, meta=no(1, **deleting(60)), says=ECHO)]
    status = compute_status(again(ending, *over, train=held, seconds=5))
    assert (status["phase"], status["attempts"], status["pods"]) == ("Queued", 1, "0/2")
    assert condition(status, "QuotaReserved") == ("False", "Preempted")
    assert (status["runSeconds"], status["gpuSeconds"]) == (240, 480)


def test_the_first_one_speaks_for_all_as_it_succeeds() -> None:
    """The others may have ended well, too, or are told to end: that says nothing of the result."""
    first = ended(meta=no(0), says=RESULT, stopped=-2)
    seen = snapshot(first, *runs(1, deletionTimestamp=at(60)), train=nodes(2), gpus=1)
    status = compute_status(seen)
    assert (status["phase"], condition(status, "Running")) == ("Uploading", ("False", "Finishing"))
    gone = again(seen, first, *runs(1, deletionTimestamp=at(-60)), train=nodes(2))
    assert condition(compute_status(gone), "Running") == ("Unknown", "NodeLost"), "the Job waits for its last word"
    both = again(seen, first, ended(meta=no(1), stopped=-1), train=nodes(2, complete=True))
    status = compute_status(both)
    assert (status["phase"], status["completionTime"]) == ("Succeeded", at(-2))
    assert status["adapter"]["uri"] == RESULT["adapter"]["uri"]
    assert [item["reason"] for item in status["attemptHistory"]] == ["Succeeded", "Succeeded"]
    assert (status["runSeconds"], status["gpuSeconds"]) == (299, 298 + 299)


def test_a_run_whose_last_reports_did_not_arrive_is_shown_to_its_end() -> None:
    report = TRAINING.model_copy(update={"step": 11, "total_steps": 60, "progress_percentage": 18, "epoch": "0.4"})
    seen = snapshot(running("p1"), train=job(), progress=report, reporter="p1")
    told_ = again(seen, ended("p1", says=RESULT | {"steps": 60}), train=job(complete=True))
    status = compute_status(told_)
    assert status["phase"] == "Succeeded"
    assert {
        name: status["progress"].get(name) for name in ("step", "totalSteps", "percent", "percentText", "epoch")
    } == {
        "step": 60,
        "totalSteps": 60,
        "percent": 100,
        "percentText": "100%",
        "epoch": None,
    }


def test_the_others_may_end_before_the_first_that_has_published() -> None:
    """Nobody begins anew then: the phase would go back for some seconds."""
    seen = status_for(*runs(0), ended(meta=no(1), stopped=-1), train=nodes(2), progress=TRAINING, reporter="a1-0")
    assert (seen["phase"], seen["pods"], condition(seen, "Running")) == ("Training", "1/2", ("True", "Training"))


# The ledger


def test_seconds_are_of_the_attempt_and_gpu_seconds_of_all_its_pods() -> None:
    """One pod waits a minute for the other; both run for four: five minutes of the job, nine times two of GPUs."""
    first, second = running(meta=no(0), started=-300), running(meta=no(1), started=-240)
    seen = snapshot(first, second, train=nodes(2), gpus=2, deadline_seconds=1000)
    assert deadline_left(seen) == 700
    over = [ended(code=76, meta=no(0), started=-300, stopped=0), ended(code=75, meta=no(1), started=-240, stopped=0)]
    status = compute_status(again(seen, *over))
    assert (status["attempts"], status["runSeconds"], status["gpuSeconds"]) == (1, 300, 2 * 540)
    assert deadline_left(dataclasses.replace(seen, status=status, main=None)) == 700
    lost = [
        LostPod(each.uid, each.name, each.created, 200.0, each.started_at, index=each.index) for each in (first, second)
    ]
    gone = dataclasses.replace(seen, status=compute_status(seen), main=None, lost_pods=tuple(lost))
    assert deadline_left(gone) == 1000 - 260


def test_who_starts_after_all_others_have_ended_is_of_the_next_attempt() -> None:
    """Two of three had started as it was suspended; the third starts first as it goes on."""
    seen = snapshot(*runs(0, 1), train=nodes(3))
    over = [ended(code=143, meta=no(index, **deleting(60))) for index in (0, 1)]
    held = again(seen, *over, train=nodes(3, suspend=True), suspend=True)
    on = again(held, *runs(2, attempt=2, started=-9, created=-12), train=nodes(3), suspend=False)
    status = compute_status(again(on, *runs(2, 0, 1, attempt=2, started=-9, created=-12), train=nodes(3)))
    told_ = [(item["index"], item["attempt"], item.get("reason")) for item in status["attemptHistory"]]
    assert sorted(told_, key=str) == [
        (0, 1, "Suspended"), (0, 2, None), (1, 1, "Suspended"), (1, 2, None), (2, 2, None),
    ]  # fmt: skip
    assert status["attempts"] == 2


@pytest.mark.slow(only=["64-3"])
@pytest.mark.parametrize(("count", "seed"), [(2, 0), (5, 1), (40, 2), (64, 3)])
def test_any_course_of_attempts_adds_up(count: int, seed: int) -> None:
    """Pods come and end in any order, and histories are cut: attempts, seconds and GPU seconds are exact."""
    draw = random.Random(seed)
    pods: list[PodView] = []
    seen, spent, ran = snapshot(train=nodes(count), gpus=2), 0, 0
    for attempt in range(1, 9):
        clock = -5000 + 400 * attempt
        starts = [clock + draw.randrange(60) for _ in range(count)]
        stops = [max(starts) + draw.randrange(100, 200) for _ in range(count)]
        over = [
            ended(code=76 if index else 75, meta=no(index, attempt, clock), started=starts[index], stopped=stops[index])
            for index in range(count)
        ]
        here = [dataclasses.replace(each, phase="Running", exit_code=None, finished_at=None) for each in over]
        half = count // 2
        for step in (here[half:], here, [*over[:half], *here[half:]], over):
            seen = again(seen, *pods, *step)
        pods = [*pods, *over][-3 * count :]
        spent += 2 * sum(stop - start for start, stop in zip(starts, stops, strict=True))
        ran += max(stops) - min(starts)
        status = compute_status(seen)
        assert (status["attempts"], status["runSeconds"], status["gpuSeconds"]) == (attempt, ran, spent)
        assert len(status["attemptHistory"]) <= max(MAX_ATTEMPTS, 3 * count)
        assert merge_patch(status, compute_status(dataclasses.replace(seen, status=status))) == {}
    LoRAJobStatus.model_validate(status)


def test_metrics_count_an_attempt_once_by_its_cause() -> None:
    echoes = [ended(code=76, meta=no(index), stopped=-60) for index in (0, 1)]
    steps: list[Snapshot] = [snapshot(*runs(0, 1, 2), train=nodes(3), gpus=1)]
    steps.append(again(steps[-1], *echoes, *runs(2)))
    steps.append(again(steps[-1], *echoes, ended(code=75, meta=no(2), stopped=-61, says=UNREACHABLE)))
    steps.append(again(steps[-1], *runs(0, 1, 2, attempt=2, started=-20, created=-30), seconds=5))
    statuses = [compute_status(step) for step in steps]
    seen = [each for old, new in zip([{}, *statuses], statuses, strict=False) for each in changes(old, new, FACTS)]
    assert [each.labels[2] for each in seen if each.metric is ATTEMPTS] == ["StorageUnavailable"]
    assert sum(each.value for each in seen if each.metric is GPU_SECONDS) == 240 + 240 + 239
    assert last_end(statuses[2]) == "StorageUnavailable"
    assert last_end(statuses[1]) is None
