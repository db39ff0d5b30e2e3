"""From kubectl to an adapter in S3 that plain PEFT loads, with a status that tells the truth."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import REPORT_FILES, Launch, plain_peft_loss

from kit import kubectl_yaml
from kit.installation import ROOT
from kit.jobs import Job
from kit.kubectl import Kubectl, wait_for
from kit.published import download, s3_client


def test_the_quickstart_trains_and_publishes(
    kubectl: Kubectl, namespace: str, environment: dict[str, str], folder: Path
) -> None:
    manifest = kubectl_yaml.load((ROOT / "docs" / "examples" / "quickstart.yaml").read_text())
    manifest["spec"]["output"]["uri"] = f"s3://adapters/{namespace}/quickstart"
    job = Job(kubectl, manifest, namespace).apply()

    moving = wait_for("progress in kubectl get", lambda: _moving_row(kubectl, job), timeout=400)
    assert moving["PROGRESS"].endswith("%")
    assert float(moving["LOSS"]) > 0
    assert moving["METHOD"] == "QLoRA"
    assert re.fullmatch(r"CPU \(\d+ cores?\)", job.status["resolved"]["device"]), "told while it trains"

    status = job.wait_phase("Succeeded", timeout=600)
    assert job.condition("Succeeded")["status"] == "True"
    assert status["attempts"] == 1
    base, tuned = (float(status["metrics"][name]) for name in ("baseEvalLoss", "evalLoss"))
    assert tuned <= 0.8 * base
    found = download(s3_client(environment), status["adapter"]["uri"], folder)
    assert found["run"]["name"] == "quickstart"
    assert (
        json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "SmolLM2-135M-Instruct"
    )
    assert set(found["files"]) >= REPORT_FILES
    assert_measured(status)
    told = {"PreflightPassed", "Training", "AdapterUploaded", "Succeeded"}
    # Events are posted after the status that they tell of.
    wait_for("its events", lambda: told <= {event["reason"] for event in job.events()}, timeout=30)


def assert_measured(status: dict[str, Any]) -> None:
    """Look at what a status says of a run beside its result: estimated, measured, ticked off."""
    parts = {name: amount for name, amount in status["estimate"].items() if name.endswith("Bytes")}
    assert {"weightsBytes", "adapterBytes", "activationsBytes"} <= set(parts)
    summed = sum(parts.values()) - parts.get("rowBytes", 0)
    memory = status["memory"]
    assert summed == pytest.approx(memory["estimateBytes"], rel=0.01)
    assert status["estimate"]["steps"] == status["progress"]["totalSteps"] == 20
    assert memory["estimateBytes"] / 3 < memory["peakBytes"] < memory["availableBytes"]
    evaluations = status["evaluations"]  # twenty steps are few: while it trains, measuring would take too much time
    assert evaluations[-1]["step"] == 20
    assert status["metrics"]["evalLoss"] in [each["loss"] for each in evaluations]
    assert "±" in next(c["message"] for c in status["conditions"] if c["type"] == "Evaluated")
    assert {check["result"] for check in status["checks"]} <= {"Passed", "Warning", "Skipped"}
    ticked = {check["name"]: check["result"] for check in status["checks"]}
    assert (ticked["BaseFrozen"], ticked["OnlyAdapterTrains"], ticked["Labels"]) == ("Passed",) * 3
    report = status["dataset"]["report"]
    assert report == f"{status['adapter']['uri']}/data-report.md"


def _moving_row(kubectl: Kubectl, job: Job) -> dict[str, str] | None:
    """Return the row of `kubectl get lorajobs` once it shows progress between the ends."""
    text = kubectl.run("get", "lorajobs", job.name, "-n", job.namespace)
    header, row = text.splitlines()[:2]
    # By place, not by word: before the first loss that column is empty.
    starts = [found.start() for found in re.finditer(r"\S+", header)]
    columns = [slice(start, end) for start, end in zip(starts, [*starts[1:], None], strict=True)]
    shown = {header[column].strip(): row[column].strip() for column in columns}
    if shown["PHASE"] in {"Failed", "Succeeded"}:
        raise AssertionError(f"ended before it was seen moving\n{job.story()}")
    return shown if shown["LOSS"] and shown["PROGRESS"] not in {"", "0%", "100%"} else None


def test_plain_peft_gives_the_reported_evaluation_loss(launch: Launch, s3: Any, tmp_path: Path) -> None:
    job = launch("plain", dataset={"uri": "s3://datasets/e2e/rows.jsonl", "secretRef": {"name": "s3"},
                                   "evaluation": {"uri": "s3://datasets/e2e/rows.jsonl"}})  # fmt: skip
    status = job.wait_phase("Succeeded")
    adapter = tmp_path / "adapter"
    download(s3, status["adapter"]["uri"], adapter)
    reported = float(status["metrics"]["evalLoss"])
    assert abs(plain_peft_loss(s3, adapter) - reported) <= 0.001 * reported


def test_a_gpu_that_the_node_offers_is_scheduled_and_never_replaced_by_the_cpu(launch: Launch) -> None:
    """The node says that it has one, and has none: what a pod finds on a node whose driver does not work."""
    resources = {"gpus": 1, "cpu": "800m", "memory": "3Gi", "ephemeralStorage": "2Gi"}
    job = launch("gpu", resources=resources)
    status = job.wait_phase("Failed")
    (pod,) = job.pods("train")
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert status["gpuSeconds"] > 0
    assert status["failure"]["reason"] == "GPUUnavailable"
    assert "Found no NVIDIA driver" in status["failure"]["message"]
    assert "driver found: none; needed: 580 or later" in status["failure"]["message"]
    assert (status["failure"]["exitCode"], status["attempts"]) == (64, 1), "and it is not tried again"
    assert "scheduling" in status["failure"]["hint"]
