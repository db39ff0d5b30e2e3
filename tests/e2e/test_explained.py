"""A job says what is wrong with it, in what kubectl shows; and a dry run says what a job would find."""

from __future__ import annotations

import re
from typing import Any

from e2e.conftest import REPORT_FILES, ROWS, Launch, report_place

from kit.jobs import Job
from kit.kubectl import Kubectl
from kit.published import list_keys

SECRET = {"name": "s3"}
HELD_OUT = {"uri": ROWS, "secretRef": SECRET, "evaluation": {"fraction": 0.3}}
"""24 rows: below 8 there is no verdict."""


def at(rate: float, every: int) -> dict[str, Any]:
    """Return the blocks of a LoRAJob that trains 60 steps at a rate that is of no use."""
    training = {"maxSteps": 60, "learningRate": rate, "batchSize": 2, "gradientAccumulation": 1, "maxLength": 128}
    return {"dataset": HELD_OUT, "training": training, "evaluation": {"everySteps": every}, "preflight": "Skip"}


def test_useless_rates_and_a_dry_run(launch: Launch, kubectl: Kubectl, s3: Any) -> None:
    low = launch("low", **at(1e-5, 10))
    high = launch("high", **at(100, 5), diagnosis={"action": "Stop"})
    dry = launch("dry", preflight="Only", diagnosis={"showExample": True})

    status = low.wait_phase("Succeeded", timeout=400)
    (finding,) = [each for each in status["findings"] if each["type"] == "LearningRateTooLow"]
    assert (finding["severity"], finding["field"], finding["suggest"]) == ("Warning", "training.learningRate", "1e-4")
    assert "held-out loss fell by 0." in finding["message"]
    healthy = low.condition("Healthy")
    assert (healthy["status"], healthy["reason"]) == ("False", "LearningRateTooLow")
    assert healthy["message"] == finding["message"]
    assert columns(kubectl, low)["HEALTH"] == "LearningRateTooLow"
    assert columns(kubectl, low)["TASK"] == "SFT", "which the manifest does not say"
    assert [each["step"] for each in status["evaluations"]] == [10, 20, 30, 40, 50, 60]

    status = high.wait_phase("Failed", timeout=400)
    assert status["failure"]["reason"] == "NotImproved"
    assert re.search(r"stopped at step \d+ by diagnosis.action, NoGradient", status["failure"]["message"])
    assert status["progress"]["step"] < 60
    assert high.condition("Healthy")["reason"] == "NoGradient"
    assert columns(kubectl, high)["HEALTH"] == "NoGradient"
    assert len(high.pods("train")) == 1, "trained again it would end likewise"
    assert list_keys(s3, high.manifest["spec"]["output"]["uri"]) == []

    assert_dry(dry, s3)


def columns(kubectl: Kubectl, job: Job) -> dict[str, str]:
    """Return what `kubectl get -o wide` shows of an ended job, column by column."""
    text = kubectl.run("get", job.kind, job.name, "-n", job.namespace, "-o", "wide")
    header, row = text.splitlines()
    starts = [found.start() for found in re.finditer(r"\S+( \S+)*", header)]
    shown = [slice(start, end) for start, end in zip(starts, [*starts[1:], None], strict=True)]
    return {header[column].strip(): row[column].strip() for column in shown}


def assert_dry(job: Job, s3: Any) -> None:
    """Look at a dry run: it ends, says what it found, and trains nothing."""
    status = job.wait_phase("Succeeded", timeout=400)
    assert job.condition("Succeeded")["reason"] == "PreflightOnly"
    assert job.jobs("train") == []
    assert "adapter" not in status
    assert (status["dataset"]["rows"], status["dataset"]["invalidRows"]) == (80, 0)
    assert {value["name"] for value in status["resolved"]["values"]} >= {"lora.rank", "training.warmup"}
    assert status["estimate"]["steps"] == 20
    assert status["memory"]["estimateBytes"] > status["estimate"]["weightsBytes"] > 0
    assert {check["name"] for check in status["checks"]} >= {"LearningRate", "Labels", "ChatTemplate"}
    assert status["dataset"]["report"] == f"{report_place(job)}/data-report.md"
    assert set(list_keys(s3, report_place(job))) == REPORT_FILES
    assert list_keys(s3, job.manifest["spec"]["output"]["uri"]) == [], "the probe of the output is gone"
    (pod,) = job.pods("preflight")
    log = job.kubectl.run("logs", pod["metadata"]["name"], "-n", job.namespace)
    assert "[[Number 0, number 0. (0)<|im_end|>]]" in log
