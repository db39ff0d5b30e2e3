"""The operator's way: run.json, Secrets as files, a real S3 server for model, data, checkpoints and output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunery_api.findings import CHECK_PENDING, CheckName
from tunery_api.reasons import ExitCode
from tunery_api.runspec import PreflightReport, RunResult
from tunery_common.inputs.fetch import fetch_model
from tunery_common.inputs.location import Location
from tunery_common.storage.credentials import Credentials

from kit import mounts
from kit.s3 import keys_below
from kit.story import Run, make_rows, run_here, run_trainer, write_rows
from tools.cluster.s3 import S3Server

PLATFORMS_DISK = "the platform's preflight.resources.ephemeralStorage"


@pytest.mark.slow
def test_preflight_then_train(run_file: Run, tmp_path: Path, s3_server: S3Server) -> None:
    path, message = run_file(), tmp_path / "termination"
    message.touch()
    checked = run_trainer("preflight", path, TUNERY_TERMINATION_PATH=str(message))
    assert checked.returncode == ExitCode.OK, checked.stderr
    report = PreflightReport.model_validate_json(message.read_text())
    assert report.failure is None
    assert report.dataset is not None
    assert report.dataset.rows == 120
    assert report.memory is not None
    assert report.estimate is not None
    parts = report.estimate.model_dump(exclude_none=True)
    total = sum(parts[name] for name in parts if name.endswith("_bytes") and name != "row_bytes")
    assert total == report.memory.estimate_bytes
    assert len(message.read_bytes()) <= 4096
    trained = run_trainer("train", path, TUNERY_TERMINATION_PATH=str(message))
    assert trained.returncode == ExitCode.OK, trained.stderr
    result = RunResult.model_validate_json(message.read_text())
    assert result.adapter is not None
    assert result.checkpoint is None
    assert result.resolved is not None
    assert result.resolved.values
    keys = keys_below(s3_server, f"{tmp_path.name}/")
    assert f"{tmp_path.name}/out/manifest.json" in keys
    assert not [key for key in keys if "/checkpoints/" in key]
    for output in (checked.stdout, checked.stderr, trained.stdout, trained.stderr, message.read_text()):
        assert s3_server.secret_key not in output


def _preflight(path: Path, message: Path) -> PreflightReport:
    """Run preflight in this process, and return what it reports."""
    message.touch()
    run_here("preflight", path, TUNERY_TERMINATION_PATH=str(message))
    return PreflightReport.model_validate_json(message.read_text())


@pytest.mark.slow
def test_a_disk_that_is_too_small_is_refused_before_a_gpu_is_asked_for(run_file: Run, tmp_path: Path) -> None:
    left_open = _preflight(run_file(name="open.json"), tmp_path / "termination")
    assert left_open.failure is None
    assert left_open.disk is not None
    assert left_open.disk.available_bytes is None
    needed = left_open.disk.estimate_bytes or 0
    weights = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    assert needed > 1.1 * (weights + (tmp_path / "data.jsonl").stat().st_size)

    exact = _preflight(run_file(resources={"gpus": 0, "ephemeralStorage": str(needed)}), tmp_path / "termination")
    assert exact.failure is None
    small = {"gpus": 0, "ephemeralStorage": str(needed - 1)}
    failure = _preflight(run_file(resources=small), tmp_path / "termination").failure
    assert failure is not None
    assert failure.reason == "WontFit"
    assert failure.message.startswith("spec.resources.ephemeralStorage: training needs about ")
    (remedy,) = failure.remedies
    assert (remedy.action, remedy.fields) == ("Edit", ["resources.ephemeralStorage"])
    assert "to 1Gi or more" in remedy.text


@pytest.mark.slow
def test_a_refusal_for_want_of_memory_keeps_the_numbers_and_the_method(run_file: Run, tmp_path: Path) -> None:
    path = run_file(method="Auto", resources={"gpus": 1}, own={"gpuMemoryBytes": 100 * 2**20})
    refused = _preflight(path, tmp_path / "termination")
    assert refused.failure is not None
    assert refused.failure.reason == "WontFit"
    assert refused.memory is not None
    assert refused.memory.available_bytes == 100 * 2**20
    assert (refused.memory.estimate_bytes or 0) > 100 * 2**20
    assert refused.estimate is not None
    assert refused.resolved is not None
    assert refused.resolved.method == "QLoRA"
    assert "LoRA would take" in (refused.resolved.method_reason or "")
    assert refused.dataset is not None
    assert refused.dataset.rows == 120


@pytest.mark.slow
def test_where_nobody_has_told_a_gpus_memory_preflight_says_so(run_file: Run, tmp_path: Path) -> None:
    checks = _preflight(run_file(resources={"gpus": 1}), tmp_path / "termination").checks
    said = next(each.message or "" for each in checks or [] if each.name == CheckName.BATCH_FITS)
    assert said.startswith("training takes about ")
    assert "gpuMemory of the chart tells it" in said
    told = _preflight(run_file(resources={"gpus": 1}, own={"gpuMemoryBytes": 2**35}), tmp_path / "termination").checks
    # Where room is short that sentence is left to the operator.
    assert next(each.message for each in told or [] if each.name == CheckName.BATCH_FITS) in (None, CHECK_PENDING)


@pytest.mark.slow
def test_a_base_in_a_bucket_that_is_a_pointer_is_told_before_a_gpu_is_asked_for(
    run_file: Run, tmp_path: Path, s3_server: S3Server
) -> None:
    path, key = run_file(), f"{tmp_path.name}/model.safetensors"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 364560\n"
    s3_server.client().put_object(Bucket="models", Key=key, Body=pointer)
    failure = _preflight(path, tmp_path / "termination").failure
    assert failure is not None
    assert failure.reason == "ModelUnsupported"
    assert "model.safetensors is a pointer of Git LFS, not the file that it stands for" in failure.message
    assert "git lfs pull" in failure.remedies[0].text
    s3_server.client().upload_file(str(tmp_path / "model" / "model.safetensors"), "models", key)
    assert _preflight(path, tmp_path / "termination").failure is None, "as the remedy says"


@pytest.mark.slow
def test_a_base_in_a_claim_takes_no_disk(run_file: Run, tmp_path: Path) -> None:
    fetched = _preflight(run_file(), tmp_path / "termination").disk
    content = json.loads(run_file().read_text())
    content["loraJob"]["model"]["uri"] = "pvc://models"
    content["volumes"] = {"model": str(tmp_path / "model")}
    del content["secrets"]["model"]
    (tmp_path / "claim.json").write_text(json.dumps(content))
    in_claim = _preflight(tmp_path / "claim.json", tmp_path / "termination").disk
    weights = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    assert fetched is not None
    assert in_claim is not None
    assert (fetched.estimate_bytes or 0) - (in_claim.estimate_bytes or 0) == pytest.approx(1.1 * weights, abs=2)


@pytest.mark.slow
def test_data_beyond_preflights_own_disk_is_refused_before_it_is_downloaded(
    run_file: Run, tmp_path: Path, s3_server: S3Server
) -> None:
    path = run_file(own={"disk": {"bytes": 50_000, "field": PLATFORMS_DISK}})
    write_rows(tmp_path / "data.jsonl", make_rows(2000))
    s3_server.client().upload_file(str(tmp_path / "data.jsonl"), "datasets", f"{tmp_path.name}/data.jsonl")
    failure = _preflight(path, tmp_path / "termination").failure
    assert failure is not None
    assert failure.reason == "WontFit"
    size = (tmp_path / "data.jsonl").stat().st_size
    assert failure.message.startswith(f"spec.dataset.uri: {size:,} bytes are to be downloaded")
    assert f"holds 50,000 ({PLATFORMS_DISK})" in failure.message
    assert PLATFORMS_DISK in failure.remedies[0].text
    assert not list((tmp_path / "work").rglob("data.jsonl"))


@pytest.fixture
def claim(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A claim as preflight and as training mount it."""
    writable = tmp_path / "claim"
    writable.mkdir()
    with mounts.read_only(writable, tmp_path / "read-only") as read_only:
        yield writable, read_only


