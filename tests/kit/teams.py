"""Several processes that train together: forked from one that has the imports done, and no thread."""

from __future__ import annotations

import io
import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist

from tunery_trainer.team.team import Team

_SECONDS: Final = 120.0


def together(world: int, folder: Path, work: Callable[[Team, Path], Any], *, sharded: bool = False) -> list[Any]:
    """Return what `work` returns in each of so many processes; each has a folder of its own.

    Raises AssertionError with the first process's trace where one fails, or none answers.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kit.team_runs"])
    answers: Any = context.Queue()
    store = folder / f"store-{os.urandom(4).hex()}"
    folder.mkdir(parents=True, exist_ok=True)
    teams = [Team(rank, world, max(1, world // 2), sharded) for rank in range(world)]
    processes = [context.Process(target=_run, args=(answers, store, team, folder, work)) for team in teams]
    for each in processes:
        each.start()
    try:
        found = sorted((answers.get(timeout=_SECONDS) for _ in processes), key=lambda answer: answer[0])
    finally:
        for each in processes:
            each.join(5)
            each.kill()
    failed = [trace for _, _, trace in found if trace]
    assert not failed, "\n".join(failed)
    return [torch.load(io.BytesIO(answer), weights_only=False) for _, answer, _ in found]


def _packed(answer: Any) -> bytes:
    """Return it as bytes: a tensor that a queue hands on lies in memory of the process that ends."""
    buffer = io.BytesIO()
    torch.save(answer, buffer)
    return buffer.getvalue()


def _run(answers: Any, store: Path, team: Team, folder: Path, work: Callable[[Team, Path], Any]) -> None:
    torch.set_num_threads(1)
    try:
        own = folder / f"rank-{team.rank}"
        own.mkdir(parents=True, exist_ok=True)
        if not team.alone:
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=team.rank, world_size=team.world)
        answers.put((team.rank, _packed(work(team, own)), None))
    except BaseException:  # noqa: BLE001 (whatever it is, the test is told)
        answers.put((team.rank, None, traceback.format_exc()))
        answers.close()
        answers.join_thread()
        os._exit(1)
