"""A failed job is not the end, and a deadline counts only the seconds in which a pod ran."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from e2e.conftest import LONG, ROWS, Launch

from kit.jobs import Job
from kit.kubectl import Kubectl, KubectlError, wait_for
from kit.tenant import s3_secret

pytestmark = pytest.mark.slow

LATER = {"name": "later"}
NOWHERE = {"nodeSelector": {"example.com/kind": "nowhere"}}
DEADLINE = 25


def test_a_failed_job_is_tried_again_once_its_cause_is_gone(
    launch: Launch, kubectl: Kubectl, namespace: str, environment: dict[str, str]
) -> None:
    job = launch("reopened", dataset={"uri": ROWS, "secretRef": LATER})
    assert "later" in job.wait_phase("Failed")["failure"]["message"]
    uid = job.uid
    kubectl.apply(s3_secret(namespace, environment, name=LATER["name"]))
    job.retry("1")
    status = job.wait_phase("Succeeded", timeout=400)
    assert job.uid == uid
    assert status["observedRetry"] == "1"
    assert "failure" not in status
    assert job.condition("Failed").get("status") != "True"


def test_memory_may_be_raised_after_it_ran_out(launch: Launch) -> None:
    small = {"gpus": 0, "cpu": "800m", "memory": "150Mi", "ephemeralStorage": "2Gi"}
    job = launch("starved", resources=small, retries=0, preflight="Skip")
    failure = job.wait_phase("Failed")["failure"]
    assert (failure["reason"], failure.get("exitCode")) == ("OutOfMemory", 137), failure
    job.patch_spec(resources={"memory": "3Gi"})
    job.retry("more-memory")
    status = job.wait_phase("Succeeded", timeout=400)
    assert status["attempts"] == 2
    assert [attempt["reason"] for attempt in status["attemptHistory"]] == ["OutOfMemory", "Succeeded"]


def test_the_deadline_counts_only_what_ran(launch: Launch) -> None:
    """Longer than its deadline it waits for a node; then it may still run for all of it."""
    endless = LONG | {"training": LONG["training"] | {"maxSteps": 20_000}}
    job = launch("late", scheduling=NOWHERE, activeDeadlineSeconds=DEADLINE, **endless)
    job.wait_failure("Unschedulable", timeout=60)
    wait_for("the deadline to pass", lambda: _age(job) > DEADLINE + 10, timeout=DEADLINE + 60)
    assert job.status["phase"] != "Failed"
    job.patch_spec(scheduling=None)
    status = job.wait_phase("Failed", timeout=200)
    assert status["failure"]["reason"] == "DeadlineExceeded"
    assert status["runSeconds"] >= DEADLINE
    wait_for("the pods to stop", lambda: not [pod for pod in job.pods("train") if _is_active(pod)], 150)


def test_what_may_change_while_no_pod_runs_cannot_change_under_one(launch: Launch) -> None:
    job = launch("moved", **LONG)
    wait_for("a running pod", lambda: job.condition("Running").get("status") == "True", 120)
    with pytest.raises(KubectlError, match="while a pod runs"):
        job.patch_spec(scheduling=NOWHERE)


def _age(job: Job) -> float:
    found = job.kubectl.get(job.kind, job.name, job.namespace)
    assert found is not None
    created = datetime.fromisoformat(found["metadata"]["creationTimestamp"])
    return (datetime.now(UTC) - created).total_seconds()


def _is_active(pod: dict[str, dict[str, str]]) -> bool:
    return pod["status"]["phase"] in {"Pending", "Running"}
