"""Several processes that train together come to what one of them comes to alone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from datasets import Dataset

from tunery_trainer.crew.causes import is_echo
from tunery_trainer.losses.evaluation import Pass
from tunery_trainer.losses.objectives import Dpo
from tunery_trainer.process.place import Place
from tunery_trainer.team import team as team_module
from tunery_trainer.team.team import Team, join
from tunery_trainer.training import reference_scores, shared_steps
from tunery_trainer.training.reference_scores import Scoring, TaskRows
from tunery_trainer.training.shared_steps import SharedSteps

from kit.team_runs import METHODS, PASSES, Preferred, Trained, answer, go_on, hear, lag, prefer, run_out, stop, train
from kit.teams import together

TEAMS = list(product(METHODS, (2, 4)))


def apart(one: Trained | Preferred, other: Trained | Preferred) -> float:
    return max(float((one.state[name] - tensor).abs().max()) for name, tensor in other.state.items())


@pytest.mark.slow
@pytest.mark.parametrize(("method", "world"), TEAMS)
def test_a_base_in_parts_trains_the_same(llama: Path, tmp_path: Path, method: str, world: int) -> None:
    blocks = METHODS[method]
    [alone] = together(1, tmp_path / "alone", partial(train, llama, blocks))
    first, *others = together(world, tmp_path / "team", partial(train, llama, blocks), sharded=True)
    assert first.losses == pytest.approx(alone.losses, abs=2e-6)
    assert apart(first, alone) < 5e-5
    for other in others:
        assert apart(first, other) == 0


@pytest.mark.slow(fast=["LoRA-2"])
@pytest.mark.parametrize(("method", "world"), TEAMS)
def test_a_team_trains_what_one_process_trains(llama: Path, tmp_path: Path, method: str, world: int) -> None:
    [alone] = together(1, tmp_path / "alone", partial(train, llama, METHODS[method]))
    first, *others = together(world, tmp_path / "team", partial(train, llama, METHODS[method]))
    assert first.losses == pytest.approx(alone.losses, abs=2e-6)
    assert first.norms == pytest.approx(alone.norms, rel=1e-4)
    assert (first.tokens, first.epochs) == (alone.tokens, alone.epochs)
    assert apart(first, alone) < 5e-5
    for other in others:
        assert apart(first, other) == 0


@pytest.mark.slow
@pytest.mark.parametrize("task", ["SFT", "DPO", "ORPO", "KTO"])
def test_a_team_prefers_what_one_process_prefers(llama: Path, tmp_path: Path, task: str) -> None:
    """The loss of a step is a mean over the rows of all processes, KTO's reference point, too."""
    [alone] = together(1, tmp_path / "alone", partial(prefer, llama, task))
    first, other = together(2, tmp_path / "team", partial(prefer, llama, task))
    assert len(first.log) == len(alone.log) > 5
    for mine, theirs in zip(first.log, alone.log, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=2e-6)
    assert first.log == other.log
    for mine, theirs in zip(first.reference, alone.reference, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5, nan_ok=True)
    assert apart(first, alone) < 5e-5
    assert apart(first, other) == 0


WORLDS = {"1": (1, False), "2": (2, False), "4": (4, False), "2 in parts": (2, True)}


@pytest.mark.slow(fast=["2-1"])
@pytest.mark.parametrize(("before", "after"), list(product(WORLDS, WORLDS)))
def test_any_team_goes_on_from_the_checkpoint_of_any_other(
    llama: Path, tmp_path: Path, before: str, after: str
) -> None:
    (world, sharded), (other_world, other_sharded) = WORLDS[before], WORLDS[after]
    first, *others = together(world, tmp_path / "a", partial(train, llama, {}), sharded=sharded)
    assert not any(each.files for each in others)
    checkpoint = tmp_path / "a" / "rank-0" / "checkpoint-5"
    resumed, *_ = together(other_world, tmp_path / "b", partial(go_on, llama, {}, checkpoint), sharded=other_sharded)
    assert resumed.losses == pytest.approx(first.losses, abs=2e-6)
    assert apart(first, resumed) < (1e-12 if before == after else 5e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "grouped"), list(product((2, 4), (False, True))))
def test_a_team_of_the_same_size_goes_on_to_the_bit(llama: Path, tmp_path: Path, world: int, *, grouped: bool) -> None:
    """With dropout, which each process draws for itself, and with rows by their length."""
    blocks: dict[str, object] = {"lora": {"dropout": 0.1}, "training": {"groupByLength": grouped}}
    whole = together(world, tmp_path / "a", partial(train, llama, blocks))
    checkpoint = tmp_path / "a" / "rank-0" / "checkpoint-5"
    resumed = together(world, tmp_path / "b", partial(go_on, llama, blocks, checkpoint))
    for one, other in zip(whole, resumed, strict=True):
        assert other.losses == one.losses
        assert apart(one, other) == 0


