"""Stopped for good: nothing starts again, and what was trained is published once, whatever is killed meanwhile."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from integration.operator.test_kueue import QUEUE, hold, queued

from kit.fork_server import operator_server
from kit.operator.api import Api, Json, Refused, eventually
from kit.operator.objects import RESULT, Namespace, adaptermerge, lorajob
from kit.operator.process import OperatorProcess
from kit.operator.runs import run_of
from kit.operator.stage import make_namespace

KEPT: Json = RESULT | {
    "stoppedAfterStep": 40,
    "checkpoint": {"uri": "s3://adapters/tunery-checkpoints/x/step-000040", "step": 40},
}
LAST_WORDS: Json = {"checkpoint": KEPT["checkpoint"]}
NO_CHECKPOINT: Json = {"failure": {"reason": "CheckpointMissing", "message": "the run has stored no checkpoint"}}
NOT_IMPROVED: Json = {
    "failure": {"reason": "NotImproved", "message": "the evaluation loss went from 2.5 to 2.6"},
    "rejectedAdapter": {**RESULT["adapter"], "uri": "s3://adapters/x-rejected"},
    "stoppedAfterStep": 4,
}


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


@pytest.mark.slow
def test_a_suspended_job_is_published_from_the_checkpoint_it_had(namespace: Namespace) -> None:
    pod = train(namespace, "s")
    namespace.patch_spec("s", suspend=True)
    namespace.wait_phase("s", "Suspending")
    end(namespace, pod)
    namespace.wait_phase("s", "Suspended")
    namespace.patch_spec("s", stop="nobody needs more")
    publish(namespace, "s")
    status = namespace.wait_phase("s", "Stopped")
    assert status["adapter"] == RESULT["adapter"]
    assert namespace.condition("s", "Suspended") == {}


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
    end_of = train(namespace, "c")
    namespace.patch_spec("c", stop="enough")
    namespace.wait_phase("c", "Stopping")
    end(namespace, end_of)
    namespace.job("c-publish")
    namespace.patch_spec("c", onStop="Discard")
    namespace.wait_phase("c", "Stopped")
    eventually("the publishing Job is gone", lambda: jobs(namespace) == [])


def test_a_stop_that_comes_late_changes_nothing(namespace: Namespace) -> None:
    namespace.apply(lorajob("l", preflight="Skip"))
    namespace.finish("l")
    before = namespace.wait_phase("l", "Succeeded")
    namespace.patch_spec("l", stop="too late")
    eventually("it was seen", lambda: namespace.status("l")["observedGeneration"] > before["observedGeneration"])
    after = namespace.status("l")
    noted = {"observedGeneration": after["observedGeneration"]}
    assert after == {**before, **noted, "conditions": [{**each, **noted} for each in before["conditions"]]}
    assert jobs(namespace) == ["l-train"]


def test_a_pod_that_had_published_it_all_has_succeeded(namespace: Namespace) -> None:
    pod = train(namespace, "f")
    namespace.patch_spec("f", stop="enough")
    namespace.wait_phase("f", "Stopping")
    end(namespace, pod)
    publish(namespace, "f", RESULT)
    status = namespace.wait_phase("f", "Succeeded")
    assert "checkpoint" not in status
    assert namespace.condition("f", "Stopped") == {}


@pytest.mark.slow
def test_a_deadline_with_publish_is_a_stop(namespace: Namespace) -> None:
    pod = train(namespace, "t", activeDeadlineSeconds=2, onStop="Publish")
    namespace.wait_phase("t", "Stopping")
    end(namespace, pod)
    namespace.job("t-publish")
    # Raised too late: its Job is gone, and what it had is being published.
    namespace.patch_spec("t", activeDeadlineSeconds=3600)
    publish(namespace, "t")
    status = namespace.wait_phase("t", "Stopped")
    assert status["adapter"] == RESULT["adapter"]
    stopped = namespace.condition("t", "Stopped")
    assert stopped["reason"] == namespace.condition("t", "Succeeded")["reason"] == "DeadlineExceeded"
    assert jobs(namespace) == ["t-publish"]


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
def test_what_is_not_better_is_told_and_lies_beside_the_output(namespace: Namespace) -> None:
    pod = train(namespace, "r")
    namespace.patch_spec("r", stop="it does not learn")
    namespace.wait_phase("r", "Stopping")
    end(namespace, pod)
    publish(namespace, "r", NOT_IMPROVED, 64)
    status = namespace.wait_phase("r", "Stopped")
    assert status["rejectedAdapter"]["uri"] == "s3://adapters/x-rejected"
    assert "adapter" not in status
    assert status["stopped"] == {"reason": "StopRequested", "afterStep": 4}
    message = namespace.condition("r", "Stopped")["message"]
    assert message == "it does not learn; stopped after step 4; the evaluation loss went from 2.5 to 2.6"


@pytest.mark.slow
def test_what_cannot_be_published_fails_and_is_tried_again(namespace: Namespace) -> None:
    pod = train(namespace, "m")
    namespace.patch_spec("m", stop="enough")
    namespace.wait_phase("m", "Stopping")
    end(namespace, pod)
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
def test_a_job_that_has_failed_is_saved_by_a_stop_and_a_retry(namespace: Namespace) -> None:
    pod = train(namespace, "g", retries=0)
    words = {"failure": {"reason": "GPUOutOfMemory", "message": "at step 41"}, "checkpoint": KEPT["checkpoint"]}
    namespace.end_pod(pod, 64, words)
    namespace.wait_phase("g", "Failed")
    namespace.patch_spec("g", stop="take what is there")
    namespace.annotate("g", retry="1")
    publish(namespace, "g")
    assert namespace.wait_phase("g", "Stopped")["adapter"] == RESULT["adapter"]


@pytest.mark.slow
def test_a_word_that_is_lost_is_asked_for_again(namespace: Namespace) -> None:
    pod = train(namespace, "o")
    namespace.patch_spec("o", stop="enough")
    namespace.wait_phase("o", "Stopping")
    end(namespace, pod)
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
        pod = train(namespace, name, onStop="Publish" if name == "kept" else "Discard")
        namespace.patch_spec(name, stop="enough")
        namespace.wait_phase(name, "Stopping")
        end(namespace, pod)
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


@pytest.mark.slow
def test_killed_at_any_time_it_is_published_once(
    api: Api, operator: OperatorProcess, operator_kubeconfig: Path, tmp_path: Path
) -> None:
    assert operator.stop() == 0
    namespace, chance = make_namespace(api), random.Random(57)
    own = OperatorProcess(tmp_path / "killed", operator_kubeconfig, popen=operator_server().popen)

    def kill() -> None:
        time.sleep(chance.uniform(0.0, 0.15))
        own.kill()
        own.start()

    try:
        own.start()
        names = [f"k{index}" for index in range(4)]
        pods = {}
        for name in names:
            namespace.apply(lorajob(name, preflight="Skip"))
            pods[name] = namespace.run_pod(f"{name}-train", node="n1")
            namespace.wait_running(name)
        for name in names:
            namespace.patch_spec(name, stop="enough")
            kill()
        for name in names:
            eventually("the Job is gone", lambda name=name: namespace.get("jobs", f"{name}-train") is None)  # type: ignore[misc]
            end(namespace, pods[name])
            kill()
        for name in names:
            publish(namespace, name)
            kill()
        for name in names:
            status = namespace.wait_phase(name, "Stopped")
            assert status["attempts"] == 1
            assert status["adapter"] == RESULT["adapter"]
        assert Counter(jobs(namespace)) == Counter(f"{name}-publish" for name in names)
        assert "Bug in Tunery" not in own.log.read_text()
    finally:
        own.kill()
        operator.start()
