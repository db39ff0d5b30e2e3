"""A LoRAJob from its manifest to its end: published, or rejected before it trains."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kit.operator.api import Api, Refused
from kit.operator.process import OperatorProcess
from kit.published import download, list_keys
from kit.story import read_curve
from kit.workflows import BAD_ROWS, SECRET, Tenant, assert_adapts
from tools.cluster.s3 import S3Server


def test_a_qlora_job_publishes_an_adapter_that_peft_loads(
    tenant: Tenant, model: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    tenant.apply(tenant.lorajob("support", method="QLoRA", preflight="Required"))
    status = tenant.wait_phase("support", "Succeeded")

    s3, uri = s3_server.client(), f"s3://adapters/{tenant.name}/support"
    manifest = download(s3, uri, tmp_path)
    assert set(list_keys(s3, uri)) == {*manifest["files"], "manifest.json"}
    body = s3.get_object(Bucket="adapters", Key=f"{tenant.name}/support/manifest.json")["Body"].read()
    assert status["adapter"]["manifestSha256"] == hashlib.sha256(body).hexdigest()
    assert_adapts(model, tmp_path)
    assert read_curve(tmp_path)[-1]["step"] == status["progress"]["totalSteps"] == 12
    assert float(status["metrics"]["evalLoss"]) < float(status["metrics"]["baseEvalLoss"])
    assert [len(tenant.processes(role)) for role in ("preflight", "train")] == [1, 1]
    # The operator learns these from no pod's status: they came to its endpoint, over TLS.
    tenant.wait_event("support", "Succeeded")
    assert "Training" in tenant.event_reasons("support")


def test_a_bad_row_is_rejected_before_any_pod_trains(tenant: Tenant) -> None:
    dataset = {"uri": BAD_ROWS, "secretRef": SECRET}
    tenant.apply(tenant.lorajob("bad", dataset=dataset, preflight="Required"))
    failure = tenant.wait_phase("bad", "Failed")["failure"]
    assert (failure["reason"], failure["exitCode"]) == ("DatasetInvalid", 64)
    assert "line-17.jsonl line 17: completion: is missing" in failure["message"]
    assert "dataset.maxInvalidRows" in failure["hint"]
    assert tenant.get("jobs", "bad-train") is None
    assert tenant.processes("train") == []


def test_the_operator_may_not_read_the_secret_that_pods_use(tenant: Tenant, operator: OperatorProcess) -> None:
    with pytest.raises(Refused, match="cannot get resource"):
        Api(operator.kubeconfig).call("GET", tenant.path("secrets", "s3"))
