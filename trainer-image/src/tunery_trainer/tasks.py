"""What a container is asked to do, and the story that does it."""

from __future__ import annotations

from pathlib import Path

from tunery_api.runspec import RunSpec, Task
from tunery_trainer.environment import prepare_environment
from tunery_trainer.signals import StopSignal


def run_task(task: Task, run: RunSpec, stop: StopSignal) -> None:
    """Do what the container is asked to do; the heavy libraries are imported here and not before."""
    prepare_environment(Path(run.work_dir), run.lora_job.resources.gpus if run.lora_job else 0)
    if task is Task.PREFLIGHT:
        from tunery_trainer.preflight import run_preflight

        run_preflight(run)
    elif task is Task.TRAIN:
        from tunery_trainer.train import run_train

        run_train(run, stop)
    else:
        from tunery_trainer.merge import run_merge

        run_merge(run)
