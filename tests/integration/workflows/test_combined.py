"""Objects that need several trainings: a merge of adapters, and a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.operator.objects import adaptermerge, lorasweep
from kit.published import download, read_manifest
from kit.workflows import RESOURCES, Tenant, assert_adapts, training
from tools.cluster.s3 import S3Server


def test_a_merge_waits_for_its_lorajobs_and_publishes(
    tenant: Tenant, model: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    inputs = [{"loraJobRef": {"name": name}} for name in ("a", "b")]
    output = tenant.output("merged")
    tenant.apply(adaptermerge("merged", inputs, output=output, resources=RESOURCES))
    for name, seed in (("a", 1), ("b", 2)):
        tenant.apply(tenant.lorajob(name, training=training(6, seed=seed)))
    status = tenant.wait_phase("merged", "Succeeded", "adaptermerges")
    manifest = download(s3_server.client(), output["uri"], tmp_path)
    trained = [tenant.status(name)["adapter"]["uri"] for name in ("a", "b")]
    assert [each["uri"] for each in status["inputs"]] == trained
    assert [each["uri"] for each in manifest["lineage"]["inputs"]] == trained
    assert_adapts(model, tmp_path)
    assert [len(tenant.processes(role)) for role in ("train", "merge")] == [2, 1]


@pytest.mark.slow
def test_a_sweep_of_three_trials_publishes_the_best(
    tenant: Tenant, model: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    template = tenant.lorajob("template", preflight="Required")["spec"]
    del template["output"], template["training"]["learningRate"]
    rates = ["1e-5", "1e-2", "1e-3"]
    tenant.apply(
        lorasweep(
            "sweep",
            template=template,
            parameters=[{"path": "training.learningRate", "choices": rates}],
            initial=[{"training.learningRate": rate} for rate in rates],
            maxTrials=3,
            parallelTrials=3,
            output=tenant.output("sweep"),
        )
    )
    status = tenant.wait_phase("sweep", "Succeeded", "lorasweeps")
    values = {row["number"]: float(row["value"]) for row in status["trials"]}
    assert [row["state"] for row in status["trials"]] == ["Complete"] * 3
    assert status["best"]["trial"] == min(values, key=lambda number: values[number])
    s3 = s3_server.client()
    published = download(s3, status["adapter"]["uri"], tmp_path)
    best = read_manifest(s3, status["trials"][status["best"]["trial"]]["adapter"]["uri"])
    weights = [each["files"]["adapter_model.safetensors"]["sha256"] for each in (published, best)]
    assert weights[0] == weights[1]
    assert_adapts(model, tmp_path)
    assert [len(tenant.processes(role)) for role in ("preflight", "train", "publish-best")] == [1, 3, 1]
