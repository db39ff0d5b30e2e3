"""The data report of a job: beside its adapter, and at a place of its own while there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunery_api.manifest import Manifest
from tunery_api.reasons import ExitCode
from tunery_api.runspec import PreflightReport, RunResult

from kit.story import Case, Run, make_rows, manifest, run_here, write_rows
from tools.cluster.s3 import S3Server

NAMES = ["data-report.json", "data-report.md"]


def bad_rows(count: int = 40) -> list[Any]:
    """Rows of which two cannot be used, and two are equal."""
    rows: list[Any] = make_rows(count)
    rows[16] = {"prompt": "no answer"}
    rows[20] = {"prompt": "x", "completion": 5}
    rows[30] = rows[2]
    return rows


def put(s3: S3Server, path: Path) -> None:
    """Upload the data of a run."""
    s3.client().upload_file(str(path), "datasets", f"{path.parent.name}/data.jsonl")


def objects(s3: S3Server, prefix: str) -> list[str]:
    """The names of what lies below a prefix of the bucket of adapters."""
    found = s3.client().list_objects_v2(Bucket="adapters", Prefix=prefix).get("Contents", [])
    return sorted(item["Key"].removeprefix(prefix) for item in found)


def preflight(run: Path, words: Path) -> PreflightReport:
    """Run a preflight container, and return its last words."""
    words.unlink(missing_ok=True)
    run_here("preflight", run, TUNERY_TERMINATION_PATH=str(words))
    return PreflightReport.model_validate_json(words.read_bytes())


def place_of(folder: Path) -> dict[str, str]:
    return {"reportUri": f"s3://adapters/tunery-reports/{folder.name}/tiny-u-1"}


@pytest.mark.slow
def test_from_refused_to_published(run_file: Run, tmp_path: Path, s3_server: S3Server) -> None:
    """The place is named, overwritten by the next attempt, and empty once the same lies beside the adapter."""
    run, words, prefix = run_file(own=place_of(tmp_path)), tmp_path / "words", f"tunery-reports/{tmp_path.name}/"
    put(s3_server, write_rows(tmp_path / "data.jsonl", bad_rows()))
    said = preflight(run, words)
    assert said.failure is not None
    assert said.failure.reason == "DatasetInvalid"
    uri = f"s3://adapters/{prefix}tiny-u-1/data-report.md"
    assert said.failure.facts == {"dataReport": uri}
    assert said.dataset is not None
    assert (said.dataset.report, said.dataset.invalid_rows, said.dataset.rows) == (uri, 2, 38)
    assert objects(s3_server, prefix) == [f"tiny-u-1/{name}" for name in NAMES]
    body = s3_server.client().get_object(Bucket="adapters", Key=f"{prefix}tiny-u-1/data-report.json")["Body"].read()
    document = json.loads(body)
    assert document["refused"]["reason"] == "DatasetInvalid"
    assert document["run"]["uid"] == "u-1"
    assert [(row["line"], row["field"]) for row in document["invalidRows"]] == [(17, "completion"), (21, "completion")]
    assert document["duplicates"]["rows"] >= 1
    assert document["tokens"]["lengths"]["histogram"]

    put(s3_server, write_rows(tmp_path / "data.jsonl", make_rows()))
    again = preflight(run, words)
    assert again.failure is None
    assert again.dataset is not None
    assert (again.dataset.report, again.dataset.invalid_rows) == (uri, 0)
    body = s3_server.client().get_object(Bucket="adapters", Key=f"{prefix}tiny-u-1/data-report.json")["Body"].read()
    assert "refused" not in json.loads(body)

    assert run_here("train", run, TUNERY_TERMINATION_PATH=str(words)).returncode == ExitCode.OK
    done = RunResult.model_validate_json(words.read_bytes())
    assert done.adapter is not None
    assert done.dataset is not None
    assert done.dataset.report == f"{done.adapter.uri}/data-report.md"
    assert objects(s3_server, prefix) == []
    key = f"{tmp_path.name}/out/"
    body = s3_server.client().get_object(Bucket="adapters", Key=f"{key}manifest.json")["Body"].read()
    files = Manifest.model_validate_json(body).files
    assert set(NAMES) <= set(files), "with their digests, like every file of a result"


@pytest.mark.slow
def test_a_refusal_after_the_rows_were_read_has_one_too(case: Case) -> None:
    """Here for too few steps: no row is bad, and what is known of them is not lost."""
    path = case(training=None)
    write_rows(path.parent / "data.jsonl", make_rows(3))
    done = run_here("run", path, "--work-dir", path.parent / "work")
    assert "optimizer steps" in done.stderr
    place = path.parent / "out-report"
    assert f"Data report: {place.as_uri()}/data-report.md." in done.stderr
    text = (place / "data-report.md").read_text()
    assert "optimizer steps" in text
    assert "Invalid rows                    | 0 |" in text


@pytest.mark.slow
def test_a_place_that_cannot_be_written_hides_nothing(run_file: Run, tmp_path: Path, s3_server: S3Server) -> None:
    run = run_file(own={"reportUri": "file:///proc/nobody/can/write/here"})
    put(s3_server, write_rows(tmp_path / "data.jsonl", bad_rows()))
    said = preflight(run, tmp_path / "words")
    assert said.failure is not None
    assert said.failure.reason == "DatasetInvalid"
    assert "line 17" in said.failure.message
    assert set(said.failure.facts) == {"dataReportError"}
    assert said.dataset is not None
    assert said.dataset.report is None
    assert said.dataset.invalid_rows == 2
    put(s3_server, write_rows(tmp_path / "data.jsonl", make_rows()))
    assert preflight(run, tmp_path / "words").failure is None


@pytest.mark.slow
def test_without_a_place_nothing_is_stored(run_file: Run, tmp_path: Path, s3_server: S3Server) -> None:
    """As an operator of the version before asks for it."""
    put(s3_server, write_rows(tmp_path / "data.jsonl", bad_rows()))
    said = preflight(run_file(), tmp_path / "words")
    assert said.failure is not None
    assert said.failure.facts == {}


@pytest.mark.slow
def test_preflight_only_trains_nothing(case: Case) -> None:
    path = case(preflight="Only")
    done = run_here("run", path, "--work-dir", path.parent / "work")
    assert done.returncode == ExitCode.OK, done.stderr
    assert sorted(file.name for file in (path.parent / "out-report").iterdir()) == NAMES
    assert f"the report is at {(path.parent / 'out-report').as_uri()}/data-report.md\n" in done.stdout
    assert not (path.parent / "out").exists()
    assert "Training" not in done.stdout


@pytest.mark.slow
def test_after_success_the_report_lies_beside_the_adapter_alone(case: Case) -> None:
    path = case()
    done = run_here("run", path, "--work-dir", path.parent / "work")
    assert done.returncode == ExitCode.OK, done.stderr
    early, late = (line for line in done.stdout.splitlines() if "the report is at " in line)
    assert early.endswith(", and goes beside the adapter as that is published")
    assert late == f"Data       the report is at {(path.parent / 'out').as_uri()}/data-report.md"
    assert not (path.parent / "out-report").exists()
    text = (path.parent / "out" / "data-report.md").read_text()
    assert "[[" in text
    assert "<|im_start|>" in text


def test_rows_that_are_bad_when_training_reads_them(case: Case) -> None:
    """Where preflight was skipped, training refuses the data, with the same report."""
    path = case()
    write_rows(path.parent / "data.jsonl", bad_rows())
    spec = manifest(path.parent)["spec"] | {"dataset": {"uri": f"file://{path.parent}/data.jsonl"}}
    run = {
        "identity": {"kind": "LoRAJob", "namespace": "team", "name": "tiny", "uid": "u-1"},
        "loraJob": spec | {"model": {"uri": f"file://{path.parent}/model"}},
        "outputUri": spec["output"]["uri"],
        "reportUri": f"file://{path.parent}/own-place",
        "workDir": str(path.parent / "work"),
        "local": True,
    }
    (path.parent / "run.json").write_text(json.dumps(run))
    words = path.parent / "words"
    done = run_here("train", path.parent / "run.json", TUNERY_TERMINATION_PATH=str(words))
    assert done.returncode == ExitCode.USER_ERROR
    said = RunResult.model_validate_json(words.read_bytes())
    assert said.dataset is not None
    assert (said.dataset.report or "").endswith("/own-place/data-report.md")


@pytest.mark.slow
@pytest.mark.parametrize(("local", "asked", "shown"), [(False, False, False), (False, True, True), (True, False, True)])
def test_rows_stand_in_the_log_only_where_that_is_asked_for(
    run_file: Run, tmp_path: Path, local: bool, asked: bool, shown: bool
) -> None:
    changes: dict[str, Any] = {"diagnosis": {"showExample": True}} if asked else {}
    run = run_file(own={**place_of(tmp_path), "local": local}, **changes)
    done = run_here("preflight", run, TUNERY_TERMINATION_PATH=str(tmp_path / "words"))
    assert done.returncode == ExitCode.OK, done.stderr
    row = make_rows()[0]
    assert (f"[[{row['completion']}<|im_end|>]]" in done.stdout) is shown
    assert (row["prompt"] in done.stdout) is shown
    assert row["prompt"] not in (tmp_path / "words").read_text()