@pytest.mark.slow
def test_preflight_fills_the_cache_and_training_begins_with_it(
    run_file: Run, tmp_path: Path, s3_server: S3Server, claim: tuple[Path, Path]
) -> None:
    writable, read_only = claim
    for round_, told in enumerate(("100 % of", None)):
        work = str(tmp_path / f"preflight-{round_}")
        path = run_file(own={"cache": {"path": str(writable)}, "workDir": work})
        checked = run_here("preflight", path, TUNERY_TERMINATION_PATH=str(tmp_path / "termination"))
        assert checked.returncode == ExitCode.OK, checked.stderr
        assert ("Downloading base model into the cache 100 % (" in checked.stdout) is (told is not None)
    path = run_file(own={"cache": {"path": str(read_only)}})
    trained = run_trainer("train", path, TUNERY_TERMINATION_PATH=str(tmp_path / "termination"))
    assert trained.returncode == ExitCode.OK, trained.stderr
    work = tmp_path / "work"
    assert not list(work.rglob("model.safetensors"))
    assert not list((work / "prepared").iterdir())
    key = f"{tmp_path.name}/out/manifest.json"
    manifest_ = json.loads(s3_server.client().get_object(Bucket="adapters", Key=key)["Body"].read())
    without = fetch_model(Location(f"s3://models/{tmp_path.name}", _credentials(s3_server)), tmp_path / "own")
    assert manifest_["lineage"]["model"]["digest"] == without.digest


def _credentials(server: S3Server) -> Credentials:
    return Credentials("the Secret s3", server.environment())


@pytest.mark.slow
def test_a_cache_that_nobody_can_use_changes_nothing(run_file: Run, tmp_path: Path, claim: tuple[Path, Path]) -> None:
    _, read_only = claim
    report = _preflight(run_file(own={"cache": {"path": str(read_only)}}), tmp_path / "termination")
    assert report.failure is None
    assert report.dataset is not None
    assert report.dataset.rows == 120


def test_wrong_bucket(run_file: Run, tmp_path: Path) -> None:
    message = tmp_path / "termination"
    message.touch()
    done = run_trainer("preflight", run_file(bucket="no-such-bucket"), TUNERY_TERMINATION_PATH=str(message))
    assert done.returncode == ExitCode.USER_ERROR
    failure = PreflightReport.model_validate_json(message.read_text()).failure
    assert failure is not None
    assert failure.reason == "StorageNotFound"
    assert "no-such-bucket" in failure.message


def test_missing_secret(run_file: Run, tmp_path: Path) -> None:
    done = run_trainer("preflight", run_file(secret_path=tmp_path / "nothing"))
    assert done.returncode == ExitCode.USER_ERROR
    assert done.stderr.splitlines()[-2].startswith("SecretNotFound: spec.model.secretRef")
