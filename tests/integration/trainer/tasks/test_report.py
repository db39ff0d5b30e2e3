"""A report says again what its very run has published, and its checkpoints are gone by then: real S3, real commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.runspec import PreflightReport, RunResult

from kit.fork_server import trainer_server
from kit.s3 import credentials, keys_below
from kit.story import Run, command, environment, run_here, run_trainer
from tools.cluster.s3 import S3Server

LIGHT = """
import sys
from pathlib import Path
from tunery_trainer.cli import main
code = main(["report", sys.argv[1]])
heavy = {"torch", "transformers", "peft", "trl", "datasets", "numpy"} & set(sys.modules)
assert not heavy, heavy
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print("MiB", int(peak.split()[1]) // 1024)
sys.exit(code)
"""


@pytest.fixture
def message(tmp_path: Path) -> Path:
    """Where the termination message is written."""
    path = tmp_path / "termination"
    path.touch()
    return path


def say(task: str, path: Path, message: Path) -> tuple[int, RunResult]:
    """Run a container's command and return its exit code and its last word."""
    message.write_text("")
    done = run_here(task, path, TUNERY_TERMINATION_PATH=str(message))
    assert len(message.read_bytes()) <= 4096
    return done.returncode, RunResult.model_validate_json(message.read_bytes())


@pytest.mark.slow
def test_a_report_says_what_the_run_said(run_file: Run, tmp_path: Path, message: Path, s3_server: S3Server) -> None:
    path = run_file(checkpoint={"keepAfterSuccess": True})
    code, trained = say("train", path, message)
    assert code == ExitCode.OK
    assert trained.checkpoint is not None
    assert trained.checkpoint.step == 20
    assert trained.dataset is not None
    assert trained.dataset.rows == 120
    before = keys_below(s3_server, f"{tmp_path.name}/")
    assert say("report", path, message) == (ExitCode.OK, trained)
    assert keys_below(s3_server, f"{tmp_path.name}/") == before
    again = say("train", path, message)
    assert again == (ExitCode.OK, trained)

    light = subprocess.run(
        [sys.executable, "-c", LIGHT, str(path)],
        env=environment(TUNERY_TERMINATION_PATH=str(message)),
        capture_output=True,
        text=True,
    )
    assert light.returncode == ExitCode.OK, light.stderr
    assert int(light.stdout.split("MiB")[-1]) < 200
    assert RunResult.model_validate_json(message.read_bytes()) == trained

    # Another uid, a damaged file, nothing at all.
    code, other = say("report", run_file(uid="u-2", name="other.json"), message)
    assert (code, reason(other)) == (ExitCode.USER_ERROR, FailureReason.ADAPTER_MISSING)
    client = s3_server.client()
    client.put_object(Bucket="adapters", Key=f"{tmp_path.name}/out/README.md", Body=b"changed")
    code, damaged = say("report", path, message)
    assert (code, reason(damaged)) == (ExitCode.USER_ERROR, FailureReason.ADAPTER_CORRUPT)
    for key in keys_below(s3_server, f"{tmp_path.name}/out/"):
        client.delete_object(Bucket="adapters", Key=key)
    code, nothing = say("report", path, message)
    assert (code, reason(nothing)) == (ExitCode.USER_ERROR, FailureReason.ADAPTER_MISSING)


def reason(result: RunResult) -> FailureReason | str | None:
    """Return why a container ended badly."""
    return result.failure.reason if result.failure else None


@pytest.mark.slow
def test_the_rerun_of_a_published_run_removes_its_checkpoints(
    run_file: Run, tmp_path: Path, message: Path, s3_server: S3Server
) -> None:
    """As after a pod that was killed between publishing and tidying up."""
    code, trained = say("train", run_file(checkpoint={"keepAfterSuccess": True}), message)
    assert code == ExitCode.OK
    assert keys_below(s3_server, f"{tmp_path.name}/checkpoints/")
    reader = tmp_path / "reader"
    reader.mkdir()
    for name, value in credentials(s3_server, s3_server.reader).values.items():
        (reader / name).write_text(value)
    refused = run_trainer("train", run_file(secret_path=reader), TUNERY_TERMINATION_PATH=str(message))
    assert refused.returncode == ExitCode.OK, "the result is there: tidying up that fails is a warning"
    assert "checkpoints were not removed" in refused.stderr
    code, again = say("train", run_file(), message)
    assert code == ExitCode.OK
    assert again.adapter == trained.adapter
    assert again.checkpoint is None
    assert not keys_below(s3_server, f"{tmp_path.name}/checkpoints/")


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_and_says_so(
    run_file: Run, tmp_path: Path, message: Path, s3_server: S3Server
) -> None:
    """As when the Job is deleted: the pod has 120 s, and no checkpoint was due yet."""
    training = {"maxSteps": 100_000, "learningRate": 1e-4}
    path = run_file(training=training, checkpoint={"everySteps": 100_000})
    process = trainer_server().popen(
        command("train", path),
        env=environment(TUNERY_TERMINATION_PATH=str(message)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        seen.append(line)
        if line.startswith("Training") and "step" in line and "step 0/" not in line:
            break
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == ExitCode.TERMINATED, "".join(seen) + rest
    assert time.monotonic() - asked < 110
    result = RunResult.model_validate_json(message.read_bytes())
    assert result.failure is None
    assert result.adapter is None
    assert result.checkpoint is not None
    folder = result.checkpoint.uri.removeprefix("s3://adapters/")
    assert f"{folder}/complete.json" in keys_below(s3_server, folder)


def imports_torch(supervisor: int) -> bool:
    """Tell whether the one child of a process has begun to load torch: it has taken the signals over long before."""
    for child in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        with suppress(FileNotFoundError):
            return "libtorch" in Path(f"/proc/{child}/maps").read_text()
    return False


@pytest.mark.slow
@pytest.mark.parametrize("task", ["preflight", "train"])
def test_sigterm_before_there_is_anything_to_save(run_file: Run, message: Path, task: str) -> None:
    process = subprocess.Popen(
        command(task, run_file()),
        env=environment(TUNERY_TERMINATION_PATH=str(message)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not imports_torch(process.pid):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == ExitCode.TERMINATED
    model = PreflightReport if task == "preflight" else RunResult
    assert model.model_validate_json(message.read_bytes()) == model()


def test_a_newer_operators_run_json(run_file: Run, message: Path) -> None:
    """What the operator adds is read over; what a user asked for, and this image cannot do, is refused in words."""
    path = run_file()
    content: dict[str, Any] = json.loads(path.read_text())
    content["aNewThing"] = content["identity"]["aNewThing"] = content["secrets"]["output"]["aNewThing"] = {"x": 1}
    path.write_text(json.dumps(content))
    code, result = say("report", path, message)
    assert (code, reason(result)) == (ExitCode.USER_ERROR, FailureReason.ADAPTER_MISSING)
    content["loraJob"]["training"]["sharding"] = "Auto"
    path.write_text(json.dumps(content))
    done = run_trainer("preflight", path, TUNERY_TERMINATION_PATH=str(message))
    assert done.returncode == ExitCode.USER_ERROR
    report = PreflightReport.model_validate_json(message.read_bytes())
    assert report.failure is not None
    assert report.failure.reason is FailureReason.INVALID_SPEC
    assert "this trainer image (version " in report.failure.message
    assert "spec.training.sharding" in report.failure.message
    assert ["trainer.image" in each.text for each in report.failure.remedies] == [True]


def test_a_task_of_a_newer_operator(message: Path) -> None:
    code, result = say("quantize", Path("run.json"), message)
    assert (code, reason(result)) == (ExitCode.USER_ERROR, FailureReason.INVALID_SPEC)
    assert result.failure is not None
    assert "quantize" in result.failure.message


def test_checkpoints_that_cannot_be_stored_are_found_by_preflight(
    run_file: Run, message: Path, s3_server: S3Server
) -> None:
    path = run_file()
    content = json.loads(path.read_text())
    content["checkpointUri"] = "s3://no-such-bucket/tunery-checkpoints/team/tiny-u-1"
    path.write_text(json.dumps(content))
    code = run_here("preflight", path, TUNERY_TERMINATION_PATH=str(message)).returncode
    report = PreflightReport.model_validate_json(message.read_bytes())
    assert code == ExitCode.USER_ERROR
    assert report.failure is not None
    assert report.failure.reason is FailureReason.STORAGE_NOT_FOUND
    assert report.failure.message.startswith(
        "checkpoints cannot be stored: spec.output.uri: s3://no-such-bucket/tunery-checkpoints/"
    )
