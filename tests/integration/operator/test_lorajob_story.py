"""A LoRAJob from apply to its end, against a real API server; the tests play the kubelet."""

from __future__ import annotations

import pytest

from kit.operator.api import Refused, eventually
from kit.operator.objects import REPORT, RESULT, Namespace, lorajob
from kit.operator.runs import run_of


def test_preflight_then_training_then_succeeded(namespace: Namespace) -> None:
    namespace.apply(lorajob("a"))
    namespace.job("a-preflight")
    assert namespace.get("jobs", "a-train") is None
    namespace.pass_preflight("a")
    namespace.job("a-train")
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


def test_the_resolved_revision_goes_into_the_train_run(namespace: Namespace) -> None:
    created = namespace.apply(lorajob("rev"))
    namespace.pass_preflight("rev")
    namespace.job("rev-train")
    run = run_of(namespace, "rev-train")
    assert run["modelRevision"] == "0123abc"
    assert run["identity"] == {
        "kind": "LoRAJob",
        "namespace": namespace.name,
        "name": "rev",
        "uid": created["metadata"]["uid"],
    }


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


@pytest.mark.parametrize(("asked", "disk"), [(None, "71Gi"), ("60Gi", "60Gi")], ids=["left-open", "asked"])
def test_a_disk_that_is_left_open_is_what_preflight_counts(namespace: Namespace, asked: str | None, disk: str) -> None:
    resources = {"gpus": 0} | ({"ephemeralStorage": asked} if asked else {})
    namespace.apply(lorajob("disk", resources=resources))
    namespace.pass_preflight("disk")
    pod = namespace.job("disk-train")["spec"]["template"]["spec"]
    amounts = pod["containers"][0]["resources"]
    assert amounts["requests"]["ephemeral-storage"] == amounts["limits"]["ephemeral-storage"] == disk
    assert {"name": "work", "emptyDir": {"sizeLimit": disk}} in pod["volumes"]
    assert run_of(namespace, "disk-train")["disk"] == {
        "bytes": int(disk[:-2]) * 2**30,
        "field": "spec.resources.ephemeralStorage",
    }


def test_preflight_skipped(namespace: Namespace) -> None:
    namespace.apply(lorajob("s", preflight="Skip"))
    namespace.finish("s")
    namespace.wait_phase("s", "Succeeded")
    assert namespace.get("jobs", "s-preflight") is None


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


def test_exhausted_retries_name_the_last_attempts_reason(namespace: Namespace) -> None:
    namespace.apply(lorajob("e", preflight="Skip", retries=0))
    namespace.end_pod(namespace.run_pod("e-train"), 137)
    failure = namespace.wait_phase("e", "Failed")["failure"]
    assert failure["reason"] == "Killed"
    assert failure["exitCode"] == 137


def test_exit_64_is_never_retried(namespace: Namespace) -> None:
    namespace.apply(lorajob("u", preflight="Skip", retries=5))
    words = {"failure": {"reason": "OutputExists", "message": "s3://adapters/u holds a manifest.json"}}
    namespace.end_pod(namespace.run_pod("u-train"), 64, words)
    status = namespace.wait_phase("u", "Failed")
    assert status["failure"]["reason"] == "OutputExists"
    assert status["attempts"] == 1


def test_complete_without_a_result_asks_the_bucket(namespace: Namespace) -> None:
    namespace.apply(lorajob("n", preflight="Skip"))
    namespace.end_pod(namespace.run_pod("n-train"), message="bye")
    words = {"failure": {"reason": "AdapterMissing", "message": "nothing of this run is at s3://adapters/n"}}
    namespace.end_pod(namespace.run_pod("n-report"), 64, words)
    status = namespace.wait_phase("n", "Failed")
    assert "adapter" not in status
    assert "nothing of this run" in status["failure"]["message"]


def test_the_report_job_has_no_gpu_and_opens_the_output_only(namespace: Namespace) -> None:
    resources = {"gpus": 1, "memory": "1Gi"}
    namespace.apply(lorajob("g", preflight="Skip", resources=resources, model={"uri": "pvc://models/tiny"}))
    namespace.end_pod(namespace.run_pod("g-train"), message="bye")
    pod = namespace.job("g-report")["spec"]["template"]["spec"]
    assert "nvidia.com/gpu" not in pod["containers"][0]["resources"]["limits"]
    assert [volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume] == []
    assert list(run_of(namespace, "g-report")["secrets"]) == ["output"]
    namespace.end_pod(namespace.run_pod("g-report"), message=RESULT)
    assert namespace.wait_phase("g", "Succeeded")["adapter"] == RESULT["adapter"]


def test_a_pod_that_cannot_start_says_why_and_it_passes(namespace: Namespace) -> None:
    namespace.apply(lorajob("w", preflight="Skip"))
    eventually("Unschedulable", lambda: namespace.status("w").get("failure", {}).get("reason") == "Unschedulable")
    namespace.wait_pod("w-train", "ImagePullBackOff", 'Back-off pulling image "example/trainer:1"')
    # The scheduler's verdict stands beside it; the image is the nearer cause.
    eventually("ImagePull", lambda: namespace.status("w").get("failure", {}).get("reason") == "ImagePullFailed")
    assert namespace.status("w")["phase"] == "Starting"
    namespace.run_pod("w-train")
    assert "failure" not in namespace.wait_running("w")


def test_an_invalid_spec_that_the_schema_lets_through_names_its_field(namespace: Namespace) -> None:
    # An object that predates a rule: only Python checks that the platform has a default output.
    namespace.apply(lorajob("i", output={}))
    failure = namespace.wait_phase("i", "Failed")["failure"]
    assert failure["reason"] == "InvalidSpec"
    assert failure["message"].startswith("spec.output.uri: is required")
    assert namespace.get("jobs", "i-preflight") is None


def test_the_schema_refuses_rank_zero(namespace: Namespace) -> None:
    with pytest.raises(Refused, match=r"spec\.lora\.rank"):
        namespace.apply(lorajob("z", lora={"rank": 0}))


def test_one_event_for_each_transition(namespace: Namespace) -> None:
    namespace.apply(lorajob("ev", preflight="Skip"))
    # The cluster has no node, so the pod may be unschedulable before the operator sees it at all.
    eventually("the first event", lambda: {"Starting", "Unschedulable"} & set(namespace.event_reasons("ev")))
    namespace.finish("ev")
    namespace.wait_phase("ev", "Succeeded")

    eventually("the last event", lambda: "Succeeded" in namespace.event_reasons("ev"))
    found = namespace.event_reasons("ev")
    assert len(found) == len(set(found))
    assert {"AdapterUploaded", "Evaluated", "Succeeded"} <= set(found)


def test_preflight_waits_for_the_report_before_the_train_job(namespace: Namespace) -> None:
    namespace.apply(lorajob("q"))
    namespace.end_pod(namespace.run_pod("q-preflight"), message="not json")
    assert namespace.wait_phase("q", "Failed")["failure"]["reason"] == "InternalError"
    assert namespace.get("jobs", "q-train") is None
    assert REPORT["dataset"]["rows"] == 90
