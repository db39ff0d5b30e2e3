"""What the process of a sweep's trial tells the sweep, in a file: what preflight has found, and how training ended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from tunery_api.runspec import PreflightReport, RunResult, RunSpec, Task
from tunery_trainer.process.whole import write_whole

TRIAL_ENV: Final = "TUNERY_TRIAL"
"""Names the file; only the process of a trial has it."""
SWEEP_ENV: Final = "TUNERY_SWEEP"
"""The name of the sweep, beside it."""


def is_trial() -> bool:
    """Tell whether this process trains a trial of a sweep."""
    return bool(os.environ.get(TRIAL_ENV))


def with_sweep(run: RunSpec) -> RunSpec:
    """Return the run as that of a trial of the sweep that has started this process; as it is where none has."""
    sweep = os.environ.get(SWEEP_ENV) if is_trial() else None
    return run.model_copy(update={"identity": run.identity.model_copy(update={"sweep": sweep})})


def tell_sweep(task: Task, message: PreflightReport | RunResult) -> None:
    """Write down what a task came to, beside what was told before; nothing where nobody waits for it."""
    named = os.environ.get(TRIAL_ENV)
    if named:
        words = message.model_dump(mode="json", by_alias=True, exclude_none=True)
        write_whole(Path(named), json.dumps({**read_words(Path(named)), task.value: words}))


def read_words(path: Path) -> dict[str, Any]:
    """Return what a trial told, by task; empty where it told nothing."""
    try:
        told: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return told
