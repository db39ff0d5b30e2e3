"""Data that a tiny model can learn in a minute, a manifest, and the trainer's real command line around them."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from tunery_trainer.cli import main

from kit.fork_server import Process, trainer_server

Case = Callable[..., Path]
"""Writes a manifest with the given changes beside model and data, and gives its path back."""
Run = Callable[..., Path]
"""Writes a run.json as the operator would, and gives its path back."""
Write = Callable[[str, Sequence[Any]], Path]
"""Writes rows (objects, or raw lines as strings) as a .jsonl file and gives its path back."""
WORDS = ("red", "blue", "green", "one", "two", "three", "cat", "dog")


def make_rows(count: int = 120) -> list[dict[str, str]]:
    """Return questions whose answers follow from them."""
    draw = random.Random(7)
    return [
        {"prompt": f"say {word} {number}", "completion": f"{word} {word} {number}"}
        for word, number in ((draw.choice(WORDS), draw.randint(0, 99)) for _ in range(count))
    ]


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def manifest(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return a LoRAJob that trains in seconds, with `changes` put over its spec, block by block (None: without it)."""
    spec: dict[str, Any] = {
        "model": {"uri": "file://model"},
        "dataset": {"uri": "file://data.jsonl", "evaluation": {"fraction": 0.1}},
        "method": "LoRA",
        "lora": {"rank": 8},
        "training": {
            "maxSteps": 20,
            "learningRate": 1e-2,
            "batchSize": 4,
            "gradientAccumulation": 1,
            "maxLength": 128,
        },
        "checkpoint": {"everySteps": 5},
        "output": {"uri": f"file://{folder}/out"},
        "resources": {"gpus": 0},
    }
    for name, value in changes.items():
        if value is None:
            del spec[name]
            continue
        merged = isinstance(value, dict) and isinstance(spec.get(name), dict)
        spec[name] = spec[name] | value if merged else value
    return {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRAJob", "metadata": {"name": "tiny"}, "spec": spec}


def write_manifest(folder: Path, content: Any) -> Path:
    """Write a manifest beside the model and the data."""
    path = folder / "job.yaml"
    # As JSON, which is YAML, too: PyYAML would write the text 1e-2 without quotes, which kubectl takes for a number.
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return path


def command(*arguments: str | Path) -> list[str]:
    """Return the real command line of the trainer."""
    return [sys.executable, "-m", "tunery_trainer", *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a run: no hub, one thread, no termination log of this machine."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **extra}


def run_trainer(*arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run the trainer to its end and return its exit code and output."""
    return trainer_server().run(command(*arguments), env=environment(**extra), text=True, timeout=300)


def run_here(*arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Do the same as run_trainer in this process, which has the libraries imported already."""
    out, err = io.StringIO(), io.StringIO()
    before, handlers = dict(os.environ), {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    os.environ.update(environment(**extra))
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main([str(argument) for argument in arguments])
    finally:
        os.environ.clear()
        os.environ.update(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(list(arguments), code, out.getvalue(), err.getvalue())


def start(path: Path) -> Process:
    """Start a run and leave it alone."""
    return trainer_server().popen(
        command("run", path, "--work-dir", path.parent / "work"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """Return the points of curve.jsonl in a folder, each of a step of its own, in order."""
    points = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    steps = [point["step"] for point in points]
    assert steps == sorted(set(steps)), steps
    return points


def newest_log(path: Path) -> list[dict[str, Any]]:
    """Return what the newest checkpoint of the run of a manifest remembers of each step that was logged."""
    newest = max((path.parent / "work" / "checkpoints").glob("*/step-*/trainer_state.json"))
    told: list[dict[str, Any]] = json.loads(newest.read_text())["log_history"]
    return told
