"""What a pod says as it ends, after its Job was deleted: it is waited for, and taken into the status."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.operator.api import Json, eventually
from kit.operator.objects import RESULT, Namespace, lorajob
from kit.operator.poster import Poster
from kit.operator.process import OperatorProcess

CHECKPOINT: Json = {"uri": "s3://adapters/tunery-checkpoints/x/step-000019", "step": 19}
REPORT: Json = {
    "trainerStatus": {
        "step": 19,
        "totalSteps": 80,
        "checkpoint": CHECKPOINT,
        "checks": [{"name": "Baseline", "result": "Passed", "message": "3.052 before training"}],
    }
}


class Trainer:
    """The train pod of a LoRAJob on a node: it has been told to end, and its Job is gone."""

    def __init__(self, namespace: Namespace, operator: OperatorProcess, tls: Path) -> None:
        self.namespace = namespace
        self._operator, self._tls = operator, tls

    def stop(self, name: str, **spec: object) -> Poster:
        """Let a LoRAJob train until its own deadline or `stop` ends it; return its pod."""
        eventually("the namespace's ServiceAccount", lambda: self.namespace.get("serviceaccounts", "default"))
        self.namespace.apply(lorajob(name, preflight="Skip", **spec))
        pod = self.namespace.run_pod(f"{name}-train", node="n1")
        self.namespace.wait_running(name)
        poster = Poster(self.namespace, self._operator, self._tls, pod)
        if "activeDeadlineSeconds" not in spec:
            self.namespace.patch_spec(name, stop="enough")
        self.namespace.wait_phase(name, "Stopping")
        eventually("the Job is gone", lambda: self.namespace.get("jobs", f"{name}-train") is None)
        return poster


@pytest.fixture
def trainer(namespace: Namespace, operator: OperatorProcess, progress_tls: Path) -> Trainer:
    """A pod that can post."""
    return Trainer(namespace, operator, progress_tls)


def assert_kept(namespace: Namespace, name: str) -> None:
    """Assert that the status of a job that ran out of time says what was kept of it."""
    status = namespace.wait_phase(name, "Failed")
    assert status["failure"]["reason"] == "DeadlineExceeded"
    assert status["checkpoint"] == CHECKPOINT
    assert status["failure"]["facts"]["checkpoint"].startswith("step 19;")
    assert f"resumeFrom.loraJobRef.name: {name}." in status["failure"]["hint"]
    eventually("an event says so", lambda: "CheckpointSaved" in namespace.event_reasons(name))
    assert namespace.get("jobs", f"{name}-train") is None


def test_a_deadline_waits_for_the_checkpoint_that_its_pod_posts(trainer: Trainer) -> None:
    pod = trainer.stop("late", activeDeadlineSeconds=2)
    running = trainer.namespace.condition("late", "Running")
    assert (running["status"], running["reason"]) == ("True", "OutOfTime")
    assert running["message"] == (
        f"spec.activeDeadlineSeconds (2 s) has expired; pod {pod.name} is terminating, and may still write a checkpoint"
    )
    assert pod.post(pod.token(), REPORT) == 200
    trainer.namespace.stop_pod(pod.name)
    assert_kept(trainer.namespace, "late")
    assert trainer.namespace.status("late")["attempts"] == 1


def test_a_deadline_reads_the_last_words_of_a_pod_that_could_not_post(trainer: Trainer) -> None:
    pod = trainer.stop("mute", activeDeadlineSeconds=2)
    trainer.namespace.end_pod(pod.name, 143, {"checkpoint": CHECKPOINT})
    assert_kept(trainer.namespace, "mute")


@pytest.mark.slow
def test_a_deadline_that_is_raised_while_the_pod_ends_lets_the_job_go_on(trainer: Trainer) -> None:
    pod = trainer.stop("on", activeDeadlineSeconds=2)
    trainer.namespace.patch_spec("on", activeDeadlineSeconds=3600)
    trainer.namespace.stop_pod(pod.name)
    trainer.namespace.finish("on")
    assert trainer.namespace.wait_phase("on", "Succeeded")["attempts"] == 2


def test_what_it_posted_as_it_ended_stays_in_the_checklist(trainer: Trainer) -> None:
    pod = trainer.stop("told", onStop="Publish")
    assert pod.post(pod.token(), REPORT) == 200
    trainer.namespace.stop_pod(pod.name)
    # So long a message has lost the sentences.
    words = RESULT | {"stoppedAfterStep": 19, "checks": [{"name": "Baseline", "result": "Passed"}]}
    trainer.namespace.end_pod(trainer.namespace.run_pod("told-publish"), message=words)
    assert trainer.namespace.wait_phase("told", "Stopped")["checks"] == REPORT["trainerStatus"]["checks"]


@pytest.mark.slow
def test_nobody_is_told_to_delete_a_pod_that_stores_its_checkpoint(trainer: Trainer) -> None:
    names = ["s0", "s1", "s2"]
    pods = [trainer.stop(name).name for name in names]
    trainer.stop("late", activeDeadlineSeconds=1)
    events = eventually("all are told", lambda: told if len(told := _stops_told(trainer.namespace)) == 4 else None)
    for name, pod in zip(names, pods, strict=True):
        assert events[name] == f"pod {pod} on node n1 is terminating, and may still write a checkpoint"
    told = str(trainer.namespace.api.items(trainer.namespace.path("lorajobs"))) + str(events)
    assert "kubectl delete" not in told
    assert "earlier Job" not in told


def _stops_told(namespace: Namespace) -> dict[str, str]:
    """Return what was told of each LoRAJob as its pod was told to end."""
    events = namespace.api.items(f"/api/v1/namespaces/{namespace.name}/events")
    stops = [event for event in events if event["reason"] in ("Stopping", "OutOfTime")]
    return {event["involvedObject"]["name"]: event["message"] for event in stops}
