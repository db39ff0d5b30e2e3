"""A job that is stopped keeps its worth: by hand, by its deadline, or not where nobody wants it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import CHECKPOINTS, LONG, REPORT_FILES, ROWS, Launch, checkpointed, plain_peft_loss

from kit.jobs import Job
from kit.kubectl import Kubectl
from kit.published import download, list_keys

pytestmark = pytest.mark.slow

WHY = "the loss is low enough"
STEPS = 100_000
SECRET = {"name": "s3"}
ENDLESS: dict[str, Any] = LONG | {
    "dataset": {"uri": ROWS, "secretRef": SECRET, "evaluation": {"uri": ROWS}},
    "evaluation": {"everySteps": 25},
    "training": LONG["training"] | {"maxSteps": STEPS, "warmup": 0},
    "resources": {"gpus": 0, "cpu": "600m", "memory": "2Gi", "ephemeralStorage": "2Gi"},
}
"""A LoRAJob that only a stop can end; three run at once."""


def test_what_was_trained_is_published_or_discarded(
    launch: Launch, kubectl: Kubectl, namespace: str, s3: Any, tmp_path: Path
) -> None:
    kept, thrown = launch("kept", **ENDLESS), launch("thrown", **ENDLESS, onStop="Discard")
    timed = launch("timed", **ENDLESS, onStop="Publish")
    for job in (kept, thrown, timed):
        checkpointed(job, timeout=400)
    timed.patch_spec(activeDeadlineSeconds=1)
    for job in (kept, thrown):
        job.patch_spec(stop=WHY)

    kubectl.run("wait", "lorajob", "--all", "-n", namespace, "--for=condition=Stopped", "--timeout=400s", timeout=420)
    for job in (kept, thrown, timed):
        assert job.wait_phase("Stopped", timeout=10)["attempts"] == 1, job.story()
        assert job.condition("Succeeded")["status"] == "False"
        assert job.jobs("train") == []
        assert job.pods("train") == [], "the pod that trained has ended before anything was published"
        assert list_keys(s3, f"{CHECKPOINTS}/{namespace}/{job.name}-{job.uid}"), "another job may go on from them"
    assert kept.condition("Stopped")["reason"] == "StopRequested"
    assert timed.condition("Stopped")["reason"] == "DeadlineExceeded"
    for job in (kept, timed):
        assert_published(job, s3, tmp_path)
    assert "adapter" not in thrown.status
    assert "Discard" in thrown.condition("Stopped")["message"]
    assert thrown.jobs("publish") == []
    assert list_keys(s3, thrown.manifest["spec"]["output"]["uri"]) == []


def assert_published(job: Job, s3: Any, folder: Path) -> None:
    """Look at an adapter that was published of a stop: the best weights, whole, and what is said of them."""
    status, adapter = job.status, folder / job.name
    manifest = download(s3, status["adapter"]["uri"], adapter)
    lineage, stopped = manifest["lineage"], manifest["lineage"]["stopped"]
    assert (WHY in stopped["why"]) == (job.name == "kept")
    assert stopped["ofSteps"] == STEPS
    assert stopped["afterStep"] == status["checkpoint"]["step"]
    measured = {each["step"]: each["loss"] for each in lineage["evaluations"]}
    assert lineage["step"] == min(measured, key=lambda step: measured[step]), "the best of what was measured"
    assert [each["step"] for each in status["evaluations"]] == list(measured)[-len(status["evaluations"]) :]
    assert f"after step {stopped['afterStep']}" in job.condition("Stopped")["message"]
    assert set(manifest["files"]) | {"manifest.json"} == set(list_keys(s3, status["adapter"]["uri"])), "and no claim"
    assert set(manifest["files"]) >= REPORT_FILES
    assert json.loads((adapter / "data-report.json").read_text())["rows"] == 80
    assert status["dataset"]["report"] == f"{status['adapter']['uri']}/data-report.md"
    reported = float(status["metrics"]["evalLoss"])
    assert abs(plain_peft_loss(s3, adapter) - reported) <= 0.01 * reported
    (pod,) = job.pods("publish")
    assert pod["status"]["phase"] == "Succeeded"
