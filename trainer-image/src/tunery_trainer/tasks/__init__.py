"""What a container is asked to do, and the story that does it: each a module, told from top to bottom."""

from __future__ import annotations

from pathlib import Path

from tunery_api.lorasweep import LoRASweepSpec
from tunery_api.reasons import ExitCode
from tunery_api.runspec import PreflightReport, RunResult, RunSpec, Task
from tunery_trainer.process.environment import prepare_environment
from tunery_trainer.process.place import counts_of
from tunery_trainer.process.signals import StopSignal
from tunery_trainer.tasks.question import Asked, Question


def run_task(task: Task, run: RunSpec, stop: StopSignal) -> PreflightReport | RunResult:
    """Do what the container is asked to do, and return what it has to say at its end.

    The heavy libraries are imported here and not before. Raises TuneryError, and StopRequested after a SIGTERM.
    """
    _prepare(task, run)
    if task is Task.PREFLIGHT:
        from tunery_trainer.tasks.preflight import run_preflight

        return run_preflight(run)
    result = _result(task, run, stop)
    if result.adapter:
        print(f"Published {result.adapter.uri} (manifest {result.adapter.manifest_sha256})", flush=True)
    return result


def search(spec: LoRASweepSpec, run: RunSpec, stop: StopSignal) -> None:
    """Do what a sweep without a cluster is asked to do; `run` is its end. Raises as run_task."""
    prepare_environment(Path(run.work_dir), spec.template.resources.gpus)
    from tunery_trainer.tasks.sweep import run_sweep

    result = run_sweep(spec, run, stop)
    if result.adapter:
        print(f"Published {result.adapter.uri} (manifest {result.adapter.manifest_sha256})", flush=True)


def answer(question: Question) -> None:
    """Print what a job would take; raises TuneryError."""
    from tunery_trainer.tasks.estimate import run_estimate

    run_estimate(question)


def check(run: RunSpec, asked: Asked) -> ExitCode:
    """Print what is in the data of a run, and return how that ends; raises TuneryError."""
    from tunery_trainer.tasks.check import run_check

    return run_check(run, asked)


def follow(assignment: Path, folder: Path, stop: StopSignal) -> ExitCode:
    """Train with the process that leads, and return how that ends."""
    from tunery_trainer.tasks.following import run_following

    return run_following(assignment, folder, stop)


def _prepare(task: Task, run: RunSpec) -> None:
    # Without a cluster training follows in this very process.
    processes, _ = counts_of(run) if task is Task.TRAIN or run.local else (1, 1)
    prepare_environment(Path(run.work_dir), run.lora_job.resources.gpus if run.lora_job else 0, processes)


def _result(task: Task, run: RunSpec, stop: StopSignal) -> RunResult:
    if task is Task.TRAIN:
        from tunery_trainer.tasks.train import run_train

        return run_train(run, stop)
    if task is Task.MERGE:
        from tunery_trainer.tasks.merge import run_merge

        return run_merge(run)
    if task is Task.PUBLISH_BEST:
        from tunery_trainer.tasks.publish_best import run_publish_best

        return run_publish_best(run)
    if task is Task.PUBLISH:
        from tunery_trainer.tasks.publish import run_publish

        return run_publish(run)
    from tunery_trainer.tasks.report import run_report

    return run_report(run)
