"""`python -m tunery_server batch|report run.json`: every end of a batch is an exit code and a last word."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from tunery_api.failures import render_hint
from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.redact import redact
from tunery_api.remedies import retry
from tunery_api.runspec import RunResult, RunSpec, Task
from tunery_common.errors import DISK_FULL, TuneryError, first_line
from tunery_common.storage.authorities import trust_platform
from tunery_common.termination import clear_termination, write_termination
from tunery_server.batch.progress import Progress
from tunery_server.batch.run import Pace, run_batch, run_report
from tunery_server.batch.stopping import StopRequested, StopSignal

_SPEC: Final = "batchInference"
_MAX_TRACE: Final = 64 << 10

_log = logging.getLogger(__name__)


def main(path: Path, pace: Pace | None = None, task: Task = Task.BATCH) -> int:
    """Do what run.json says, or say again what it published (Task.REPORT); return the exit code."""
    stop = StopSignal()
    stop.install()
    clear_termination()
    progress = Progress()
    stop.last_word = lambda: write_termination(RunResult(answers=progress.report()))
    message, code = RunResult(), ExitCode.OK
    try:
        run = read_run_spec(path)
        trust_platform()
        _prepare_environment(Path(run.work_dir))
        again = task is Task.REPORT
        message = run_report(run) if again else run_batch(run, progress, stop, pace or Pace())
    except StopRequested:
        message, code = RunResult(answers=progress.report()), ExitCode.TERMINATED
        _log.info("told to stop; what was answered is kept")
    except Exception as error:  # noqa: BLE001 (any failure becomes an exit code and a message)
        failure = explain(error)
        message, code = _failed(failure, progress), failure.exit_code
        show_failure(failure, error)
    stop.disarm()
    write_termination(message)
    progress.close()
    if message.output is not None:
        print(f"Published {message.output.uri} (manifest {message.output.manifest_sha256})", flush=True)
    return int(code)


def read_run_spec(path: Path) -> RunSpec:
    """Return what the operator asks for; raises InvalidSpec where this image does not know a field of the spec."""
    try:
        return RunSpec.model_validate(json.loads(path.read_text("utf-8")))
    except ValidationError as error:
        problems = [(problem["loc"], problem["msg"]) for problem in error.errors()]
        if problems and all(loc and loc[0] == _SPEC for loc, _ in problems):
            fields = "; ".join(f"{'.'.join(map(str, ('spec', *loc[1:])))}: {text}" for loc, text in problems)
            message = f"this server image cannot run it: {fields}"
            same = retry("Ask a cluster admin to use a server image of the operator's version")
            raise TuneryError(FailureReason.INVALID_SPEC, message, same) from error
        raise TuneryError(FailureReason.INTERNAL_ERROR, f"{path} is not what the operator writes: {error}") from error
    except (OSError, ValueError) as error:
        raise TuneryError(FailureReason.INTERNAL_ERROR, f"{path} cannot be read: {first_line(error)}") from error


def explain(error: Exception) -> TuneryError:
    """Return the failure that `error` means; what is not foreseen is InternalError."""
    if isinstance(error, TuneryError):
        return error
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return TuneryError(FailureReason.DISK_FULL, f"no space left on the disk: {first_line(error)}")
    if isinstance(error, MemoryError):
        return TuneryError(FailureReason.OUT_OF_MEMORY, "memory ran out")
    return TuneryError(FailureReason.INTERNAL_ERROR, f"{type(error).__name__}: {first_line(error)}")


def _failed(error: TuneryError, progress: Progress) -> RunResult:
    """Return the termination message of a failure, with what was answered by then, also if it is not published."""
    reached = error.reached if isinstance(error.reached, RunResult) else RunResult(answers=progress.report())
    return reached.model_copy(update={"failure": error.failure})


def show_failure(error: TuneryError, cause: Exception) -> None:
    """Print the failure to stderr, reason, message and hint as its last lines; a trace if it is a bug in Tunery."""
    if error.reason is FailureReason.INTERNAL_ERROR:
        print(redact("".join(traceback.format_exception(cause)), _MAX_TRACE), file=sys.stderr)
    print(f"{error.reason}: {' '.join(redact(error.message, _MAX_TRACE).split())}", file=sys.stderr)
    print(" ".join(render_hint(error.failure, None).split()), file=sys.stderr, flush=True)


def _prepare_environment(work: Path) -> None:
    """Have the hub's client write below the work directory: the root file system is read-only."""
    os.environ.setdefault("HF_HOME", str(work / "cache" / "huggingface"))
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "DO_NOT_TRACK": "1"}
