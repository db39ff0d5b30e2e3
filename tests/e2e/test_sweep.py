"""A sweep on a real node: real trials, one stopped by hand, and the best published, which plain PEFT loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import lorajob, plain_peft_loss

from kit.jobs import Job
from kit.kubectl import Kubectl, wait_for
from kit.published import download, list_keys

PICTURES = {"sweep-history.png", "sweep-parallel.png", "sweep-curves.png"}


def lorasweep(namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    """Return a sweep of learning rate and rank over LoRAJobs of a few seconds; keywords are fields of its spec."""
    job = lorajob(namespace, name)["spec"]
    output = job.pop("output")
    del job["training"]["learningRate"]
    job["dataset"]["evaluation"] = {"uri": "s3://datasets/e2e/rows.jsonl"}  # the rows of plain_peft_loss
    job["evaluation"] = {"times": 8}
    job["resources"]["cpu"] = "700m"
    common = {
        "template": job,
        "parameters": [
            {"path": "training.learningRate", "range": {"min": 1e-4, "max": 1e-1, "log": True}},
            {"path": "lora.rank", "choices": ["4", "8", "16"]},
        ],
        "initial": [{"training.learningRate": rate, "lora.rank": "8"} for rate in ("1e-2", "5e-3")],
        "output": output,
    }
    return {
        "apiVersion": "tunery.dev/v1alpha1",
        "kind": "LoRASweep",
        "metadata": {"name": name},
        "spec": common | spec,
    }


def test_four_trials_two_at_a_time_lead_to_the_best_adapter(
    kubectl: Kubectl, namespace: str, s3: Any, tmp_path: Path
) -> None:
    sweep = Job(kubectl, lorasweep(namespace, "support", maxTrials=4, parallelTrials=2), namespace).apply()
    second = Job(kubectl, {"kind": "LoRAJob", "metadata": {"name": "support-001"}}, namespace)
    wait_for("the second trial", lambda: second.status.get("phase"), timeout=300)
    second.patch_spec(stop="one of them by hand")
    status = sweep.wait_phase("Succeeded", timeout=900)

    rows = status["trials"]
    assert [row["state"] for row in rows] == ["Complete", "Pruned", "Complete", "Complete"]
    assert rows[1]["why"] == "by hand: one of them by hand"
    assert rows[0]["parameters"] == {"lora.rank": "8", "training.learningRate": "0.01"}
    trials = kubectl.list("lorajobs", namespace, "tunery.dev/sweep=support")
    checked = {job["metadata"]["name"]: job["spec"]["preflight"] for job in trials}
    assert (checked["support-000"], checked["support-001"]) == ("Required", "Skip"), "it differs in its rate alone"
    assert status["best"]["value"] == min((row["value"] for row in rows if row["state"] == "Complete"), key=float)
    assert float(status["best"]["value"]) < float(status["best"]["baseValue"])

    adapter = tmp_path / "adapter"
    manifest = download(s3, status["adapter"]["uri"], adapter)
    assert set(manifest["files"]) >= PICTURES | {"sweep.json", "README.md"}
    assert manifest["lineage"]["sweep"]["trial"] == status["best"]["trial"]
    assert json.loads((adapter / "sweep.json").read_text())["trials"] == rows
    assert manifest["lineage"]["metrics"]["evalLoss"] == pytest.approx(float(status["best"]["value"]), rel=1e-3)
    assert plain_peft_loss(s3, adapter) == pytest.approx(float(status["best"]["value"]), rel=0.001)
    kept = {key.split("/")[0] for key in list_keys(s3, f"{status['adapter']['uri']}-trials/{sweep.uid}")}
    assert kept == {f"{status['best']['trial']:03d}"}, "the others' adapters are removed"
    told = {event["reason"] for event in sweep.events()}
    assert {"NewBest", "AdapterUploaded", "Succeeded"} <= told
