"""A LoRAJob from apply to its end, against a real API server; the tests play the kubelet."""

from __future__ import annotations

from kit.operator.api import eventually
from kit.operator.objects import REPORT, RESULT, Namespace, lorajob
from kit.operator.runs import run_of


def test_preflight_then_training_then_succeeded(namespace: Namespace) -> None:
    created = namespace.apply(lorajob("a"))
    namespace.job("a-preflight")
    assert namespace.get("jobs", "a-train") is None
    namespace.pass_preflight("a")
    run = run_of(namespace, "a-train")
    assert run["modelRevision"] == "0123abc"
    uid = created["metadata"]["uid"]
    assert run["identity"] == {"kind": "LoRAJob", "namespace": namespace.name, "name": "a", "uid": uid}
    assert run["disk"] == {"bytes": 71 * 2**30, "field": "spec.resources.ephemeralStorage"}, "as preflight counted"
    status = namespace.status("a")
    assert status["dataset"]["rows"] == 90
    assert status["resolved"]["revision"] == "0123abc"
    pod = namespace.run_pod("a-train")
    assert namespace.wait_running("a")["podName"] == pod
    namespace.end_pod(pod, message=RESULT)
    status = namespace.wait_phase("a", "Succeeded")
    assert status["adapter"] == RESULT["adapter"]
    assert status["attempts"] == 1
    assert status["metrics"]["evalLoss"] == "1.4"
    assert status["jobName"] == "a-train"
    assert "failure" not in status
    true = {c["type"] for c in status["conditions"] if c["status"] == "True"}
    assert true == {"Validated", "Preflight", "Evaluated", "AdapterUploaded", "Succeeded", "Finished"}
    for job in ("a-preflight", "a-train"):
        eventually(f"{job} is marked", lambda job=job: namespace.job(job)["metadata"]["labels"].get("tunery.dev/done"))
    eventually("the last event", lambda: "Succeeded" in namespace.event_reasons("a"))
    # The cluster has no node: the scheduler may be quicker than the test's kubelet, with either pod.
    told = [reason for reason in namespace.event_reasons("a") if reason != "Unschedulable"]
    assert len(told) == len(set(told)), "one event for each transition"
    assert {"AdapterUploaded", "Evaluated", "Succeeded"} <= set(told)


def test_training_gets_the_adapter_that_preflight_has_read(namespace: Namespace) -> None:
    """Until another try, after what lay there was changed: that takes what is there now."""
    uri, seen = "hf://me/adapter", {"sha256": "ab" * 32, "revision": "0123abc"}
    namespace.apply(lorajob("ce", continueFrom={"uri": uri, "revision": "main"}, retries=0))
    assert run_of(namespace, "ce-preflight")["adapters"] == [{"uri": uri}]
    told = {**REPORT["resolved"], "continuedFrom": {"uri": uri, "origin": "Unverified", **seen}}
    namespace.end_pod(namespace.run_pod("ce-preflight"), message={**REPORT, "resolved": told})
    pod = namespace.run_pod("ce-train")
    assert run_of(namespace, "ce-train")["adapters"] == [{"uri": uri, **seen}]
    assert "continue-from" not in run_of(namespace, "ce-train")["secrets"], "an output's Secret opens no hub"
    assert namespace.status("ce")["resolved"]["continuedFrom"]["origin"] == "Unverified"
    changed = {"failure": {"reason": "AdapterCorrupt", "message": "spec.continueFrom: it was changed"}}
    namespace.end_pod(pod, 64, changed)
    namespace.wait_phase("ce", "Failed")
    namespace.annotate("ce", retry="1")
    eventually("it is tried again", lambda: namespace.status("ce")["phase"] != "Failed")
    namespace.run_pod("ce-train")
    assert run_of(namespace, "ce-train")["adapters"] == [{"uri": uri}]


def test_preflight_failure_ends_the_job_before_training(namespace: Namespace) -> None:
    namespace.apply(lorajob("p"))
    failure = {"reason": "DatasetInvalid", "message": "spec.dataset.uri: d.jsonl line 17: no completion"}
    namespace.end_pod(namespace.run_pod("p-preflight"), 64, {"failure": failure})
    status = namespace.wait_phase("p", "Failed")
    assert status["failure"]["reason"] == "DatasetInvalid"
    assert "line 17" in status["failure"]["message"]
    assert status["failure"]["hint"]
    assert status["failure"]["exitCode"] == 64
    assert namespace.get("jobs", "p-train") is None


def test_a_failed_attempt_is_retried_and_counted(namespace: Namespace) -> None:
    namespace.apply(lorajob("r", preflight="Skip", retries=2))
    first = namespace.run_pod("r-train")
    namespace.wait_running("r")
    namespace.end_pod(first, 137, reason="OOMKilled")
    eventually("the failed attempt shows", lambda: namespace.condition("r", "Running").get("reason") == "AttemptFailed")
    assert "Failed" not in {c["type"] for c in namespace.status("r")["conditions"]}
    second = namespace.run_pod("r-train")
    assert second != first
    namespace.end_pod(second, message=RESULT)
    assert namespace.wait_phase("r", "Succeeded")["attempts"] == 2
    assert namespace.get("jobs", "r-preflight") is None


def test_a_pod_that_cannot_start_says_why_and_it_passes(namespace: Namespace) -> None:
    namespace.apply(lorajob("w", preflight="Skip"))
    eventually("Unschedulable", lambda: namespace.status("w").get("failure", {}).get("reason") == "Unschedulable")
    namespace.wait_pod("w-train", "ImagePullBackOff", 'Back-off pulling image "example/trainer:1"')
    # The scheduler's verdict stands beside it; the image is the nearer cause.
    eventually("ImagePull", lambda: namespace.status("w").get("failure", {}).get("reason") == "ImagePullFailed")
    assert namespace.status("w")["phase"] == "Starting"
    namespace.run_pod("w-train")
    assert "failure" not in namespace.wait_running("w")
