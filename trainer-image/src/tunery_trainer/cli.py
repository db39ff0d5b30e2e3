"""The command line: read, validate, dispatch, and map every end to an exit code and a last word."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from tunery_api.kinds import Kind
from tunery_api.lorajob import OnStop, PreflightPolicy
from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.runspec import PreflightReport, RunResult, RunSpec, Task
from tunery_common.errors import TuneryError
from tunery_common.storage.authorities import trust_platform
from tunery_common.termination import failed_message, write_termination
from tunery_trainer import STOPPED_RUN_ENV
from tunery_trainer.commands import FOLLOW, OTHER_IMAGE, parse, version
from tunery_trainer.process.environment import outlive_readers
from tunery_trainer.process.failures import explain, show, subject_of
from tunery_trainer.process.signals import GOES_ON, SWEEP_GOES_ON, StopRequested, StopSignal
from tunery_trainer.process.trial_words import is_trial, tell_sweep, with_sweep
from tunery_trainer.tasks import answer, check, follow, run_task, search
from tunery_trainer.tasks.question import Asked, Question

_SPECS: Final = ("loraJob", "adapterMerge")
"""The parts of run.json that hold what a user wrote: the spec of the manifest."""


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the process's exit code (tunery_api.reasons)."""
    stop = StopSignal()
    stop.install()
    try:
        return _run(arguments, stop)
    finally:
        stop.heeded()  # what calls this may live on, as tests do


def _run(arguments: Sequence[str], stop: StopSignal) -> int:
    try:
        options = parse(arguments)
    except TuneryError as error:
        write_termination(RunResult(failure=error.failure))
        return _show(error)
    if options.command == "run":
        return _run_manifest(options, stop)
    if options.command == "estimate":
        return _estimate(options)
    if options.command == "check":
        return _check(options)
    if options.command == FOLLOW:
        return follow(options.path, options.folder, stop)
    return _run_container(Task(options.command), Path(options.path), stop)


def _run_manifest(options: argparse.Namespace, stop: StopSignal) -> int:
    """Run a manifest without a cluster: nobody waits for a termination message, but a sweep for its trials' words.

    Its own folder, where it was not given one, is removed at the end.
    """
    from tunery_trainer.local import load_manifest, run_spec_of

    outlive_readers()
    stopped = os.environ.get(STOPPED_RUN_ENV)
    if stopped:
        return _publish_stopped(_read_run_spec(Path(stopped)), stop)
    folder, work_dir = Path(options.path).resolve().parent, options.work_dir and Path(options.work_dir)
    task = Task.PREFLIGHT
    try:
        manifest = load_manifest(Path(options.path), options.name)
        if manifest["kind"] == Kind.LORASWEEP:
            return _run_sweep(manifest, folder, work_dir, stop)
        run = with_sweep(run_spec_of(manifest, folder, work_dir))
        if run.lora_job is not None:
            stop.hint = GOES_ON
        if _publishes_stopped(run):
            stop.successor = partial(_publish_instead, run, options.path, dict(os.environ), stop)
        for task in _tasks_of(run):
            run = _told(task, run, run_task(task, run, stop))
        stop.disarm()
        if not options.work_dir:
            shutil.rmtree(run.work_dir, ignore_errors=True)
    except StopRequested as stopping:
        if _publishes_stopped(run):
            return _publish_stopped(run, stop)
        tell_sweep(task, RunResult(checkpoint=stopping.checkpoint))
        print(f"Nothing is published: that takes onStop: Publish.{GOES_ON}", flush=True)
        return ExitCode.TERMINATED
    except (Exception, SystemExit) as error:  # noqa: BLE001 (any failure becomes an exit code and a message)
        tell_sweep(task, _failed(task, explain(error)))
        return _show(error)
    return ExitCode.OK


