"""The command line: read, validate, dispatch, and map every failure to an exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from tunery_api.exitcodes import ExitCode
from tunery_api.names import RUN_DIR, RUN_FILE
from tunery_api.reasons import FailureReason
from tunery_api.runspec import PreflightReport, RunResult, RunSpec, Task
from tunery_trainer.errors import TrainerError
from tunery_trainer.failures import explain, show, to_failure
from tunery_trainer.report import write_termination
from tunery_trainer.signals import StopRequested, StopSignal
from tunery_trainer.tasks import run_task


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the process's exit code (tunery_api.exitcodes)."""
    stop = StopSignal()
    stop.install()
    options = _parse(arguments)
    task = None if options.command == "run" else Task(options.command)
    try:
        if task is None:
            from tunery_trainer.local_run import run_manifest

            run_manifest(Path(options.path), options.work_dir and Path(options.work_dir), options.name, stop)
        else:
            run_task(task, _read_run_spec(Path(options.path)), stop)
    except StopRequested:
        return ExitCode.TERMINATED
    except Exception as error:  # noqa: BLE001 (the one place where any failure becomes an exit code and a message)
        return _fail(error, task)
    return ExitCode.OK


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tunery_trainer", description="Train and merge PEFT adapters.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    texts = {
        Task.PREFLIGHT: "check data, model, credentials and output on the CPU",
        Task.TRAIN: "train an adapter and publish it",
        Task.MERGE: "merge adapters and publish the result",
    }
    for task, text in texts.items():
        command = commands.add_parser(task.value, help=text)
        command.add_argument("path", nargs="?", default=f"{RUN_DIR}/{RUN_FILE}", help="the operator's run.json")
    run = commands.add_parser("run", help="run a LoRAJob or an AdapterMerge without a cluster")
    run.add_argument("path", metavar="manifest.yaml", help="the manifest, as for kubectl apply")
    run.add_argument("--work-dir", help="where downloads, caches and checkpoints lie; a rerun goes on from there")
    run.add_argument("--name", help="which object, if the manifest holds several")
    return parser.parse_args(arguments)


def _read_run_spec(path: Path) -> RunSpec:
    try:
        return RunSpec.model_validate(json.loads(path.read_text("utf-8")))
    except FileNotFoundError as error:
        raise TrainerError(FailureReason.INVALID_SPEC, f"{path} does not exist") from error
    except (ValueError, ValidationError) as error:
        raise TrainerError(FailureReason.INTERNAL_ERROR, f"{path} is not what the operator writes: {error}") from error


def _fail(error: Exception, task: Task | None) -> int:
    failure = explain(error)
    show(failure, error)
    if task is Task.PREFLIGHT:
        write_termination(PreflightReport(failure=to_failure(failure)))
    elif task is not None:
        write_termination(RunResult(failure=to_failure(failure)))
    sys.stdout.flush()
    return failure.exit_code
