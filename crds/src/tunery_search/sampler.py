"""Ask what to try next: in this process where nobody needs Optuna for it, else in one that ends with its answer."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from typing import Final

from pydantic import ValidationError

from tunery_api.lorasweep import SamplerType
from tunery_search.propose import learnt_from, proposed, random_draw
from tunery_search.protocol import IMPORTANCE_FROM, Answer, Ask, ToldState

TIMEOUT_SECONDS: Final = 60.0
_PROGRAM: Final = "tunery_search.optuna_sampler"
_SINGLE: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_KEPT: Final = ("HOME", "LD_LIBRARY_PATH", "PATH", "TMPDIR")
"""What a Python may need to start."""
_SHOWN: Final = 500


class SuggestionFailed(Exception):
    """Nobody could say what to try next; asking again may help."""


class Processes:
    """Those that are asked right now, so that who ends need not wait for one that hangs; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alive: set[subprocess.Popen[bytes]] = set()
        self.closed = False

    def close(self) -> None:
        """End all that are under way, and start none from now on."""
        with self._lock:
            self.closed = True
            for process in self._alive:
                process.kill()

    def answer(self, question: bytes, timeout: float) -> subprocess.CompletedProcess[bytes]:
        """Run the program to its end; raises TimeoutExpired, after which it has ended too, and OSError."""
        command = [sys.executable, "-P", "-m", _PROGRAM]
        pipe = subprocess.PIPE
        with self._lock:
            if self.closed:
                raise SuggestionFailed("nobody is to be asked any more")
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=_environment())
            self._alive.add(process)
        with process:
            try:
                out, err = process.communicate(question, timeout)
            finally:
                with self._lock:
                    self._alive.discard(process)
                process.kill()
        return subprocess.CompletedProcess(command, process.returncode, out, err)


def needs_optuna(ask: Ask) -> bool:
    """Tell whether it takes a process to answer: what is drawn by chance, or from a grid, is drawn in this one.

    What has mattered is told along where Optuna is asked anyhow, else where nothing but that is asked: no draw waits
    for it.
    """
    if ask.numbers:
        return ask.sampler is SamplerType.TPE and learnt_from(ask, (*ask.earlier, *ask.trials)) is not None
    return sum(told.state is ToldState.COMPLETE for told in ask.trials) >= IMPORTANCE_FROM


def suggestions(ask: Ask, timeout: float = TIMEOUT_SECONDS, processes: Processes | None = None) -> Answer:
    """Return what to try next; for what needs Optuna it waits a second or two. Raises SuggestionFailed.

    Whoever has `processes` may end them while it waits.
    """
    installed = find_spec("optuna") is not None
    if ask.sampler is SamplerType.TPE and not installed:
        raise SuggestionFailed(
            'sampler.type TPE needs Optuna, which is not installed: pip install "tunery-api[search]", or choose '
            "Random or Grid"
        )
    if installed and needs_optuna(ask):
        return _of_process(ask, timeout, processes or Processes())
    return Answer(suggestions=proposed(ask, random_draw(ask)))


def _environment() -> dict[str, str]:
    """Return as little of this process's environment as the program needs, no credential among it."""
    return {
        **{name: os.environ[name] for name in _KEPT if name in os.environ},
        **dict.fromkeys(_SINGLE, "1"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _of_process(ask: Ask, timeout: float, processes: Processes) -> Answer:
    try:
        done = processes.answer(ask.model_dump_json(by_alias=True).encode(), timeout)
    except subprocess.TimeoutExpired:
        raise SuggestionFailed(f"the sampler did not answer within {timeout:.0f} s") from None
    except OSError as error:
        raise SuggestionFailed(f"the sampler could not be started: {error}") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise SuggestionFailed(f"the sampler ended with {done.returncode}: {(said or ['no word'])[-1][:_SHOWN]}")
    try:
        return Answer.model_validate_json(done.stdout)
    except ValidationError as error:
        raise SuggestionFailed(f"the sampler's answer is none: {error.errors()[0]['msg']}") from error
