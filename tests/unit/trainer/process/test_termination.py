"""The termination message fits into what Kubernetes keeps, stays JSON, and hides secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunery_api.failures import Failure
from tunery_api.findings import CHECK_PENDING, CheckName, CheckStatus, FindingStatus
from tunery_api.measured import DatasetStatus, MemoryStatus
from tunery_api.names import TERMINATION_LIMIT
from tunery_api.reasons import FailureReason
from tunery_api.redact import redact, register_secret
from tunery_api.remedies import MAX_FACTS, MAX_REMEDIES, MAX_REMEDY, Action, Remedy, retry
from tunery_api.runspec import PreflightReport, RunResult, Task
from tunery_api.status import AdapterStatus, CheckpointStatus, MergeInputStatus, ResolvedStatus, ResolvedValue
from tunery_common.termination import failed_message, termination_bytes, write_termination

DATA = Path(__file__).resolve().parents[3] / "data" / "words"


def _large_result() -> RunResult:
    return RunResult(
        adapter=AdapterStatus(uri="s3://b/" + "p" * 900, manifest_sha256="a" * 64, size_bytes=1),
        dataset=DatasetStatus(rows=10, first_invalid=["ü" * 500] * 5),
        memory=MemoryStatus(estimate_bytes=1),
        resolved=ResolvedStatus(
            rank=8,
            target_modules=["m" * 200] * 20,
            values=[ResolvedValue(name="n", value="v" * 200, source="Preset")] * 30,
        ),
        inputs=[MergeInputStatus(uri="s3://b/" + "i" * 300, rank=1)] * 3,
    )


def test_termination_message_drops_the_optional_parts_in_order() -> None:
    data = termination_bytes(_large_result())
    assert len(data) <= TERMINATION_LIMIT
    document = json.loads(data)
    assert RunResult.model_validate(document).adapter is not None
    assert document["resolved"] == {"rank": 8}
    assert document["dataset"] == {"rows": 10}
    assert len(document["inputs"]) == 3


def test_what_a_rank_is_for_is_dropped_first() -> None:
    """It is advice: nothing else is lost because of it, and the reason of a value that memory changed stays."""

    def report(reason: str | None, room: str) -> PreflightReport:
        rank = ResolvedValue(name="lora.rank", value="16", source="Default", reason=reason)
        batch = ResolvedValue(name="training.batchSize", value="2", source="Memory", reason="memory ran out")
        dataset = DatasetStatus(rows=10, ignored_columns=["c"], first_invalid=["x" * 500] * 5)
        targets = ["m" * 200] * 2
        values = ResolvedStatus(method_reason=room, target_modules=targets, values=[batch, rank])
        return PreflightReport(dataset=dataset, resolved=values)

    reason = "moderate adaptation: general instruction tuning"
    room = "x" * (TERMINATION_LIMIT - len(termination_bytes(report(None, ""))))
    assert termination_bytes(report(reason, room)) == termination_bytes(report(None, room))
    assert len(termination_bytes(report(None, room))) == TERMINATION_LIMIT
    assert reason in termination_bytes(report(reason, "x")).decode()


def test_an_ordinary_preflight_keeps_its_estimate() -> None:
    """As the demo's said it, with every sentence, and the longest names of a namespace and of a job."""
    report = PreflightReport.model_validate_json((DATA / "preflight.json").read_text())
    assert report.dataset is not None
    place = f"s3://adapters/tunery-reports/{'n' * 63}/{'j' * 63}-{'u' * 36}/data-report.md"
    long = report.model_copy(update={"dataset": report.dataset.model_copy(update={"report": place})})
    said = PreflightReport.model_validate_json(termination_bytes(long))
    assert said.estimate == report.estimate
    assert said.resolved is not None
    names = {value.name for value in said.resolved.values or []}
    assert {"task", "lora.rank", "training.warmup"} <= names, "what the manifest left open"
    assert said.dataset is not None
    assert (said.dataset.rows, said.dataset.invalid_rows, said.dataset.report) == (749, 0, place)
    wanted = {each.name: each.message for each in report.checks or [] if each.message != CHECK_PENDING}
    assert {each.name: each.message for each in said.checks or [] if each.message} == wanted
    assert len(said.checks or []) == len(CheckName)


def test_what_could_not_be_checked_is_said_longer_than_what_passed() -> None:
    """Where a job leaves all open: of a dry run nobody has said why before."""
    document = json.loads((DATA / "preflight.json").read_text())
    for value in document["resolved"]["values"]:
        value["source"] = "Default"
    unknown = "training takes about 1 GB; what a GPU has is not known before training"
    for check in document["checks"]:
        if check["name"] == "BatchFits":
            check |= {"result": "Skipped", "message": unknown}
    said = json.loads(termination_bytes(PreflightReport.model_validate(document)))
    assert "estimate" in said
    assert {check.get("message") for check in said["checks"] if check["result"] == "Passed"} == {None}
    assert [check["message"] for check in said["checks"] if check["name"] == "BatchFits"] == [unknown]


def test_what_the_manifest_sets_makes_room_but_for_the_task_and_the_checkpoint() -> None:
    document = json.loads((DATA / "preflight.json").read_text())
    document["dataset"]["report"] = "s3://" + "x" * 200
    document["resolved"]["values"].append({"name": "resumeFrom", "value": "the checkpoint of step 20"})
    for value in document["resolved"]["values"]:
        value["source"] = "Manifest"
    said = json.loads(termination_bytes(PreflightReport.model_validate(document)))
    assert [value["name"] for value in said["resolved"]["values"]] == ["task", "resumeFrom"]