def _told(task: Task, run: RunSpec, done: PreflightReport | RunResult) -> RunSpec:
    """Tell what a task has done; return the run with the adapter of continueFrom as preflight has read it.

    Nothing else is trained on.
    """
    tell_sweep(task, done)
    seen = done.resolved.continued_from if done.resolved else None
    if seen is None or not run.adapters:
        return run
    adapter = run.adapters[0].model_copy(update={"sha256": seen.sha256, "revision": seen.revision})
    return run.model_copy(update={"adapters": [adapter]})


def _run_sweep(manifest: dict[str, Any], folder: Path, work_dir: Path | None, stop: StopSignal) -> int:
    """Run a sweep, each trial as a run of its own; relative URIs begin in `folder`."""
    from tunery_trainer.local import sweep_of

    stop.hint = SWEEP_GOES_ON
    try:
        spec, run = sweep_of(manifest, folder, work_dir)
        search(spec, run, stop)
        stop.disarm()
        if work_dir is None:
            shutil.rmtree(run.work_dir, ignore_errors=True)
    except StopRequested:
        print(f"The search is stopped, and nothing is published.{SWEEP_GOES_ON}", flush=True)
        return ExitCode.TERMINATED
    except (Exception, SystemExit) as error:  # noqa: BLE001 (any failure becomes an exit code and a message)
        return _show(error)
    return ExitCode.OK


def _publishes_stopped(run: RunSpec) -> bool:
    return run.lora_job is not None and run.lora_job.on_stop is OnStop.PUBLISH


def _publish_instead(run: RunSpec, manifest: str, environment: dict[str, str], stop: StopSignal) -> None:
    """Let a new process publish what the run has stored, in place of this one: it may be anywhere, in any library.

    Returns where nothing is stored yet.
    """
    with suppress(ValueError):  # of a thread, where the main one hangs: it will handle none
        stop.disarm()  # until the new process takes them over: it was told already
    work, uid = Path(run.work_dir), run.identity.uid
    if not any(work.glob(f"checkpoints/{uid}/step-*/complete.json")):
        os.write(2, b"Nothing is published: no checkpoint is stored yet.\n")
        return
    with suppress(Exception):  # the signal may have come in the middle of a write, which sys.stderr refuses
        os.write(2, b"Told to stop: publishing what the newest checkpoint holds.\n")
        sys.stdout.flush()
    path = work / "stopped.json"
    path.write_text(run.model_dump_json(by_alias=True, exclude_none=True), "utf-8")
    again = [sys.executable, "-m", "tunery_trainer", "run", manifest]
    os.execve(sys.executable, again, environment | {STOPPED_RUN_ENV: str(path)})  # noqa: S606 (this very program)


def _publish_stopped(run: RunSpec, stop: StopSignal) -> int:
    """Publish what a run without a cluster had as it was told to stop."""
    stop.heeded()
    try:
        run_task(Task.PUBLISH, run.model_copy(update={"stop": "it was told to by a signal"}), stop)
    except (Exception, SystemExit) as error:  # noqa: BLE001 (any failure becomes an exit code and a message)
        return _show(error)
    print("To train on, run the same manifest again: it goes on from its checkpoint, and replaces that.", flush=True)
    return ExitCode.TERMINATED


def _estimate(options: argparse.Namespace) -> int:
    """Print what a manifest would take; nothing is trained, fetched or written."""
    question = Question(
        manifest=Path(options.path),
        name=options.name,
        model=options.model and Path(options.model),
        start=options.start,
        gpu_memory=options.gpu_memory,
        tokens_per_second=options.tokens_per_second,
        machine_readable=options.json,
    )
    try:
        answer(question)
    except StopRequested:
        return ExitCode.TERMINATED
    except BrokenPipeError:
        return _read_no_further()
    except (Exception, SystemExit) as error:  # noqa: BLE001 (any failure becomes an exit code and a message)
        return _show(error)
    return ExitCode.OK


