"""From kubectl to an adapter in S3 that plain PEFT loads, with a status that tells the truth."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from .conftest import Launch
from kit.installation import ROOT
from kit.jobs import Job
from kit.kubectl import Kubectl, wait_for
from kit.published import download, list_keys, s3_client


def test_the_quickstart_trains_and_publishes(
    kubectl: Kubectl, namespace: str, environment: dict[str, str], folder: Path
) -> None:
    manifest = yaml.safe_load((ROOT / "docs" / "examples" / "quickstart.yaml").read_text())
    manifest["spec"]["output"]["uri"] = f"s3://adapters/{namespace}/quickstart"
    job = Job(kubectl, manifest, namespace).apply()

    moving = wait_for("progress in kubectl get", lambda: _moving_row(kubectl, job), timeout=400)
    assert moving["PROGRESS"].endswith("%")
    assert float(moving["LOSS"]) > 0
    assert (moving["MODEL"], moving["METHOD"]) == ("s3://models/SmolLM2-135M-Instruct", "QLoRA")

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
    told = {"PreflightPassed", "Training", "AdapterUploaded", "Succeeded"}
    # Events are posted after the status that they tell of.
    wait_for("its events", lambda: told <= {event["reason"] for event in job.events()}, timeout=30)


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


def test_plain_peft_gives_the_reported_evaluation_loss(
    launch: Launch, environment: dict[str, str], s3: Any, tmp_path: Path
) -> None:
    job = launch("plain", dataset={"uri": "s3://datasets/e2e/rows.jsonl", "secretRef": {"name": "s3"},
                                   "evaluation": {"uri": "s3://datasets/e2e/rows.jsonl"}})  # fmt: skip
    status = job.wait_phase("Succeeded")
    adapter, model = tmp_path / "adapter", tmp_path / "model"
    download(s3, status["adapter"]["uri"], adapter)
    model.mkdir()
    for key in list_keys(s3, "s3://models/tiny"):
        s3.download_file("models", f"tiny/{key}", str(model / key))
    s3.download_file("datasets", "e2e/rows.jsonl", str(tmp_path / "rows.jsonl"))
    script = Path(__file__).with_name("plain_peft_loss.py")
    told = subprocess.run(
        [sys.executable, str(script), str(model), str(adapter), str(tmp_path / "rows.jsonl")],
        env=os.environ | {"HF_HUB_OFFLINE": "1"}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    reported = float(status["metrics"]["evalLoss"])
    assert abs(float(told.stdout) - reported) <= 0.01 * reported


def test_a_gpu_that_the_node_offers_is_scheduled_and_never_replaced_by_the_cpu(launch: Launch) -> None:
    """The node says that it has one, and has none: what a pod finds on a node whose driver does not work."""
    resources = {"gpus": 1, "cpu": "800m", "memory": "3Gi", "ephemeralStorage": "2Gi"}
    job = launch("gpu", resources=resources, retries=0)
    status = job.wait_phase("Failed")
    (pod,) = job.pods("train")
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert status["gpuSeconds"] > 0
    assert status["failure"]["reason"] == "GPUUnavailable"
    assert "Found no NVIDIA driver" in status["failure"]["message"]
    assert "spec.scheduling" in status["failure"]["hint"]
