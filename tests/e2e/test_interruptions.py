"""Whatever is killed, training goes on from the last checkpoint, and nothing happens twice."""

from __future__ import annotations

import time
from typing import Any

from e2e.conftest import CHECKPOINTS, LONG, Launch, checkpointed, resumed, running_pod

from kit.installation import NAMESPACE
from kit.jobs import Job
from kit.kubectl import Kubectl, wait_for
from kit.operator.pods import OperatorRecord, leader, operator_pods, wait_for_leader
from kit.processes import kill
from kit.published import list_keys

TAKE_OVER_SECONDS = 30


def test_a_deleted_pod_and_a_killed_trainer_resume(launch: Launch, kubectl: Kubectl, namespace: str, s3: Any) -> None:
    deleted, killed = launch("deleted", **LONG), launch("killed", **LONG)
    step = checkpointed(deleted)
    kubectl.delete("pod", running_pod(deleted)["metadata"]["name"], namespace, wait=False)
    checkpointed(killed)
    kill(running_pod(killed), "tunery_trainer")

    for job in (deleted, killed):
        status = job.wait_phase("Succeeded", timeout=500)
        assert status["attempts"] == 2, job.story()
        assert [attempt.get("reason") for attempt in status["attemptHistory"]][-1] == "Succeeded"
        assert resumed(job) >= (step if job is deleted else 1)
        assert "checkpoint" not in status, "they were removed once the adapter was published"
        assert list_keys(s3, f"{CHECKPOINTS}/{namespace}/{job.name}-{job.uid}") == []


def test_a_job_that_was_deleted_is_made_again_and_a_suspended_one_goes_on(
    launch: Launch, kubectl: Kubectl, namespace: str
) -> None:
    remade, paused = launch("remade", **LONG), launch("paused", suspend=True, **LONG)
    paused.wait_phase("Suspended")
    assert paused.pods("train") == []
    paused.patch_spec(suspend=False)
    checkpointed(remade)
    (batch,) = remade.jobs("train")
    kubectl.delete("job.batch", batch["metadata"]["name"], namespace, wait=False)
    checkpointed(paused)
    paused.patch_spec(suspend=True)
    # The pod has 120 s to write its checkpoint; Suspended is said when none is left.
    paused.wait_phase("Suspended", timeout=150)
    assert [pod for pod in paused.pods("train") if pod["status"]["phase"] in {"Pending", "Running"}] == []
    step = paused.status["checkpoint"]["step"]
    paused.patch_spec(suspend=False)

    for job in (remade, paused):
        assert job.wait_phase("Succeeded", timeout=500)["attempts"] == 2, job.story()
    (again,) = remade.jobs("train")
    assert again["metadata"]["uid"] != batch["metadata"]["uid"]
    assert resumed(remade)
    assert resumed(paused) >= step


def test_the_leader_is_killed_and_the_stand_by_takes_over(
    launch: Launch, kubectl: Kubectl, operator: OperatorRecord
) -> None:
    """kill -9: the Lease is not given back, and the kubelet starts the container again."""
    first = wait_for_leader(kubectl)
    (pod,) = [pod for pod in operator_pods(kubectl) if pod["metadata"]["name"] == first]
    operator.killed(first)
    kill(pod, "tunery_operator")
    killed = time.monotonic()
    job = launch("after", suspend=True)
    job.wait_phase("Suspended", timeout=TAKE_OVER_SECONDS)
    assert time.monotonic() - killed < TAKE_OVER_SECONDS
    assert leader(kubectl) is not None
    wait_for("all replicas to be ready", lambda: _ready(kubectl), 60)


def test_every_operator_dies_and_nothing_happens_twice(launch: Launch, kubectl: Kubectl) -> None:
    job = launch("steady", **(LONG | {"training": LONG["training"] | {"maxSteps": 150}}))
    for phase in (("Starting", "Downloading", "Training"), ("Training", "Evaluating", "Uploading", "Succeeded")):
        job.wait_phase(*phase)
        for pod in operator_pods(kubectl):
            kubectl.run("delete", "pod", pod["metadata"]["name"], "-n", NAMESPACE, "--grace-period=0", "--force")
        kubectl.run("rollout", "status", "deployment", "-n", NAMESPACE, "--timeout=90s")
    status = job.wait_phase("Succeeded", timeout=400)
    assert status["attempts"] == 1
    assert len(job.jobs("train")) == 1
    # Events are posted after the status that they tell of.
    wait_for("its last event", lambda: [event for event in job.events() if event["reason"] == "Succeeded"], timeout=30)
    assert len([event for event in job.events() if event["reason"] == "Succeeded"]) == 1


def test_deletion_takes_everything_and_never_blocks(launch: Launch, kubectl: Kubectl, namespace: str) -> None:
    job = launch("gone", **LONG)
    job.wait_phase("Training", "Starting", "Downloading")
    wait_for("a pod", lambda: job.pods("train"), 60)
    kubectl.delete(job.kind, job.name, namespace)
    wait_for("Job and pods to go", lambda: not job.jobs("train") and not _alive(job), 30)


def _ready(kubectl: Kubectl) -> bool:
    statuses = [pod["status"].get("containerStatuses", [{}])[0] for pod in operator_pods(kubectl)]
    return bool(statuses) and all(status.get("ready") for status in statuses)


def _alive(job: Job) -> list[dict[str, Any]]:
    return [pod for pod in job.pods("train") if not pod["metadata"].get("deletionTimestamp")]
