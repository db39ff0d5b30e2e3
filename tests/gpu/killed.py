"""A run by the real command line that loses a process: how all of them end, and what another try makes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunery_trainer.process.place import SIMULATED_ENV
from tunery_trainer.process.supervise import CHILD

from gpu.verdicts import Figures, Machine

ENDED_WITHIN: Final = 30.0
"""Seconds after a SIGKILL of one process, in which all of them have to have ended."""
_GIVEN_UP: Final = 120.0
"""Seconds after which it is not waited for any more."""
_LONGEST: Final = 240.0
"""Seconds of a run until it trains, and of a whole one."""
_RESUMING: Final = "Resuming from the checkpoint of step "


@dataclass(frozen=True)
class Attempt:
    """One try of a run."""

    process: subprocess.Popen[bytes]
    """The one that leads, in a session of its own."""
    log: Path
    work: Path
    """Its folder, which those that follow are told."""

    def others(self) -> list[int]:
        """Return the ids of the processes that follow; each has a session of its own, and may have lost its parent."""
        return [process for process in _processes() if _follows(process, self.work)]

    def left(self) -> list[int]:
        """Return the ids of all that have not ended."""
        self.process.poll()
        return [*_session(self.process.pid), *self.others()]

    def end(self) -> None:
        """Kill whatever is left."""
        for process in self.left():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()


def kill_and_retry(machine: Machine, job: Path, *, leader: bool) -> Figures:
    """Run the job on two devices, kill a process between two checkpoints, and run it again.

    Return the exit codes of both, the seconds until all processes had ended, and what the second one said it does.
    """
    first = start(machine, job, "first")
    try:
        _await_checkpoint(first, job.parent)
        others = first.others()
        victim = first.process.pid if leader else others[0]
        begin = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        while (left := first.left()) and time.monotonic() < begin + _GIVEN_UP:
            time.sleep(0.05)
        seconds = time.monotonic() - begin
    finally:
        first.end()
    found: Figures = {"others": len(others), "exit_code": first.process.returncode, "left": len(left)}
    found |= {"seconds_until_all_had_ended": round(seconds, 1), "last_words": _last_words(first.log)}
    return found | _again(machine, job)


def _again(machine: Machine, job: Path) -> Figures:
    begin = time.monotonic()
    second = start(machine, job, "second")
    try:
        code = second.process.wait(_LONGEST)
    finally:
        second.end()
    said = second.log.read_text(errors="replace")
    _, resumed, rest = said.partition(_RESUMING)
    manifest = job.parent / "out" / "manifest.json"
    lineage = json.loads(manifest.read_text())["lineage"] if manifest.exists() else {}
    return {
        "second_exit_code": code,
        "second_seconds": round(time.monotonic() - begin, 1),
        "resumed_from_step": int(rest.split()[0]) if resumed else None,
        "published_step": lineage.get("step"),
        "devices": lineage.get("resolved", {}).get("devices"),
        "device": lineage.get("device"),
    }


def complaints(found: Figures, *, leader: bool, steps: int, code: int) -> dict[str, bool]:
    """Return what would be wrong with what `kill_and_retry` has found of a run of so many steps.

    `code` is that with which the leader ends where another process is killed.
    """
    expected = -signal.SIGKILL if leader else code
    step = found["resumed_from_step"]
    return {
        "not two processes trained": found["others"] != 1,
        f"{found['left']} processes had not ended": found["left"] > 0,
        f"it took {found['seconds_until_all_had_ended']} s until all had ended": (
            found["seconds_until_all_had_ended"] >= ENDED_WITHIN
        ),
        f"the exit code is {found['exit_code']}, not {expected}": found["exit_code"] != expected,
        f"the second run ended with {found['second_exit_code']}": found["second_exit_code"] != 0,
        "the second run began anew": step is None or not 0 < step < steps,
        "it is not published": found["published_step"] != steps,
        "it was not trained on two devices": found["devices"] != 2,
    }


def start(machine: Machine, job: Path, name: str) -> Attempt:
    """Start the job on two devices; it ends with this process, whatever ends that."""
    own = {CHILD: str(os.getpid())} | ({SIMULATED_ENV: "2"} if machine.dry else {})
    log, work = job.parent / f"{name}.log", job.parent / "work"
    command = [sys.executable, "-m", "tunery_trainer", "run", str(job), "--work-dir", str(work)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **own}, start_new_session=True
        )
    return Attempt(process, log, work)


def _await_checkpoint(attempt: Attempt, folder: Path) -> None:
    """Wait until the first checkpoint is complete: the second one has been begun.

    Raises RuntimeError where the run ends before, with its last words.
    """
    until = time.monotonic() + _LONGEST
    while len(list(folder.glob("work/checkpoints/*/step-*"))) < 2:
        if attempt.process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the run came to no checkpoint: {_last_words(attempt.log)}")
        time.sleep(0.02)


def _last_words(log: Path) -> str:
    """Return the last two lines of a log, as what failed and what to do; all of it goes to this process's own log."""
    said = log.read_text(errors="replace")
    print(said, file=sys.stderr, flush=True)
    return " ".join([line for line in said.splitlines() if line.strip()][-2:])


def _session(leader: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    found: list[int] = []
    for process in _processes():
        with suppress(OSError):
            # Name, state, parent, group, session: the name may have spaces and brackets.
            state, _, _, session = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found.append(process)
    return found


def _processes() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def _follows(process: int, work: Path) -> bool:
    with suppress(OSError):
        return f"\0follow\0{work}/" in Path(f"/proc/{process}/cmdline").read_text(errors="replace")
    return False
