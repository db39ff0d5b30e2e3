"""What was paid for, in a real S3 server: another object goes on from it, and what may not be written is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunery_api.manifest import Lineage
from tunery_api.reasons import ExitCode
from tunery_api.runspec import PreflightReport, RunResult, RunSpec
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.tasks.rejected import reject, rejected_uri

from kit.s3 import keys_below
from kit.story import Run, run_here
from tools.cluster.s3 import S3Server

STEADY = {"maxSteps": 20, "learningRate": 1e-2, "batchSize": 4, "gradientAccumulation": 1, "maxLength": 128}


def said(task: str, path: Path, code: ExitCode) -> str:
    """Run a container of the operator's, and return its last words."""
    message = path.parent / "termination"
    message.touch()
    done = run_here(task, path, TUNERY_TERMINATION_PATH=str(message))
    assert done.returncode == code, done.stderr
    return message.read_text()


@pytest.mark.slow
def test_another_object_publishes_what_the_first_was_refused_for(
    run_file: Run, tmp_path: Path, s3_server: S3Server
) -> None:
    first = run_file(evaluation={"minImprovement": 0.99}, training=STEADY)
    refused = RunResult.model_validate_json(said("train", first, ExitCode.USER_ERROR))
    assert refused.failure is not None
    assert refused.failure.reason == "NotImproved"
    assert refused.rejected_adapter is not None
    assert refused.rejected_adapter.uri == f"s3://adapters/{tmp_path.name}/out-rejected"
    assert f"{tmp_path.name}/out-rejected/manifest.json" in keys_below(s3_server, f"{tmp_path.name}/out")
    place = f"{tmp_path.name}/checkpoints/u-1"
    before = keys_below(s3_server, place)
    uri = f"s3://adapters/{place}/step-000020"
    own = {"resumeUri": uri, "workDir": str(tmp_path / "work-2")}
    later = run_file(uid="u-2", own=own, training=STEADY, resumeFrom={"uri": uri, "secretRef": {"name": "s3"}})
    content = json.loads(later.read_text())
    content["secrets"]["resume-from"] = content["secrets"]["output"] | {"field": "spec.resumeFrom.secretRef"}
    later.write_text(json.dumps(content))
    report = PreflightReport.model_validate_json(said("preflight", later, ExitCode.OK))
    assert report.resolved is not None
    values = {value.name: value.value for value in report.resolved.values or []}
    assert values["resumeFrom"] == "the checkpoint of step 20 of LoRAJob team/tiny"
    result = RunResult.model_validate_json(said("train", later, ExitCode.OK))
    assert result.adapter is not None
    assert result.metrics == refused.metrics
    assert keys_below(s3_server, place) == before


def test_a_policy_that_ends_at_the_output_is_told(run_file: Run, tmp_path: Path, s3_server: S3Server) -> None:
    """The reader stands for credentials whose right to write does not reach beyond the output."""
    secret = tmp_path / "reader"
    secret.mkdir()
    reader = {"AWS_ACCESS_KEY_ID": s3_server.reader.access_key, "AWS_SECRET_ACCESS_KEY": s3_server.reader.secret_key}
    for name, value in (s3_server.environment() | reader).items():
        (secret / name).write_text(value)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "adapter_model.safetensors").write_bytes(b"weights")
    run = RunSpec.model_validate_json(run_file(secret_path=secret).read_text())
    failure = reject(Workspace(run), tmp_path / "made", Lineage(rejected="the loss rose"))
    place = f"s3://adapters/{tmp_path.name}/out-rejected"
    assert failure.reason == "NotImproved"
    assert failure.message.startswith(f"the loss rose; what was trained could not be published at {place}: ")
    assert "s3:PutObject was denied (AccessDenied) to the Secret s3" in failure.message
    assert failure.reached is None
    assert keys_below(s3_server, f"{tmp_path.name}/out") == set()


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/"])
def test_beside_a_whole_bucket_lies_no_other_bucket(run_file: Run, uri: str) -> None:
    run = RunSpec.model_validate_json(run_file().read_text()).model_copy(update={"output_uri": uri})
    assert rejected_uri(run) == "s3://bucket/rejected"
