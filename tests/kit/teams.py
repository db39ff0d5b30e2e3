"""Several processes that train together: forks of one that has the imports done."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist

from tunery_trainer.team.team import Team

from kit.fork_server import Process, trainer_server

_SECONDS: Final = 120.0
_TESTS: Final = Path(__file__).parents[1]

Work = Callable[[Team, Path], Any]


def together(world: int, folder: Path, work: Work, *, sharded: bool = False) -> list[Any]:
    """Return what `work` returns in each of so many processes; each has a folder of its own.

    Raises AssertionError with the output of the first process that fails, or that does not end in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / f"store-{os.urandom(4).hex()}"
    teams = [Team(rank, world, max(1, world // 2), sharded) for rank in range(world)]
    members = [_start(folder / f"member-{team.rank}", (store, team, work)) for team in teams]
    try:
        end = time.monotonic() + _SECONDS
        while any(each.poll() is None for each in members) and not any(each.poll() for each in members):
            assert time.monotonic() < end, "processes have not ended in time"
            time.sleep(0.02)
    finally:
        failed = [rank for rank, each in enumerate(members) if each.poll()]
        for each in members:
            each.kill()
            each.wait()
    assert not failed, (folder / f"member-{failed[0]}" / "log").read_text()
    return [torch.load(folder / f"member-{rank}" / "answer", weights_only=False) for rank in range(world)]


def _start(folder: Path, task: tuple[Path, Team, Work]) -> Process:
    folder.mkdir(exist_ok=True)
    (folder / "task").write_bytes(pickle.dumps(task))
    command = [sys.executable, "-m", "kit.teams", str(folder)]
    with (folder / "log").open("wb") as log:
        return trainer_server().popen(command, cwd=_TESTS, stdout=log, stderr=subprocess.STDOUT)


def _work(folder: Path) -> None:
    """Do the task of a member, and store its answer."""
    torch.set_num_threads(1)
    store, team, work = pickle.loads((folder / "task").read_bytes())
    own = folder.parent / f"rank-{team.rank}"
    own.mkdir(parents=True, exist_ok=True)
    if not team.alone:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=team.rank, world_size=team.world)
    torch.save(work(team, own), folder / "answer")


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
