"""Runs checks in processes with a time limit, and writes what each case says as soon as it has said it."""

from __future__ import annotations

import functools
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gpu.registry import CHECKS, ROOT
from gpu.verdicts import FINAL, Verdict
from tools.cluster.daemon import ENDS_WITH_PARENT

Json = dict[str, Any]
_DRY_SECONDS: Final = 300.0
"""What one case may take on a slow CPU."""
FIRST: Final = "CUDA_VISIBLE_DEVICES"
ALL: Final = "TUNERY_VISIBLE_DEVICES"
"""The trainer's name for it, which cannot be imported before the checks have their packages."""
_OVER: Final = "the time of the whole run is over"


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    out: Path
    """The folder of gpu.json, and of log.txt, which holds what the checks printed."""
    checks: tuple[str, ...]
    dry: bool = False
    budget: float | None = None
    """Seconds after which nothing goes on."""
    model: Path | None = None
    data: Path | None = None
    packages: tuple[Path, ...] = ()
    """Folders of Python packages that come first."""


class Report:
    """gpu.json: by check and case, what was said; written anew with each case."""

    def __init__(self, path: Path, earlier: Path | None, *, dry: bool) -> None:
        """Go on from an `earlier` report, or from the one at `path`; raises SystemExit where it is of another kind."""
        self._path = path
        self.content: Json = {"dry": dry, "checks": {}}
        source = earlier or path
        if not source.exists():
            if earlier:
                raise SystemExit(f"--earlier: there is no {earlier}")
            return
        try:
            self.content = json.loads(source.read_text())
        except ValueError as error:
            raise SystemExit(f"{source} is no report ({error}): remove it, or name another one") from error
        if self.content["dry"] != dry:
            raise SystemExit(f"{source} is of a run {'without' if dry else 'with'} --dry: name another --out")

    def done(self, check: str) -> list[str]:
        """Return the cases that need not be run again."""
        return [name for name, said in self._of(check).items() if said["verdict"] in FINAL]

    def complete(self, check: str) -> bool:
        """Tell whether all cases of a check have been listed and are done."""
        return bool(self._of(check)) and len(self.done(check)) == len(self._of(check))

    def note(self, check: str, case: str, said: Json) -> None:
        """Put down what a case said, and write."""
        self._of(check)[case] = said
        self.write()

    def expect(self, check: str, cases: list[str]) -> None:
        """Put down the cases of a check that have not been run as not reached."""
        known = self._of(check)
        for name in cases:
            known.setdefault(name, {"verdict": Verdict.NOT_REACHED.value})
        self.write()

    def write(self) -> None:
        """Write, such that a cut leaves the old report or the new one."""
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n")
        partial.replace(self._path)

    def verdicts(self) -> dict[str, dict[str, str]]:
        """Return the verdicts alone."""
        checks = self.content["checks"]
        return {check: {case: said["verdict"] for case, said in cases.items()} for check, cases in checks.items()}

    def _of(self, check: str) -> dict[str, Json]:
        cases: dict[str, Json] = self.content["checks"].setdefault(check, {})
        return cases


def run(request: Request, report: Report) -> None:
    """Run every check that is not complete: each in a process of its own, in a dry run all in one."""
    deadline = time.monotonic() + request.budget if request.budget is not None else None
    wanted = [check for check in request.checks if not report.complete(check)]
    groups = [wanted] if request.dry else [[check] for check in wanted]
    with tempfile.TemporaryDirectory() as folder:
        for group in groups:
            while group and not _over(deadline):
                group = _Process(request, report, group).watch(Path(folder), deadline)


def _over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


class _Process:
    """One process that runs the cases of some checks."""

    def __init__(self, request: Request, report: Report, checks: list[str]) -> None:
        self._request, self._report, self._checks = request, report, checks
        self._running: tuple[str, str] | None = None
        """Check and case that has begun and not ended."""
        self._said = 0

    def watch(self, folder: Path, deadline: float | None) -> list[str]:
        """Run it; return the checks that want another process: after a case that took the process with it."""
        checks = {check: {"module": CHECKS[check].module, "done": self._report.done(check)} for check in self._checks}
        given = {"model": self._request.model, "data": self._request.data, "folder": folder}
        asked: Json = {name: path and str(path.resolve()) for name, path in given.items()}
        asked |= {"dry": self._request.dry, "checks": checks}
        with (self._request.out / "log.txt").open("ab") as log:
            command = [*ENDS_WITH_PARENT, sys.executable, "-m", "gpu.one", json.dumps(asked)]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT / "tests", env=self._environment(), text=True
            )
            killed = self._read(process, deadline)
        if killed == _OVER:
            return []
        if self._running:
            self._failed(killed or f"the process ended with {process.returncode}")
        elif process.returncode == 0:
            return []
        elif not self._said:
            # It never got to a case: another process would not, either.
            self._note(self._checks[0], "start", {"verdict": Verdict.FAILED.value, "words": "see log.txt"})
            return self._checks[1:]
        return [check for check in self._checks if not self._report.complete(check)]

    def _environment(self) -> dict[str, str]:
        places = [*map(str, self._request.packages), os.environ.get("PYTHONPATH", "")]
        shown = {FIRST: ""} if self._request.dry else shown_first(os.environ)
        own = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        return os.environ | own | shown | {"PYTHONPATH": os.pathsep.join(filter(None, places))}

    def _read(self, process: subprocess.Popen[str], deadline: float | None) -> str:
        """Take in what it says until it ends; returns why it was killed, if it was."""
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_forward, args=(process, lines), daemon=True).start()
        limit = self._limit()
        try:
            while (line := lines.get(timeout=max(0.01, min(limit, deadline or limit) - time.monotonic()))) is not None:
                self._take(json.loads(line))
                limit = self._limit()
        except queue.Empty:
            process.kill()
            return _OVER if _over(deadline) else "it took too long"
        except KeyboardInterrupt:
            process.kill()
            raise
        finally:
            process.wait()
        return ""

    def _limit(self) -> float:
        """Return when the case that runs now has taken too long."""
        check = self._running[0] if self._running else self._checks[0]
        return time.monotonic() + (_DRY_SECONDS if self._request.dry else CHECKS[check].seconds)

    def _take(self, said: Json) -> None:
        check = said.pop("check")
        if "cases" in said:
            self._report.expect(check, said["cases"])
        elif "begins" in said:
            self._said += 1
            self._running = (check, said["begins"])
        else:
            self._running = None
            self._note(check, said.pop("case"), said)

    def _failed(self, words: str) -> None:
        if self._running:
            said = {"verdict": Verdict.FAILED.value, "words": words, "dry": self._request.dry}
            self._note(*self._running, said)

    def _note(self, check: str, case: str, said: Json) -> None:
        self._report.note(check, case, said)
        words = said.get("words")
        print(f"{check}, {case}: {said['verdict']}{f' ({words})' if words else ''}", flush=True)


def shown_first(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which a check sees the first of several GPUs, and knows of all: as the trainer's own.

    Libraries would spread a loop over all that they see.
    """
    given = variables.get(FIRST)
    count = len(given.split(",")) if given is not None else _count()
    if count < 2:
        return {}
    every = given or ",".join(map(str, range(count)))
    return {FIRST: every.split(",")[0], ALL: every}


@functools.cache
def _count() -> int:
    """Return how many GPUs torch sees here: asked in another process, as this one imports none of it."""
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else 0


def _forward(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    if process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put(None)
