"""Bad input is found on CPU, named, and costs nothing: no train Job is ever created."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.conftest import REPORT_FILES, ROWS, TINY, Launch, lorajob, report_place

from kit.jobs import Job
from kit.kubectl import Kubectl, KubectlError, wait_for
from kit.published import list_keys, split_uri

S3 = {"name": "s3"}
GPU = "nvidia.com/gpu"


def test_what_preflight_finds(launch: Launch, s3: Any) -> None:
    cases: dict[str, tuple[dict[str, Any], str, str]] = {
        "wrong-bucket": (
            {"output": {"uri": "s3://no-such-bucket/x", "secretRef": S3}},
            "StorageNotFound", "no-such-bucket",
        ),
        "missing-secret": (
            {"output": {"uri": "s3://adapters/x", "secretRef": {"name": "nobody-made-me"}}},
            "SecretNotFound", "nobody-made-me",
        ),
        "line-17": (
            {"dataset": {"uri": "s3://datasets/e2e/line-17.jsonl", "secretRef": S3}},
            "DatasetInvalid", "line 17",
        ),
        "unknown-module": (
            {"lora": {"targetModules": ["q_prj"]}},
            "InvalidSpec", "spec.lora.targetModules[0]",
        ),
        "no-model": ({"model": {"uri": "s3://models/nothing", "secretRef": S3}}, "ModelNotFound", "s3://models/nothing"),
        "no-data": (
            {"dataset": {"uri": "s3://datasets/e2e/none.jsonl", "secretRef": S3}},
            "DatasetNotFound", "s3://datasets/e2e/none.jsonl",
        ),
    }  # fmt: skip
    jobs = {name: launch(name, **blocks) for name, (blocks, _, _) in cases.items()}
    for name, (_, reason, named) in cases.items():
        status = jobs[name].wait_phase("Failed")
        assert status["failure"]["reason"] == reason, status["failure"]
        assert named in status["failure"]["message"]
        assert status["failure"]["hint"]
        assert jobs[name].jobs("train") == []
        assert status.get("gpuSeconds", 0) == 0
    assert_reported(jobs["line-17"], s3)


def assert_reported(job: Job, s3: Any) -> None:
    """Look at the data report of a job that was refused for its data: at a place of its own, named by the status."""
    place = report_place(job)
    uri = f"{place}/data-report.md"
    assert set(list_keys(s3, place)) == REPORT_FILES
    assert job.status["dataset"]["report"] == uri
    assert f"Data report: {uri}. To retry: " in job.failure["hint"]
    bucket, prefix = split_uri(place)
    document = json.loads(s3.get_object(Bucket=bucket, Key=f"{prefix}/data-report.json")["Body"].read())
    assert [(row["line"], row["field"]) for row in document["invalidRows"]] == [(17, "messages[0].content")]
    assert document["refused"]["reason"] == "DatasetInvalid"
    assert "line 17" in s3.get_object(Bucket=bucket, Key=f"{prefix}/data-report.md")["Body"].read().decode()


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        pytest.param({"lora": {"rank": 0}}, "spec.lora.rank", id="rank-0"),
        pytest.param({"lora": {"rnk": 8}}, 'rnk"', id="typo"),
        pytest.param({"training": {"epochs": 1, "maxSteps": 5}}, "spec.training", id="cel"),
    ],
)
def test_what_the_api_server_refuses(kubectl: Kubectl, namespace: str, spec: dict[str, Any], named: str) -> None:
    with pytest.raises(KubectlError, match=None) as caught:
        Job(kubectl, lorajob(namespace, "refused", **spec), namespace).apply()
    assert named in str(caught.value)


def test_a_typo_that_is_not_validated_strictly_is_pruned_and_harms_nothing(kubectl: Kubectl, namespace: str) -> None:
    manifest = lorajob(namespace, "pruned", suspend=True, lora={"rnk": 8})
    kubectl.run("apply", "-n", namespace, "--validate=false", "-f", "-", stdin=json.dumps(manifest))
    job = Job(kubectl, manifest, namespace)
    job.wait_phase("Suspended")
    stored = kubectl.get("lorajob", "pruned", namespace)
    assert stored is not None
    assert stored["spec"]["lora"] == {}


@pytest.fixture
def node_without_gpus(kubectl: Kubectl) -> Iterator[None]:
    """Let the node offer no `nvidia.com/gpu` for the time of a test."""
    (node,) = kubectl.list("nodes")
    offered = node["status"]["capacity"][GPU]

    def offer(count: str | None) -> None:
        patch = {"status": {"capacity": {GPU: count}, "allocatable": {GPU: count}}}
        kubectl.run("patch", "node", node["metadata"]["name"], "--subresource=status", "-p", json.dumps(patch))

    offer(None)
    yield
    offer(offered)


@pytest.mark.usefixtures("node_without_gpus")
@pytest.mark.parametrize("resource", [GPU, "example.com/tpu"])
def test_what_no_node_offers_is_said_within_a_minute(launch: Launch, resource: str) -> None:
    resources = {"gpus": 1, "gpuResource": resource, "cpu": "800m", "memory": "1Gi", "ephemeralStorage": "1Gi"}
    job = launch("nowhere", resources=resources, preflight="Skip")
    wait_for("Unschedulable", lambda: job.status.get("failure", {}).get("reason") == "Unschedulable", timeout=60)
    assert resource in job.status["failure"]["message"]


def test_the_fields_that_training_depends_on_cannot_change(launch: Launch) -> None:
    job = launch("fixed", suspend=True)
    with pytest.raises(KubectlError, match="model cannot be changed"):
        job.patch_spec(model={"uri": TINY + "-other"})
    with pytest.raises(KubectlError, match="training cannot be changed"):
        job.patch_spec(training={"seed": 1})
    job.patch_spec(ttlSecondsAfterFinished=100, activeDeadlineSeconds=500, suspend=True)
    assert job.manifest["spec"]["dataset"]["uri"] == ROWS