@pytest.mark.slow
def test_memory_that_runs_out_in_one_process_costs_all_of_them_the_step_and_nothing_else(
    llama: Path, tmp_path: Path
) -> None:
    [alone] = together(1, tmp_path / "alone", partial(train, llama, {}))
    first, other = together(2, tmp_path / "team", partial(run_out, llama, 1))
    assert first.passes == other.passes == (1, 2 * PASSES)
    assert first.cause == other.cause
    assert "memory ran out with 2 × 4 rows at step 3: going on with 1 × 8 rows (CUDA out of memory" in first.cause
    assert first.trained.losses[-5:] == pytest.approx(alone.losses[-5:], abs=2e-6)
    assert apart(first.trained, alone) < 5e-5
    assert apart(first.trained, other.trained) == 0


OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")


class Heard(Team):
    """One of two processes, of which the other is fine."""

    def any(self, *flags: bool) -> list[bool]:
        return list(flags)

    def gather(self, mine: Any) -> list[Any]:
        return [mine, ([], "") if isinstance(mine, tuple) else ""]


def test_memory_that_runs_out_beside_the_passes_is_told_before_the_others_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that went on by itself would meet them in another place, and all would wait for half an hour."""

    def run_out_of_it(*_: object) -> Iterator[Any]:
        raise OUT
        yield

    monkeypatch.setattr(shared_steps, "pack", lambda _: next(run_out_of_it()))
    with pytest.raises(MemoryError, match="Tried to allocate"):
        SharedSteps(Heard(0, 2), list).end(torch.device("cpu"))
    monkeypatch.setattr(reference_scores, "scored", run_out_of_it)
    rows, scoring = Dataset.from_dict({"row": [0]}), Scoring(Dpo(None), Pass(0, team=Heard(0, 2)))  # type: ignore[arg-type]
    known = TaskRows(rows, rows, rows, {"train": torch.full((1, 2), torch.nan)})
    with pytest.raises(MemoryError, match="Tried to allocate"):
        list(known._score("train", [0], torch.nn.Module(), scoring))


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_whoever_is_told_to_stop_all_stop_after_the_same_step_with_one_checkpoint(
    llama: Path, tmp_path: Path, told: int
) -> None:
    assert together(2, tmp_path, partial(stop, llama, told)) == [(3, ["checkpoint-3"], True), (3, [], True)]


@pytest.mark.slow
def test_a_stop_is_of_the_node_of_which_a_process_was_told(tmp_path: Path) -> None:
    """Its pod ends as one that was told to, though its first process was not; the other node's as one that lost it."""
    heard, why = "; node 0 stores the checkpoint.", "Told to stop: node 1 was told to.\n"
    lost = [(False, why, "; the checkpoint is stored."), (False, why, heard)]
    assert together(4, tmp_path, partial(hear, [3], True)) == [*lost, *[(True, "", heard)] * 2]
    nowhere = (True, "", " without a checkpoint.")
    assert together(4, tmp_path / "all", partial(hear, [1, 2], False)) == [nowhere] * 4


def test_a_process_waits_half_an_hour_for_others_and_longer_for_the_first_checkpoint(tmp_path: Path) -> None:
    """With it comes the digest of a base in a claim, which may still be read; a network that is cut is no digest."""
    assert timedelta(minutes=10) < team_module.STEPPING < timedelta(hours=1)
    first, other = together(2, tmp_path, lag)
    assert "Timed out waiting 300ms for " in other
    assert "Connection closed by peer" in first
    assert is_echo(RuntimeError(other))


def test_a_process_that_cannot_meet_the_others_waits_for_minutes_and_not_for_hours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The port may have been cut off since it was tried."""
    assert timedelta(minutes=15) >= team_module._MEETING
    monkeypatch.setattr(team_module, "_MEETING", timedelta(seconds=0.5))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(dist.DistNetworkError, match=f"127.0.0.1, {port}") as raised:
        join(Place(1, 2, port=port), sharded=False)
    assert is_echo(raised.value)


@pytest.mark.slow
def test_answers_of_a_base_in_parts_end_together(llama: Path, tmp_path: Path) -> None:
    """GPUs that differ in the last digit may take another token, and a process that ends first leaves the others."""
    long, short = together(2, tmp_path, partial(answer, llama, 1), sharded=True)
    assert short.words < long.words
    assert short.after == long.after
