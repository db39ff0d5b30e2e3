"""Stopped for good: nothing starts again, and what was trained is published once, whatever is killed meanwhile."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest

from integration.operator.test_kueue import QUEUE, hold, queued

from kit.operator.api import Json, Refused, eventually
from kit.operator.objects import RESULT, Namespace, adaptermerge, lorajob
from kit.operator.runs import run_of

KEPT: Json = RESULT | {
    "stoppedAfterStep": 40,
    "checkpoint": {"uri": "s3://adapters/tunery-checkpoints/x/step-000040", "step": 40},
}
LAST_WORDS: Json = {"checkpoint": KEPT["checkpoint"]}
NO_CHECKPOINT: Json = {"failure": {"reason": "CheckpointMissing", "message": "the run has stored no checkpoint"}}


def train(namespace: Namespace, name: str, **spec: Any) -> str:
    """Apply a LoRAJob and let it train on a node; return its pod."""
    namespace.apply(lorajob(name, preflight="Skip", **spec))
    pod = namespace.run_pod(f"{name}-train", node="n1")
    namespace.wait_running(name)
    return pod


def end(namespace: Namespace, pod: str) -> None:
    """Let a pod that was told to end store its checkpoint and go."""
    # The garbage collection of pods may have been quicker: there is no Node of that name.
    with suppress(Refused):
        namespace.end_pod(pod, 143, LAST_WORDS)
    namespace.remove_pod(pod)


def stop(namespace: Namespace, name: str, **spec: Any) -> None:
    """Let a LoRAJob train, stop it, and let its pod end."""
    pod = train(namespace, name, **spec)
    namespace.patch_spec(name, stop="enough")
    namespace.wait_phase(name, "Stopping")
    end(namespace, pod)


def publish(namespace: Namespace, name: str, words: Json = KEPT, code: int = 0) -> None:
    """Run the publishing Job of a LoRAJob to its end."""
    namespace.end_pod(namespace.run_pod(f"{name}-publish"), code, words)


def jobs(namespace: Namespace) -> list[str]:
    """Return the names of all Jobs."""
    return sorted(job["metadata"]["name"] for job in namespace.api.items(namespace.path("jobs")))


def test_while_it_trains_its_best_becomes_the_adapter(namespace: Namespace) -> None:
    pod = train(namespace, "a")
    namespace.patch_spec("a", stop="the loss is low enough")
    status = namespace.wait_phase("a", "Stopping")
    assert namespace.condition("a", "Stopped")["reason"] == "Stopping"
    time.sleep(1)
    assert jobs(namespace) == [], "the pod still writes its checkpoint: nothing reads it yet"
    end(namespace, pod)
    job = namespace.job("a-publish")
    run = run_of(namespace, "a-publish")
    assert run["stop"] == "the loss is low enough"
    assert run["reportUri"].startswith(f"s3://adapters/tunery-reports/{namespace.name}/a-")
    assert set(run["secrets"]) == {"output"}
    assert "nvidia.com/gpu" not in str(job["spec"]["template"]["spec"]["containers"])
    assert job["spec"]["suspend"] is False
    publishing = namespace.run_pod("a-publish")
    namespace.wait_phase("a", "Uploading")
    namespace.end_pod(publishing, 0, KEPT)
    status = namespace.wait_phase("a", "Stopped")
    assert status["adapter"] == RESULT["adapter"]
    assert status["metrics"]["evalLoss"] == "1.4"
    assert status["checkpoint"]["step"] == 40, "another job may go on from it"
    assert "failure" not in status
    assert status["completionTime"]
    assert [entry["reason"] for entry in status["attemptHistory"]] == ["Stopped"]
    stopped, succeeded = (namespace.condition("a", type_) for type_ in ("Stopped", "Succeeded"))
    assert (stopped["status"], stopped["reason"]) == ("True", "StopRequested")
    assert stopped["message"].startswith(
        "the loss is low enough; stopped after step 40, evaluation loss 1.4, published at s3://adapters/x"
    )
    assert (succeeded["status"], succeeded["reason"]) == ("False", "StopRequested")
    assert namespace.condition("a", "Failed") == {}
    assert status["stopped"] == {"reason": "StopRequested", "afterStep": 40}
    assert namespace.api.columns(f"{namespace.path('lorajobs')}/a")["Reason"] == "StopRequested"
    time.sleep(2)
    assert jobs(namespace) == ["a-publish"]
    assert "StopRequested" in namespace.event_reasons("a")


def test_before_there_is_a_job(namespace: Namespace) -> None:
    namespace.apply(lorajob("w", continueFrom={"loraJobRef": {"name": "nobody"}}))
    namespace.wait_phase("w", "Waiting")
    namespace.patch_spec("w", stop="not needed any more")
    status = namespace.wait_phase("w", "Stopped")
    message = namespace.condition("w", "Stopped")["message"]
    assert message == "not needed any more; no pod had begun to train, so there is nothing to publish"
    assert "adapter" not in status
    assert jobs(namespace) == []


def test_while_preflight_runs(namespace: Namespace) -> None:
    namespace.apply(lorajob("p"))
    namespace.run_pod("p-preflight")
    namespace.patch_spec("p", stop="wrong data")
    namespace.wait_phase("p", "Stopped")
    eventually("the preflight is gone", lambda: jobs(namespace) == [])


def test_while_a_queue_holds_it(namespace: Namespace) -> None:
    namespace.apply(queued("q"))
    namespace.job("q-train")
    hold(namespace, "q-train")
    namespace.wait_phase("q", "Queued")
    namespace.patch_spec("q", stop="too late")
    namespace.wait_phase("q", "Stopped")
    eventually("its place is free", lambda: jobs(namespace) == [])
    assert namespace.condition("q", "QuotaReserved")["reason"] == "Released"


def test_what_a_queue_had_let_in_is_not_started_again(namespace: Namespace) -> None:
    namespace.apply(queued("k"))
    pod = namespace.run_pod("k-train", node="n1")
    namespace.wait_running("k")
    namespace.patch_spec("k", stop="enough")
    eventually("the Job is gone, and with it its quota", lambda: namespace.get("jobs", "k-train") is None)
    end(namespace, pod)
    assert QUEUE not in namespace.job("k-publish")["metadata"]["labels"], "publishing takes no quota of the GPUs"
    publish(namespace, "k")
    namespace.wait_phase("k", "Stopped")
    assert jobs(namespace) == ["k-publish"]


def test_discard_publishes_nothing(namespace: Namespace) -> None:
    pod = train(namespace, "d", onStop="Discard")
    namespace.patch_spec("d", stop="the data was wrong")
    namespace.wait_phase("d", "Stopping")
    namespace.end_pod(pod, 143, LAST_WORDS)
    status = namespace.wait_phase("d", "Stopped")
    assert "adapter" not in status
    assert status["checkpoint"] == LAST_WORDS["checkpoint"], "another job may go on from it"
    assert status["stopped"] == {"reason": "StopRequested", "afterStep": 40}
    assert namespace.condition("d", "Stopped")["message"] == (
        "the data was wrong; stopped after step 40; spec.onStop is Discard: nothing is published, and its checkpoints "
        "stay, the latest at s3://adapters/tunery-checkpoints/x/step-000040"
    )
    assert jobs(namespace) == []


def test_discard_may_be_said_while_it_is_published(namespace: Namespace) -> None:
    stop(namespace, "c")
    namespace.job("c-publish")
    namespace.patch_spec("c", onStop="Discard")
    namespace.wait_phase("c", "Stopped")
    eventually("the publishing Job is gone", lambda: jobs(namespace) == [])


@pytest.mark.slow
def test_a_deadline_without_a_checkpoint_fails_and_can_be_raised(namespace: Namespace) -> None:
    pod = train(namespace, "n", activeDeadlineSeconds=2, onStop="Publish")
    namespace.wait_phase("n", "Stopping")
    namespace.stop_pod(pod)
    publish(namespace, "n", NO_CHECKPOINT, 64)
    status = namespace.wait_phase("n", "Failed")
    assert status["failure"]["reason"] == "DeadlineExceeded"
    assert status["failure"]["message"].endswith("; the run has stored no checkpoint")
    assert namespace.condition("n", "Stopped") == {}
    namespace.patch_spec("n", activeDeadlineSeconds=3600)
    namespace.annotate("n", retry="1")
    namespace.finish("n")
    namespace.wait_phase("n", "Succeeded")


def test_a_deadline_fails_as_ever_where_nothing_is_said(namespace: Namespace) -> None:
    pod = train(namespace, "e", activeDeadlineSeconds=2)
    namespace.wait_phase("e", "Stopping")
    namespace.stop_pod(pod)
    assert namespace.wait_phase("e", "Failed")["failure"]["reason"] == "DeadlineExceeded"
    time.sleep(1)
    assert jobs(namespace) == []


@pytest.mark.slow
def test_what_cannot_be_published_fails_and_is_tried_again(namespace: Namespace) -> None:
    stop(namespace, "m")
    refused = {"failure": {"reason": "StorageAccessDenied", "message": "s3://adapters/m: access denied"}}
    publish(namespace, "m", refused, 64)
    status = namespace.wait_phase("m", "Failed")
    assert status["failure"]["reason"] == "StorageAccessDenied"
    assert "what was trained could not be published" in status["failure"]["message"]
    namespace.annotate("m", retry="1")
    publish(namespace, "m")
    assert namespace.wait_phase("m", "Stopped")["adapter"] == RESULT["adapter"]
    assert jobs(namespace) == ["m-publish"], "nothing has trained again"


@pytest.mark.slow
def test_a_word_that_is_lost_is_asked_for_again(namespace: Namespace) -> None:
    stop(namespace, "o")
    first = namespace.job("o-publish")["metadata"]["uid"]
    publishing = namespace.run_pod("o-publish")
    # Gone before anybody read its words.
    namespace.api.patch(
        namespace.path("pods", publishing), {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}}
    )
    namespace.end_pod(publishing, 0, KEPT)
    namespace.remove_pod(publishing)
    eventually(
        "another Job asks",
        lambda: (namespace.get("jobs", "o-publish") or {"metadata": {"uid": first}})["metadata"]["uid"] != first,
        40,
    )
    publish(namespace, "o")
    namespace.wait_phase("o", "Stopped")


@pytest.mark.slow
def test_what_waits_for_it_takes_its_adapter_or_is_told(namespace: Namespace) -> None:
    for name in ("kept", "bare"):
        stop(namespace, name, onStop="Publish" if name == "kept" else "Discard")
    publish(namespace, "kept")
    namespace.wait_phase("kept", "Stopped")
    namespace.wait_phase("bare", "Stopped")
    namespace.apply(adaptermerge("both", [{"loraJobRef": {"name": "kept"}}, {"uri": "s3://adapters/other"}]))
    assert run_of(namespace, "both-merge")["adapters"][0] == {
        "uri": "s3://adapters/x",
        "manifestSha256": RESULT["adapter"]["manifestSha256"],
    }
    namespace.apply(lorajob("on", preflight="Skip", continueFrom={"loraJobRef": {"name": "bare"}}))
    failure = namespace.wait_phase("on", "Failed")["failure"]
    assert failure["message"] == "LoRAJob bare, which this waits for, was stopped and has published no adapter"
    assert [each["action"] for each in failure["remedies"]] == ["Recreate"], "a stopped one is final"
    namespace.apply(lorajob("again", preflight="Skip", resumeFrom={"loraJobRef": {"name": "bare"}}))
    assert run_of(namespace, "again-train")["resumeUri"].startswith("s3://adapters/tunery-checkpoints/")


def test_a_stopped_job_stays_so_and_expires(namespace: Namespace) -> None:
    namespace.apply(lorajob("x", preflight="Skip", stop="from the start", ttlSecondsAfterFinished=3600))
    namespace.wait_phase("x", "Stopped")
    namespace.annotate("x", retry="1")
    time.sleep(2)
    assert namespace.status("x")["phase"] == "Stopped"
    assert jobs(namespace) == []
    namespace.patch_spec("x", ttlSecondsAfterFinished=1)
    eventually("it has expired", lambda: namespace.get("lorajobs", "x") is None)
