"""Preference tuning in pods; what was rejected is kept, and gone on with by another job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import PAIRS, RATINGS, Launch, resumed

from kit.published import download

pytestmark = pytest.mark.slow

SECRET = {"name": "s3"}
SETTINGS: dict[str, Any] = {
    "training": {"maxSteps": 20, "learningRate": 1e-2, "batchSize": 2, "gradientAccumulation": 1, "maxLength": 128},
}


def on(rows: str) -> dict[str, Any]:
    return {"uri": rows, "secretRef": SECRET}


def test_a_preference_is_learned(launch: Launch, s3: Any, folder: Path) -> None:
    tasks = {"DPO": PAIRS, "KTO": RATINGS}
    jobs = {task: launch(task.lower(), task=task, dataset=on(rows), **SETTINGS) for task, rows in tasks.items()}
    for task, job in jobs.items():
        status = job.wait_phase("Succeeded", timeout=400)
        metrics = status["metrics"]
        assert float(metrics["evalLoss"]) < float(metrics["baseEvalLoss"])
        assert float(metrics["evalRewardAccuracy"]) > 0.5
        assert float(metrics["evalRewardMargin"]) > 0
        assert f"reward accuracy {metrics['evalRewardAccuracy']}" in job.condition("Evaluated")["message"]
        assert status["progress"]["step"] == 20
        manifest = download(s3, status["adapter"]["uri"], folder / task)
        assert manifest["lineage"]["hyperparameters"]["task"] == task


def test_what_was_rejected_is_kept_and_gone_on_with(launch: Launch, s3: Any, folder: Path) -> None:
    of = {"task": "ORPO", "dataset": on(PAIRS), **SETTINGS}
    asked = launch("asked", evaluation={"minImprovement": 0.99}, retries=0, **of)
    status = asked.wait_phase("Failed", timeout=400)
    assert status["failure"]["reason"] == "NotImproved"
    assert "resumeFrom.loraJobRef.name: asked" in status["failure"]["hint"]
    assert "adapter" not in status
    place = status["rejectedAdapter"]["uri"]
    assert place.endswith("/asked-rejected")
    assert "minImprovement asks for −99.0 %" in download(s3, place, folder / "rejected")["lineage"]["rejected"]
    later = launch("later", resumeFrom={"loraJobRef": {"name": "asked"}}, **of)
    done = later.wait_phase("Succeeded", timeout=400)
    assert resumed(later) == 20
    assert done["metrics"]["evalLoss"] == status["metrics"]["evalLoss"]
    lineage = download(s3, done["adapter"]["uri"], folder / "later")["lineage"]
    assert [source["run"]["name"] for source in lineage["resumedFrom"]] == ["asked"]
    assert "rejected" not in lineage
