"""One function in several processes that train together, each shown one GPU: started and met as the trainer's own.

In a dry run they are processes on the CPU, which meet over gloo.
"""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch.distributed as dist

from tunery_trainer.crew.causes import is_echo
from tunery_trainer.process.environment import VISIBLE_ENV, cpu_limit
from tunery_trainer.process.failures import explain
from tunery_trainer.process.place import Place, own_place
from tunery_trainer.process.supervise import CHILD, die_with_parent
from tunery_trainer.team.team import Team, join

from gpu.registry import ROOT
from gpu.verdicts import Machine
from tools.cluster.ports import free_port

Work = Callable[[Machine, Team], Any]
"""What each process does; can be pickled, as can what it returns."""
_SIMULATED: Final = 2
"""Devices of a dry run."""
_ECHO_SECONDS: Final = 10.0
"""How long others may go on after one has failed: the first one to end may only say that another is gone."""

_KINDS: Final = ("failure", "echo")
"""What a process leaves that has failed: by itself, or as another one is gone."""


def devices_of(machine: Machine) -> int:
    """Return how many devices there are: a check itself sees the first one only, and is told of several."""
    return _SIMULATED if machine.dry else len(os.environ.get(VISIBLE_ENV, "").split(","))


def together(machine: Machine, devices: int, work: Work, *, sharded: bool = False) -> list[Any]:
    """Return what `work` returns in each of so many processes, in the order of their ranks.

    Raises RuntimeError with the words of the one that has failed by itself.
    """
    folder = machine.folder / f"ranks-{time.monotonic_ns()}"
    folder.mkdir()
    job = folder / "job.pickle"
    job.write_bytes(pickle.dumps((machine, work, sharded)))
    place = Place(devices=devices, port=free_port()) if devices > 1 else Place()
    processes = [start(place.of(device), job, folder) for device in range(devices)]
    try:
        failed = _wait(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if failed:
        raise RuntimeError(_cause(failed, folder))
    return [pickle.loads(_answer(folder, rank).read_bytes()) for rank in range(devices)]


def start(place: Place, job: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Start the process of a place on what is pickled in `job`; it answers in `folder`, and ends with this one."""
    own = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cpu_limit() // place.devices)),
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # as the trainer has it
        CHILD: str(os.getpid()),
    }
    command = [sys.executable, "-m", "gpu.ranks", str(job), str(folder)]
    variables = {**os.environ, **place.environment(), **own}
    # What it prints goes where all goes that is not an answer.
    return subprocess.Popen(command, stdout=2, env=variables, cwd=ROOT / "tests")


def _wait(processes: list[subprocess.Popen[bytes]]) -> dict[int, int]:
    """Wait for the end of all, or of those that end soon after one has failed; return ranks and codes of the failed."""
    until = math.inf
    while time.monotonic() < until:
        codes = [process.poll() for process in processes]
        if None not in codes:
            break
        if any(codes):
            until = min(until, time.monotonic() + _ECHO_SECONDS)
        time.sleep(0.05)
    return {rank: code for rank, code in enumerate(codes) if code}


def _cause(failed: dict[int, int], folder: Path) -> str:
    """Return the words of the first one that has failed by itself; of one without words how it ended."""
    own, echoes = (
        [(rank, path.read_text()) for rank in failed if (path := folder / f"{kind}-{rank}").exists()] for kind in _KINDS
    )
    silent = [(rank, f"it ended with {code}") for rank, code in failed.items() if rank not in dict(own + echoes)]
    rank, words = (*own, *silent, *echoes)[0]
    return f"process {rank}: {words}"


def _answer(folder: Path, rank: int) -> Path:
    return folder / f"answer-{rank}.pickle"


def main(job: Path, folder: Path) -> int:
    """Meet the others, do the work, and leave the answer; or in words why there is none."""
    die_with_parent()
    place = own_place()
    try:
        machine, work, sharded = pickle.loads(job.read_bytes())
        own = folder / f"rank-{place.rank}"
        own.mkdir()
        answer = work(replace(machine, folder=own), join(place, sharded=sharded))
        _answer(folder, place.rank).write_bytes(pickle.dumps(answer))
        if dist.is_initialized():
            dist.destroy_process_group()
    except BaseException as error:  # noqa: BLE001 (whatever it is, the check is told)
        traceback.print_exc()
        kind = _KINDS[is_echo(error)]
        (folder / f"{kind}-{place.rank}").write_text(str(explain(error)))
        # Not by way of the libraries, which may wait for the others.
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
