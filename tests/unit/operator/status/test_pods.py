"""Every state of a pod that a real node can make, on the left; what the status says of it, on the right."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any, NamedTuple

import pytest

from tunery_api.kinds import Kind
from tunery_api.remedies import WITHOUT_GPU
from tunery_api.runspec import TrainerStatus
from tunery_api.status import LoRAJobStatus, Phase
from tunery_operator.client.apply import merge_patch
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.event import ClusterWarning
from tunery_operator.observed.pod import PodView
from tunery_operator.status.compute import compute_status
from tunery_operator.status.events import transitions
from tunery_operator.status.snapshot import Search
from tunery_search.decision import Decision

from kit.operator.objects import RESULT
from kit.operator.statuskit import (
    NODE,
    NOW,
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
from kit.sweeps import sweep

UNREACHABLE = {"failure": {"reason": "StorageUnavailable", "message": "nobody answers"}}


class Expected(NamedTuple):
    """What the status says: phase, condition Running, and failure with a part of its message."""

    phase: str
    running: str
    reason: str
    failure: str | None = None
    message: str = ""


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def warned(about: Any, reason: str, message: str, seconds: float = -5, **changes: Any) -> dict[str, Any]:
    """Return a train Job without a pod, or with one that waits, and what the cluster says against it."""
    pods = (pod(state=waiting("ContainerCreating")),) if about == "Pod" else ()
    warning = ClusterWarning(reason, message, at(seconds), about)
    return {"main": Attempt(job(**changes), pods, (warning,))}


def unschedulable(message: str) -> dict[str, Any]:
    return {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}


def unready(type_: str, status: str) -> dict[str, Any]:
    return {"type": type_, "status": status}


QUOTA = 'pods "x-train-1" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: 8, limited: 8'
EVICTED = {"reason": "Evicted"}
LIMIT = 'Container trainer exceeded its local ephemeral storage limit "50Gi".'
PRESSURE = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 8Mi."
NO_CLASS = 'pods "x" is forbidden: pod rejected: RuntimeClass "nvidia" not found'
NO_VOLUME = 'MountVolume.SetUp failed for volume "models": mount failed: exit status 32'
REFUSED = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no healthy devices of nvidia.com/gpu"}

STARTING = Expected("Starting", "False", "Starting")
TRIED_AGAIN = Expected("Starting", "False", "AttemptFailed")
NODE_LOST = Expected("Starting", "Unknown", "NodeLost", "NodeLost", NODE)


def blocked(reason: str, message: str) -> Expected:
    """Return a pod that does not start: the condition and the failure have one reason."""
    return Expected("Starting", "False", reason, reason, message)


STATES: dict[str, tuple[dict[str, Any], Expected]] = {
    "trains": ({"pods": [running()], "progress": TRAINING}, Expected("Training", "True", "Training")),
    "sidecar before trainer": (
        {"pods": [running(sidecars=("istio-proxy",))], "progress": TRAINING},
        Expected("Training", "True", "Training"),
    ),
    "only the sidecar runs": (
        {"pods": [pod(state=waiting("ContainerCreating"), sidecars=("envoy",), phase="Running")]},
        STARTING,
    ),
    "told to end, within its grace": (
        {"pods": [running(meta=deleting(60))], "progress": TRAINING},
        Expected("Starting", "True", "Stopping"),
    ),
    "a little late": ({"pods": [running(meta=deleting(-10))]}, Expected("Starting", "True", "Stopping")),
    "grace is over, kubelet dead": ({"pods": [running(meta=deleting(-16))], "progress": TRAINING}, NODE_LOST),
    "node tainted unreachable": (
        {"pods": [running(meta=deleting(30), disruption="DeletionByTaintManager")]},
        NODE_LOST,
    ),
    "node lost, says the pod": ({"pods": [running(reason="NodeLost")]}, NODE_LOST),
    "its node is not ready": (
        {"pods": [running(conditions=[unready("Ready", "False"), unready("ContainersReady", "True")])]},
        Expected("Starting", "Unknown", "NodeLost", "NodeLost", "does not answer"),
    ),
    "a sidecar is not ready": (
        {"pods": [running(conditions=[unready("Ready", "False"), unready("ContainersReady", "False")])]},
        Expected("Starting", "True", "PodStarted"),
    ),
    "never started on a lost node": (
        {"pods": [pod(state=waiting("ContainerCreating"), meta=deleting(-3600))]},
        blocked("NodeLost", NODE),
    ),
    "no node fits": (
        {"pods": [pod(conditions=[unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")])]},
        blocked("Unschedulable", "Insufficient nvidia.com/gpu"),
    ),
    "taints": (
        {"pods": [pod(conditions=[unschedulable("0/3 nodes are available: 3 node(s) had untolerated taint(s).")])]},
        blocked("Unschedulable", "untolerated taint"),
    ),
    "image": (
        {"pods": [pod(state=waiting("ImagePullBackOff", 'Back-off pulling image "r/t"'))]},
        blocked("ImagePullFailed", "r/t"),
    ),
    "configuration": (
        {"pods": [pod(state=waiting("CreateContainerConfigError", 'secret "hub" not found'))]},
        blocked("ContainerRefused", 'secret "hub" not found'),
    ),
    "node refuses the pod": ({"pods": [pod(**REFUSED)]}, TRIED_AGAIN),
    "quota for pods": (
        warned("Job", "FailedCreate", f"Error creating: {QUOTA}"),
        blocked("QuotaExceeded", "exceeded quota: gpus"),
    ),
    "pod refused": (
        warned("Job", "FailedCreate", f"Error creating: {NO_CLASS}"),
        blocked("PodRefused", 'RuntimeClass "nvidia" not found'),
    ),
    "what was said before the Job was resumed": (
        warned("Job", "FailedCreate", f"Error creating: {QUOTA}", seconds=-700),
        STARTING,
    ),
    "mount": (warned("Pod", "FailedMount", NO_VOLUME), blocked("MountFailed", 'volume "models": mount failed')),
    "too little memory to start in": (
        warned("Pod", "FailedCreatePodSandBox", "container init was OOM-killed (memory limit too low?)"),
        blocked("OutOfMemory", "cannot even start"),
    ),
    "a mount that failed before and works now": (warned("Pod", "FailedMount", NO_VOLUME, seconds=-200), STARTING),
    "a quota that was full before the last attempt": (
        {"main": Attempt(job(), (ended(code=75),), (ClusterWarning("FailedCreate", QUOTA, at(-90_000), "Job"),))},
        TRIED_AGAIN,
    ),
    "a quota that is full since the last attempt": (
        {"main": Attempt(job(), (ended(code=75),), (ClusterWarning("FailedCreate", QUOTA, at(-9), "Job"),))},
        Expected("Starting", "False", "QuotaExceeded", "QuotaExceeded"),
    ),
    "no room after an attempt that failed": (
        {"pods": [ended(code=75, says=UNREACHABLE), pod("p2", conditions=[unschedulable("0/1 nodes fit")])]},
        blocked("Unschedulable", "no node fits: 0/1 nodes fit"),
    ),
    "another warning": (warned("Pod", "Unhealthy", "probe failed"), STARTING),
    "over its own disk limit": (
        {"pods": [ended(code=137, **EVICTED, message=LIMIT)]},
        Expected("Failed", "False", "Ended", "DiskFull", "ephemeral storage limit"),
    ),
    "node short of memory": (
        {"pods": [ended(code=137, disruption="TerminationByKubelet", **EVICTED, message=PRESSURE)]},
        Expected("Starting", "False", "NodePressure"),
    ),
    "node shut down": (
        {"pods": [ended(code=143, disruption="TerminationByKubelet", reason="Terminated")]},
        Expected("Starting", "False", "NodeLost"),
    ),
    "node restarted": (
        {"pods": [ended(code=137, why="ContainerStatusUnknown")]},
        Expected("Starting", "False", "NodeLost"),
    ),
    "preempted by a pod": (
        {"pods": [ended(code=143, disruption="PreemptionByScheduler", meta=deleting(60))]},
        Expected("Starting", "False", "Preempted"),
    ),
    "drained": (
        {"pods": [ended(code=143, disruption="EvictionByEvictionAPI", meta=deleting(60))]},
        Expected("Starting", "False", "Evicted"),
    ),
    "deleted by somebody": (
        {"pods": [ended(code=143, meta=deleting(60))]},
        Expected("Starting", "False", "PodDeleted"),
    ),
    "out of memory once": ({"pods": [ended(code=137, why="OOMKilled")]}, TRIED_AGAIN),
    "out of memory twice": (
        {"pods": [ended(code=137, why="OOMKilled"), ended("p2", 137, started=-50, stopped=-5, why="OOMKilled")]},
        Expected("Failed", "False", "Ended", "OutOfMemory", "second time in a row"),
    ),
    "out of memory, evicted, out of memory": (
        {
            "pods": [
                ended(code=137, why="OOMKilled", started=-300, stopped=-250),
                ended("p2", 143, started=-200, stopped=-150, disruption="EvictionByEvictionAPI"),
                ended("p3", 137, started=-100, stopped=-50, why="OOMKilled"),
            ]
        },
        Expected("Failed", "False", "Ended", "OutOfMemory", "second time in a row"),
    ),
    "out of memory, then something else": (
        {"pods": [ended(code=137, why="OOMKilled"), ended("p2", 75, started=-50, stopped=-5)]},
        TRIED_AGAIN,
    ),
    "killed three times, which nobody calls memory": (
        {
            "pods": [
                ended(code=137, why="Error", started=-300, stopped=-250),
                ended("p2", 137, started=-200, stopped=-150, why="Error"),
                ended("p3", 137, started=-100, stopped=-50, why="Error"),
            ]
        },
        TRIED_AGAIN,
    ),
    "killed, then out of memory once": (
        {"pods": [ended(code=137, why="Error"), ended("p2", 137, started=-50, stopped=-5, why="OOMKilled")]},
        TRIED_AGAIN,
    ),
    "failed once": ({"pods": [ended(code=75)]}, TRIED_AGAIN),
    "failed for good before it was looked at, Job not yet": (
        {"pods": [ended(code=64, says=UNREACHABLE)]},
        Expected("Starting", "False", "Starting", None, "is not retried: StorageUnavailable"),
    ),
    "container ended well, Job not yet": ({"pods": [ended()]}, Expected("Uploading", "False", "Finishing")),
    "sidecar outlives the trainer": (
        {"train": job(complete=True), "pods": [ended(says=RESULT, sidecars=("datadog-agent",))]},
        Expected("Succeeded", "False", "Ended"),
    ),
    "Job deleted, its pod still there": (
        {"main": None, "leftovers": (running(meta=deleting(60)),)},
        Expected("Starting", "True", "Stopping"),
    ),
    "Job deleted without its pod": (
        {"main": None, "leftovers": (running(),)},
        Expected(
            "Starting", "True", "PodStarted", None, "still runs without its Job; kubectl delete pod p1 -n ns ends"
        ),
    ),
    "says nothing for minutes": (
        {"pods": [running(started=-121)], "taking_reports_since": NOW - timedelta(hours=1)},
        Expected("Starting", "True", "NotReporting", None, "but has sent no report"),
    ),
    "queue holds it": ({"train": queued_job(suspend=True)}, Expected("Queued", "False", "Queued")),
    "somebody else holds it": ({"train": job(suspend=True)}, Expected("Waiting", "False", "JobSuspended")),
}


@pytest.mark.parametrize(("seen", "told"), STATES.values(), ids=STATES.keys())
def test_what_the_status_says(seen: dict[str, Any], told: Expected) -> None:
    status = status_for(**seen)
    failure = status.get("failure", {})
    found = (status["phase"], condition(status, "Running"), failure.get("reason"))
    assert found == (told.phase, (told.running, told.reason), told.failure)
    assert told.message in f"{failure.get('message', '')} {message_of(status, 'Running')}"
    LoRAJobStatus.model_validate(status)


@pytest.mark.parametrize("seen", [seen for seen, _ in STATES.values()], ids=STATES.keys())
def test_nothing_is_written_when_nothing_changes(seen: dict[str, Any]) -> None:
    first = snapshot(**seen)
    status = compute_status(first)
    assert merge_patch(status, compute_status(dataclasses.replace(first, status=status))) == {}


SHORT = "0/3 nodes are available: 3 Insufficient {}."
FEWER = ["resources.gpus", "resources.nodes"]


@pytest.mark.parametrize(
    ("gpus", "short", "kind", "offered"),
    [
        (1, "nvidia.com/gpu", Kind.LORAJOB, [WITHOUT_GPU.fields]),
        (4, "nvidia.com/gpu", Kind.LORAJOB, [FEWER, WITHOUT_GPU.fields]),
        (4, "nvidia.com/gpu", Kind.ADAPTERMERGE, [WITHOUT_GPU.fields]),
        (4, "cpu", Kind.LORAJOB, []),
        (4, "nvidia.com/gpu.shared", Kind.LORAJOB, []),
        (0, "nvidia.com/gpu", Kind.LORAJOB, []),
    ],
)
def test_where_gpus_are_short_the_remedies_have_what_fits_without_them(
    gpus: int, short: str, kind: Kind, offered: list[list[str]]
) -> None:
    waits = pod(conditions=[unschedulable(SHORT.format(short))])
    status = status_for(waits, gpus=gpus, gpu_resource="nvidia.com/gpu", kind=kind)
    remedies = status["failure"].get("remedies", [])
    assert [each["fields"] for each in remedies if each["action"] == "Recreate"] == offered
    assert [each["action"] for each in remedies][:2] == (["Retry", "Edit"] if offered else []), (
        "a node, or other memory"
    )


def test_a_gpu_that_does_not_work_has_the_cpu_in_its_hint_and_a_retry() -> None:
    says = {"failure": {"reason": "GPUUnavailable", "message": "no driver"}}
    hint = status_for(ended(code=64, says=says), train=job(failed_reason="PodFailurePolicy"), gpus=1)["failure"]["hint"]
    assert "Or, in a new LoRAJob: set resources.gpus: 0" in hint
    assert "tunery.dev/retry" in hint


def test_a_blocker_names_how_the_attempt_before_failed_as_a_fact() -> None:
    waits = pod("p2", conditions=[unschedulable("0/1 nodes fit")])
    failure = status_for(ended(code=75, says=UNREACHABLE), waits, train=job(retries=3))["failure"]
    assert failure["facts"]["previousAttempt"] == "failed (1 of 3 retries used): StorageUnavailable: nobody answers"
    assert "The previous attempt: failed (1 of 3" in failure["hint"]


def test_a_lost_node_tells_what_frees_the_next_attempt() -> None:
    hint = status_for(running(meta=deleting(-16)))["failure"]["hint"]
    assert f"kubectl delete node {NODE}" in hint
    assert f"kubectl taint nodes {NODE} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute" in hint


@pytest.mark.parametrize(
    ("phase", "reason"), [("Uploading", "Uploading"), ("Training", "Training"), ("Starting", "PodStarted")]
)
def test_what_is_not_tried_again_keeps_its_phase_until_its_job_has_ended(phase: str, reason: str) -> None:
    """Its container says that nothing helps: no attempt follows, whatever a short look at its end would say."""
    rejected = {"failure": {"reason": "NotImproved", "message": "it fell by 0.1 %"}}
    before = snapshot(running(), progress=TrainerStatus(phase=Phase(phase)))
    for end in (
        ended(code=64, says=rejected),
        dataclasses.replace(ended(code=64, says=rejected), phase="Running"),
        ended(code=64, meta=deleting(60), disruption="EvictionByEvictionAPI"),
    ):
        ends = again(before, end)
        status = compute_status(ends)
        assert (status["phase"], condition(status, "Running")) == (phase, ("True", reason))
        assert "attempt 1 failed, and is not retried" in message_of(status, "Running")
        assert transitions(ends.status, status) == ()
    failed = status_for(end, train=job(failed_reason="PodFailurePolicy"), status=status)
    assert (failed["phase"], condition(failed, "Running")) == ("Failed", ("False", "Ended"))


@pytest.mark.parametrize("role", ["train", "preflight"])
@pytest.mark.parametrize("meta", [{}, deleting(60)], ids=["from-within", "deleted"])
@pytest.mark.parametrize(
    ("says", "words"),
    [("", "143 and left no message: "), ('{"doing": "node 0 was publishing"}', "143: node 0 was publish")],
)
def test_who_was_told_to_end_and_says_no_failure_was_ended_by_somebody(
    role: str, meta: dict[str, Any], says: str, words: str
) -> None:
    over = job(failed_reason="BackoffLimitExceeded", labels={"tunery.dev/role": role})
    found = status_for(ended(code=143, meta=meta, says=says), train=over)["failure"]
    assert words in found["message"]
    assert (found["reason"], found["exitCode"]) == ("Killed", 143)
    assert "sent SIGTERM" in found["message"]
    assert found["hint"].startswith("Find what deletes or ends this pod")
    assert "preflight.resources" not in found["hint"]
    assert "kubectl annotate lorajob" in found["hint"]


OOM = ended("p2", 137, started=-50, stopped=-5, why="OOMKilled")


@pytest.mark.parametrize(
    ("pods", "retries", "last"),
    [
        # A container ends a moment before its pod does, and the pod before its Job.
        ((ended(code=137, why="OOMKilled"), dataclasses.replace(OOM, phase="Running")), 6, True),
        ((ended(code=75), dataclasses.replace(OOM, phase="Running")), 6, False),
        ((ended(code=75),), 0, True),
        ((dataclasses.replace(ended(code=75), phase="Running"),), 0, True),
        ((ended(code=137), OOM), 1, True),
        ((ended(code=137), OOM), 2, False),
        ((ended(code=143, disruption="EvictionByEvictionAPI", meta=deleting(60)), OOM), 1, False),
        ((ended(code=75), ended("p2", 143, meta=deleting(60), disruption="EvictionByEvictionAPI")), 0, False),
    ],
)
def test_an_attempt_that_no_other_follows_is_no_failed_attempt(
    pods: tuple[PodView, ...], retries: int, last: bool
) -> None:
    before = snapshot(
        *pods[:-1], running("p2"), progress=TrainerStatus(phase=Phase.TRAINING), train=job(retries=retries)
    )
    ends = again(before, *pods, train=job(retries=retries))
    told = [event.reason for event in transitions(ends.status, compute_status(ends))]
    assert ("AttemptFailed" in told or "Evicted" in told) is not last
    assert ("and is not retried" in message_of(compute_status(ends), "Running")) is last


@pytest.mark.parametrize(
    ("pods", "train", "used"),
    [
        ((ended(code=75),), {"retries": 3}, 1),
        ((ended(code=75),), {"retries": 3, "failed": 1}, 1),
        ((ended(code=137), ended("p2", 75, started=-50, stopped=-5)), {"retries": 3, "failed": 1}, 2),
        # An eviction is no failure.
        ((ended(code=143, disruption="EvictionByEvictionAPI"), ended("p2", 75, started=-50)), {"retries": 3}, 1),
        # What was deleted counts, as often as the Job controller finds; so may what is gone.
        ((ended(code=143, meta=deleting(60)), ended("p2", 75, started=-50)), {"retries": 3}, None),
        ((ended(code=75, says=UNREACHABLE, meta=deleting(60)),), {"retries": 3}, None),
        ((ended(code=75),), {"retries": 3, "failed": 2}, None),
        ((ended(code=75),), {}, None),
    ],
)
def test_how_many_retries_are_used_is_told_where_that_is_sure(
    pods: tuple[PodView, ...], train: dict[str, Any], used: int | None
) -> None:
    status = status_for(*pods, train=job(**train))
    assert condition(status, "Running") == ("False", "AttemptFailed")
    much = f" ({used} of 3 retries used)" if used is not None else ""
    assert message_of(status, "Running").startswith(f"attempt {len(pods)} failed{much}: ")


@pytest.mark.parametrize(
    ("end", "reason", "says"),
    [
        (ended(code=64, says=UNREACHABLE), "PreflightRunning", "is not retried: StorageUnavailable"),
        (
            dataclasses.replace(ended(code=64, says=UNREACHABLE), phase="Running"),
            "PreflightRunning",
            "is not retried: StorageUnavailable",
        ),
        (ended(), "PreflightRunning", "has succeeded"),
        (ended(code=75, says=UNREACHABLE), "AttemptFailed", "attempt 1 of preflight failed"),
    ],
)
def test_a_preflight_that_has_ended_waits_for_its_job(end: Any, reason: str, says: str) -> None:
    status = status_for(main=None, preflight_needed=True, preflight=Attempt(job(), (end,)))
    assert (status["phase"], condition(status, "Preflight")) == ("Preflight", ("Unknown", reason))
    assert says in message_of(status, "Preflight")


def test_what_an_earlier_attempt_reported_is_not_said_of_the_next() -> None:
    first = snapshot(running(), progress=TRAINING)
    at_once = compute_status(again(first, running("p2", started=-2)))
    assert (at_once["phase"], condition(at_once, "Running")) == ("Starting", ("True", "PodStarted"))
    later = compute_status(again(first, running("p2", started=-2), reporter="p2"))
    assert later["phase"] == "Training"
    restarted = compute_status(again(first, running(), progress=None, reporter=""))
    assert restarted["phase"] == "Training", "what was said of this very pod is still known"


def test_a_refused_pod_of_the_preflight_is_told_there() -> None:
    warning = ClusterWarning("FailedCreate", f"Error creating: {QUOTA}", at(-5), "Job")
    status = status_for(main=None, preflight_needed=True, preflight=Attempt(job(), (), (warning,)))
    assert condition(status, "Preflight") == ("Unknown", "QuotaExceeded")
    assert status["failure"]["reason"] == "QuotaExceeded"


PUBLISH_BEST = {"tunery.dev/role": "publish-best"}
NO_CPU = pod(conditions=[unschedulable("0/1 nodes are available: 1 Insufficient cpu.")])
NO_MEMORY = warned("Pod", "FailedCreatePodSandBox", "container init was OOM-killed", labels=PUBLISH_BEST)["main"]


@pytest.mark.parametrize(
    ("main", "says", "tried_again"),
    [
        (Attempt(job(labels=PUBLISH_BEST), (NO_CPU,)), "add a node with room for this pod", False),
        (NO_MEMORY, "preflight.resources", False),
        (
            Attempt(
                job(labels=PUBLISH_BEST),
                (ended(code=137, why="OOMKilled"), ended("p2", 137, started=-50, stopped=-5, why="OOMKilled")),
            ),
            "preflight.resources",
            True,
        ),
        (
            Attempt(
                job(labels=PUBLISH_BEST, failed_reason="BackoffLimitExceeded"), (ended(code=137, why="OOMKilled"),)
            ),
            "preflight.resources",
            True,
        ),
        (
            Attempt(job(labels=PUBLISH_BEST), (ended(code=137, **EVICTED, message=LIMIT),)),
            "Raise resources.ephemeralStorage, in the template of a new LoRASweep.",
            False,
        ),
    ],
    ids=["no room", "memory to start in", "memory twice", "memory at last", "disk"],
)
def test_the_pod_that_publishes_a_sweeps_best_says_whose_resources_it_has(
    main: Attempt, says: str, tried_again: bool
) -> None:
    """A sweep has no spec.scheduling and no spec.resources, and its template is final."""
    found = Search(sweep(maxTrials=1), (), Decision())
    hint = status_for(main=main, search=found, kind=Kind.LORASWEEP)["failure"]["hint"]
    assert says in hint
    assert ("kubectl annotate lorasweep x" in hint) == tried_again
    for absent in ("scheduling", "resources.memory"):
        assert absent not in hint


def test_a_check_that_no_scheduler_looks_at_is_not_told_to_name_one() -> None:
    waits = pod()
    waits = dataclasses.replace(waits, node=None)
    check = Attempt(job(labels={"tunery.dev/role": "preflight"}), (waits,))
    failure = status_for(main=None, preflight_needed=True, preflight=check)["failure"]
    assert failure["reason"] == "Unschedulable"
    assert "schedulerName" not in failure["hint"]
    assert "schedulerName" in status_for(waits)["failure"]["hint"]


@pytest.mark.parametrize(
    "end", [ended(code=137, why="OOMKilled"), ended(code=137, **EVICTED, message=LIMIT)], ids=["memory", "disk"]
)
def test_a_check_that_ran_into_its_limits_says_whose_they_are(end: Any) -> None:
    check = Attempt(job(labels={"tunery.dev/role": "preflight"}, failed_reason="BackoffLimitExceeded"), (end,))
    hint = status_for(main=None, preflight_needed=True, preflight=check)["failure"]["hint"]
    assert "preflight.resources of Tunery's chart" in hint
    assert "Raise resources" not in hint


def test_what_stood_in_the_way_is_gone_with_its_cause() -> None:
    before = status_for(**warned("Job", "FailedCreate", QUOTA))
    after = status_for(running(), status=before)
    assert "failure" not in after
    assert condition(after, "Running") == ("True", "PodStarted")


def test_a_credential_in_the_clusters_words_is_taken_out() -> None:
    status = status_for(**warned("Pod", "FailedMount", "https://user:secretword@storage failed"))
    assert "secretword" not in str(status)