def _check(options: argparse.Namespace) -> int:
    """Read a data set and print what is in it."""
    from tunery_trainer.local import NO_MODEL, CheckRequest, checked_sweep, load_check_spec, make_folder

    asked = {name: value for name, value in vars(options).items() if name not in ("command", "output")}
    try:
        request = CheckRequest(**asked)
        if options.output is not None:
            make_folder("--output", options.output)  # before the data is read, which may take long
        with tempfile.TemporaryDirectory(prefix="tunery-check-") as folder:
            run = load_check_spec(request, Path(folder))
            spec = run.lora_job
            name = spec.dataset.uri if spec and request.by_manifest else str(request.path)
            tokenizer = spec is not None and spec.model.uri != NO_MODEL
            return check(run, Asked(name, tokenizer, request.model, options.output, checked_sweep(request)))
    except BrokenPipeError:
        return _read_no_further()
    except (Exception, SystemExit) as error:  # noqa: BLE001 (any failure becomes an exit code and a message)
        return _show(error)


def _read_no_further() -> int:
    """Return the exit code where whoever reads the output, such as `head`, has seen enough: no defect, no trace."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
    return 128 + signal.SIGPIPE


def _tasks_of(run: RunSpec) -> tuple[Task, ...]:
    """Return what a manifest asks for, in order."""
    if run.lora_job is None:
        return (Task.MERGE,)
    if is_trial() and run.lora_job.preflight is PreflightPolicy.SKIP:
        return (Task.TRAIN,)  # another trial's preflight says the same
    only = run.lora_job.preflight is PreflightPolicy.ONLY
    return (Task.PREFLIGHT,) if only else (Task.PREFLIGHT, Task.TRAIN)


def _run_container(task: Task, path: Path, stop: StopSignal) -> int:
    """Do what the operator asks for; however it ends, the termination message says what is known."""
    stop.last_word = lambda: write_termination(_failed(task, None))
    if task is Task.TRAIN:
        stop.hint = GOES_ON
    message: PreflightReport | RunResult
    run: RunSpec | None = None
    try:
        run = _read_run_spec(path)
        trust_platform()
        message, code = run_task(task, run, stop), ExitCode.OK
    except StopRequested as stopped:
        code = ExitCode.PEER_LOST if stopped.elsewhere else ExitCode.TERMINATED
        message = RunResult(checkpoint=stopped.checkpoint)
    except (Exception, SystemExit) as error:  # noqa: BLE001 (any failure becomes an exit code and a message)
        message, code = _failed(task, explain(error)), _show(error, run)
    stop.disarm()
    write_termination(message)
    return code


def _failed(task: Task, error: TuneryError | None) -> PreflightReport | RunResult:
    reached = error.reached if error is not None else None
    return failed_message(task, error.failure if error is not None else None, reached)


def _show(error: BaseException, run: RunSpec | None = None) -> ExitCode:
    """Print why `run`, if it is one, ended, and return the exit code for it."""
    failure = explain(error)
    show(failure, error, subject_of(run) if run else None)
    sys.stdout.flush()
    return failure.exit_code


def _read_run_spec(path: Path) -> RunSpec:
    try:
        return RunSpec.model_validate(json.loads(path.read_text("utf-8")))
    except FileNotFoundError as error:
        raise TuneryError(FailureReason.INVALID_SPEC, f"{path} does not exist") from error
    except ValidationError as error:
        raise _misread(path, error) from error
    except ValueError as error:
        raise TuneryError(FailureReason.INTERNAL_ERROR, f"{path} is not what the operator writes: {error}") from error


def _misread(path: Path, error: ValidationError) -> TuneryError:
    """Say which fields this image cannot run.

    run.json holds what the user set and no defaults: to read over a setting that is not known here would train
    something else than was asked for.
    """
    problems = [(problem["loc"], problem["msg"]) for problem in error.errors()]
    if not all(loc and loc[0] in _SPECS for loc, _ in problems):
        return TuneryError(FailureReason.INTERNAL_ERROR, f"{path} is not what the operator writes: {error}")
    fields = "; ".join(f"{'.'.join(map(str, ('spec', *loc[1:])))}: {text}" for loc, text in problems)
    return TuneryError(
        FailureReason.INVALID_SPEC,
        f"this trainer image (version {version()}) cannot run it: {fields}",
        OTHER_IMAGE,
    )
