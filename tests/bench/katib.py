"""Katib's Optuna suggestion service, fetched into the user's cache folder, beside ours: its own code, its own packages.

`go mod download` brings the source, in the version of `MODULE`; its packages are those of its own requirements.txt, in
an environment of their own. The service's class is driven without its network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tunery_search.dimensions import Categorical, Dimension, Values, plain
from tunery_search.space import space_of

from bench.environments import uv
from kit.landscapes import Landscape
from kit.sweeps import sweep
from tools.cluster.binaries import GoMissing, go
from tools.cluster.paths import cache_dir

MODULE: Final = "github.com/kubeflow/katib@v0.19.0"
_REQUIREMENTS: Final = "cmd/suggestion/optuna/v1beta1/requirements.txt"
_PATHS: Final = ("", "pkg/apis/manager/v1beta1/python", "pkg/apis/manager/health/python")
"""As the Dockerfile of its image has them."""
_PROGRAM: Final = Path(__file__).with_name("katib_service.py")
_FETCH_SECONDS: Final = 300


class NoKatib(Exception):
    """It cannot be had; the message says why."""


class Failed(Exception):
    """The service has raised something."""


class Katib:
    """The service in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, experiment: Experiment, count: int, *, new: bool) -> list[Values]:
        """Return so many points to try next; `new` as a pod that has just started. Raises Failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        told = {**experiment.told, "trials": experiment.trials, "count": count, "new": new}
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise Failed(answer["error"])
        points: list[Values] = answer["points"]
        return points


class Experiment:
    """One search with it, and its trials."""

    def __init__(self, landscape: Landscape, algorithm: str, seed: int, startup: int) -> None:
        self._landscape = landscape
        self.trials: list[dict[str, Any]] = []
        self.told: dict[str, Any] = {
            "algorithm": algorithm,
            "settings": {"random_state": str(seed), "n_startup_trials": str(startup)},
            "parameters": [_parameter(each) for each in space_of(sweep(**landscape.fields)).dimensions],
        }

    def play(self, katib: Katib, trials: int, parallel: int) -> list[float | None]:
        """Return what so many trials came to, some at a time; None of those that failed. Raises Failed."""
        while len(self.trials) < trials:
            count = min(parallel, trials - len(self.trials))
            self.try_(katib.ask(self, count, new=not self.trials))
        return [None if each["loss"] is None else float(each["loss"]) for each in self.trials]

    def try_(self, points: Sequence[Values]) -> None:
        """Let trials of these points end."""
        for values in points:
            run = self._landscape.run(values)
            loss = None if run.failure else f"{run.losses[-1]:.6g}"
            self.trials.append({"name": f"bench-{len(self.trials):03}", "values": values, "loss": loss})


def _parameter(dimension: Dimension) -> dict[str, Any]:
    if isinstance(dimension, Categorical):
        return {"name": dimension.path, "choices": dimension.choices}
    ends = {"min": plain(dimension.low), "max": plain(dimension.high)}
    return {"name": dimension.path, "log": dimension.log, **ends}


@contextmanager
def started() -> Iterator[Katib]:
    """Yield the service. Raises NoKatib."""
    try:
        source = _source()
        python = _environment(source)
    except (GoMissing, OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise NoKatib(f"{MODULE} is not to be had: {said.strip().splitlines()[-1]}") from error
    paths = os.pathsep.join(str(source / path) for path in _PATHS)
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([python, str(_PROGRAM)], env=environment, text=True, **pipes) as process:
        try:
            yield Katib(process)
        finally:
            process.kill()


def _source() -> Path:
    """Return where Go keeps Katib's source. Raises NoKatib."""
    command = [go(), "mod", "download", "-json", MODULE]
    environment = os.environ | {"GOMODCACHE": str(cache_dir() / "go"), "GOFLAGS": "-modcacherw"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_SECONDS, env=environment)
    # Go says there what is wrong, too.
    told = json.loads(done.stdout or "{}")
    if "Dir" not in told:
        raise NoKatib(f"{MODULE} is not to be had: {told.get('Error') or done.stderr.strip()}")
    return Path(told["Dir"])


def _environment(source: Path) -> Path:
    """Return the Python of an environment with the packages that Katib asks for."""
    folder = cache_dir() / "katib" / source.name
    if not (folder / "complete").exists():
        _run(uv(), "venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
        wanted = ["--requirement", str(source / _REQUIREMENTS)]
        _run(uv(), "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *wanted)
        (folder / "complete").touch()
    return folder / "bin" / "python"


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=_FETCH_SECONDS)
