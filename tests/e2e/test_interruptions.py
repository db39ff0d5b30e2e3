"""Whatever is killed, training goes on from the last checkpoint, and nothing happens twice."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

from .conftest import Launch
from kit.installation import NAMESPACE
from kit.jobs import Job
from kit.kubectl import Kubectl, wait_for

LONG: dict[str, Any] = {
    "training": {"maxSteps": 600, "learningRate": "1e-3", "batchSize": 2, "gradientAccumulation": 1, "maxLength": 128},
    "checkpoint": {"everySteps": 25},
    "preflight": "Skip",
}


def _checkpointed(job: Job, timeout: float = 240) -> int:
    """Return the step of the first checkpoint that status reports."""
    return wait_for(f"{job.name}: a checkpoint", lambda: job.status.get("checkpoint", {}).get("step"), timeout)


def _kill_trainer(job: Job) -> None:
    """kill -9 the trainer of the job's running pod, from the node."""
    (pod,) = [pod for pod in job.pods("train") if pod["status"]["phase"] == "Running"]
    uid = pod["metadata"]["uid"].replace("-", "[-_]")
    cgroups = subprocess.run(["grep", "-lE", f"pod{uid}", *_cgroup_files()], capture_output=True, text=True)
    pids = [int(path.split("/")[2]) for path in cgroups.stdout.split()]
    trainers = [pid for pid in pids if b"tunery_trainer" in _command_line(pid)]
    assert trainers, "no trainer process was found"
    for pid in trainers:
        subprocess.run(["kill", f"-{signal.SIGKILL.value}", str(pid)], check=True)


def _cgroup_files() -> list[str]:
    import glob

    return glob.glob("/proc/[0-9]*/cgroup")


def _command_line(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def test_a_deleted_pod_and_a_killed_trainer_resume(launch: Launch, kubectl: Kubectl, namespace: str) -> None:
    deleted, killed = launch("deleted", **LONG), launch("killed", **LONG)
    step = _checkpointed(deleted)
    (pod,) = [pod for pod in deleted.pods("train") if pod["status"]["phase"] == "Running"]
    kubectl.delete("pod", pod["metadata"]["name"], namespace, wait=False)
    _checkpointed(killed)
    _kill_trainer(killed)

    for job in (deleted, killed):
        status = job.wait_phase("Succeeded", timeout=500)
        assert status["attempts"] == 2, job.story()
        (done,) = [pod for pod in job.pods("train") if pod["status"]["phase"] == "Succeeded"]
        log = kubectl.run("logs", done["metadata"]["name"], "-n", namespace)
        assert "resum" in log.lower()
    assert deleted.status["checkpoint"]["step"] > step


def test_the_operator_is_killed_and_nothing_happens_twice(launch: Launch, kubectl: Kubectl) -> None:
    job = launch("steady", **(LONG | {"training": LONG["training"] | {"maxSteps": 150}}))
    for phase in (("Starting", "Training"), ("Training", "Evaluating", "Uploading", "Succeeded")):
        job.wait_phase(*phase)
        (pod,) = kubectl.list("pods", NAMESPACE, "app.kubernetes.io/name=tunery")
        kubectl.run("delete", "pod", pod["metadata"]["name"], "-n", NAMESPACE, "--grace-period=0", "--force")
        kubectl.run("rollout", "status", "deployment", "-n", NAMESPACE, "--timeout=90s")
    status = job.wait_phase("Succeeded", timeout=400)
    assert status["attempts"] == 1
    assert len(job.jobs("train")) == 1
    assert len([event for event in job.events() if event["reason"] == "Succeeded"]) == 1


def test_suspended_before_and_while_training(launch: Launch) -> None:
    job = launch("paused", suspend=True, **LONG)
    job.wait_phase("Suspended")
    assert job.pods("train") == []
    job.patch_spec(suspend=False)
    _checkpointed(job)
    job.patch_spec(suspend=True)
    job.wait_phase("Suspended")
    wait_for("the pod to stop", lambda: not [p for p in job.pods("train") if p["status"]["phase"] == "Running"], 150)
    step = job.status["checkpoint"]["step"]
    job.patch_spec(suspend=False)
    status = job.wait_phase("Succeeded", timeout=500)
    assert status["checkpoint"]["step"] >= step


def test_deletion_takes_everything_and_never_blocks(launch: Launch, kubectl: Kubectl, namespace: str) -> None:
    job = launch("gone", **LONG)
    job.wait_phase("Training", "Starting")
    wait_for("a pod", lambda: job.pods("train"), 60)
    kubectl.delete(job.kind, job.name, namespace)
    wait_for("Job and pods to go", lambda: not job.jobs("train") and not _alive(job), 30)


def _alive(job: Job) -> list[dict[str, Any]]:
    return [pod for pod in job.pods("train") if not pod["metadata"].get("deletionTimestamp")]