def test_of_findings_and_checks_the_sentences_go_and_the_verdicts_stay() -> None:
    """The sentences were posted while it ran."""
    findings = [
        FindingStatus(type=f"F{place}", severity="Warning", step=1, field="f", suggest="1", message="x" * 400)
        for place in range(12)
    ]
    checks = [CheckStatus(name=f"C{place}", result="Passed", message="y" * 60) for place in range(14)]
    checks.append(CheckStatus(name="Alpha", result="Warning", message="512 is 64 times the rank"))
    small = json.loads(termination_bytes(RunResult(findings=findings[:2], checks=checks)))
    assert [each["message"] for each in small["findings"]] == ["x" * 400] * 2
    data = termination_bytes(_large_result().model_copy(update={"findings": findings, "checks": checks}))
    document = json.loads(data)
    assert len(data) <= TERMINATION_LIMIT
    assert [each["suggest"] for each in document["findings"]] == ["1"] * 12
    assert not [each for each in document["findings"] if "message" in each]
    passing = json.loads(termination_bytes(RunResult(findings=findings[:7], checks=checks)))
    assert [each.get("message") for each in passing["checks"]] == [None] * 14 + ["512 is 64 times the rank"]


def test_what_a_stopped_run_found_is_said_longer_than_what_was_posted_before() -> None:
    text = "3.052 before training; stopped before the held-out loss was measured again"
    checks = [CheckStatus(name=f"C{place}", result="Passed", message="y" * 60) for place in range(14)]
    checks.append(CheckStatus(name=CheckName.BASELINE, result="Skipped", message=text))
    values = [ResolvedValue(name=f"n{place}", value="v" * 60, source="Manifest") for place in range(40)]
    result = RunResult(checks=checks, resolved=ResolvedStatus(values=values))
    said = [json.loads(termination_bytes(result.model_copy(update={"stopped_after_step": step}))) for step in (None, 4)]
    assert [each["checks"][-1].get("message") for each in said] == [None, text]


def test_small_termination_message_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "termination-log"
    monkeypatch.setenv("TUNERY_TERMINATION_PATH", str(path))
    report = PreflightReport(dataset=DatasetStatus(rows=3, first_invalid=["line 17"]))
    write_termination(report)
    assert PreflightReport.model_validate_json(path.read_bytes()) == report


def test_termination_message_shows_no_credential(tmp_path: Path) -> None:
    register_secret("hunter2-hunter2")
    message = (
        "key AKIAIOSFODNN7EXAMPLE, hf_abcdefghijkl, hunter2-hunter2\x1b[31m, https://b/x?X-Amz-Signature=abc123&a=1"
    )
    failure = Failure(reason=FailureReason.STORAGE_ACCESS_DENIED, message=message)
    write_termination(RunResult(failure=failure), tmp_path / "log")
    text = (tmp_path / "log").read_text()
    for secret in ("AKIAIOSFODNN7EXAMPLE", "hf_abcdefghijkl", "hunter2", "\\u001b", "abc123"):
        assert secret not in text
    assert "&a=1" in text


@pytest.mark.parametrize("character", ['"', "\n", "ü", "猫", "🐈"])
def test_the_longest_texts_fit_and_stay_json(character: str) -> None:
    """Whatever a message is made of, however it is escaped: cut in two by the kubelet it would say nothing."""
    text, fix = character * 1024, Remedy(action=Action.RETRY, text=character * MAX_REMEDY)
    facts = {f"fact{number}": text for number in range(MAX_FACTS)}
    failure = Failure(reason=FailureReason.INTERNAL_ERROR, message=text, remedies=[fix] * MAX_REMEDIES, facts=facts)
    checkpoint = CheckpointStatus(uri="s3://b/" + character * 1000, step=1)
    adapter = AdapterStatus(uri="s3://b/" + "p" * 1017, manifest_sha256="a" * 64, size_bytes=1, served_name="n" * 256)
    for message in (
        RunResult(failure=failure, checkpoint=checkpoint),
        RunResult(adapter=adapter, checkpoint=checkpoint),
        PreflightReport(failure=failure),
    ):
        data = termination_bytes(message)
        assert len(data) <= TERMINATION_LIMIT
        said = type(message).model_validate_json(data).failure
        assert (said is None) is (message.failure is None)
        if said is not None:
            assert (said.reason, said.message) == (failure.reason, redact(text))


def test_what_was_found_in_refused_data_never_costs_the_remedies() -> None:
    """A fact says where the report is; the report has the warnings, too."""
    remedies, facts = [retry("h" * 500)], {"dataReport": "s3://b/r"}
    failure = Failure(reason=FailureReason.DATASET_INVALID, message="m" * 1000, remedies=remedies, facts=facts)
    found = DatasetStatus(rows=3, report="s3://b/r", first_invalid=["x" * 500] * 5, warnings=["w" * 250] * 8)
    said = failed_message(Task.PREFLIGHT, failure, RunResult(dataset=found))
    kept = PreflightReport.model_validate_json(termination_bytes(said))
    assert kept.failure == failure
    assert kept.dataset is not None
    assert (kept.dataset.rows, kept.dataset.report) == (3, "s3://b/r")
    assert kept.dataset.first_invalid is None
