"""Several GPUs that train one adapter: what they come to, how they end, what each takes, and how fast they are.

Where there are fewer than a case needs it says so. A base in parts is shown on one GPU, too: a group of one process has
one part, which goes the way of all others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from peft import PeftModel

from tunery_api.reasons import ExitCode
from tunery_trainer.adapter.attach import attach
from tunery_trainer.adapter.methods.base import MethodContext
from tunery_trainer.model.sharding import shard
from tunery_trainer.process.device import device_facts
from tunery_trainer.team.team import Team
from tunery_trainer.training.weights import trained_state

from gpu import killed
from gpu.checks.peak import Shape, compared, planned
from gpu.models import load, write_model
from gpu.ranks import devices_of, together
from gpu.runs import (
    Pace,
    Run,
    adapted,
    clear,
    difference,
    losses,
    packed_rows,
    prepare,
    random_examples,
    scratch,
    shaped,
    trainer_for,
    used,
)
from gpu.story import write_job, write_rows
from gpu.verdicts import Case, Check, Figures, Machine, Outcome, Verdict, judged
from tools.cluster.tiny import make_tiny_model

_STEPS: Final = 4
_LAYERS: Final = 4
"""Of the base in parts: each layer is a part like the others."""
_KILLED_STEPS: Final = 400
"""Of a run that is killed after some 40 of them; a GPU takes 20 ms for each."""
_DRY_STEPS: Final = 40
_WARM: Final = 2
_TIMED: Final = 6
_PASSES: Final = 8
"""Of a step, of all GPUs together: the same job on 1, 2, 4 and 8 of them."""
_TWICE: Final = 1.5
"""Times one GPU's speed, that two of them have to have at least."""

Spread = tuple[Shape, str]
_SPREADS: Final[tuple[Spread, ...]] = (
    (Shape("8B", 4, 2048, recompute=True), "DDP"),
    (Shape("8B", 4, 2048, recompute=True, quantization="NF4"), "DDP"),
    (Shape("8B", 4, 2048, recompute=True), "FSDP"),
    (Shape("8B", 4, 2048, recompute=True, quantization="NF4"), "FSDP"),
    (Shape("70B", 4, 2048, recompute=True, quantization="NF4"), "FSDP"),
)


class _Trained(NamedTuple):
    losses: list[float]
    state: dict[str, torch.Tensor]

    def apart(self, other: _Trained) -> float:
        """Return the largest difference, of losses and of weights."""
        weights = [difference(tensor, other.state[name]) for name, tensor in self.state.items()]
        return max(difference(torch.tensor(self.losses), torch.tensor(other.losses)), *weights)


def _in_parts(machine: Machine, quantization: str | None) -> Outcome:
    """Train a base in parts and two whole ones; passed where that differs no more than the two do."""
    run = _small(machine, quantization)
    with scratch(machine) as folder:
        whole, again = (_train(machine, run, folder / name, None) for name in ("whole", "again"))
        with _group_of_one(folder) as team:
            parts = _train(machine, run, folder / "parts", team)
    noise, found = again.apart(whole), parts.apart(whole)
    return judged(
        {"the one in parts ends elsewhere": not found <= 2 * noise, "nothing was logged": len(whole.losses) < _STEPS},
        two_whole_ones_differ_by=noise,
        the_one_in_parts_by=found,
        losses=parts.losses,
    )


def _small(machine: Machine, quantization: str | None) -> Run:
    length = 64 if machine.dry else 1024
    training = {
        "precision": "BFloat16",
        "maxSteps": _STEPS,
        "batchSize": 2,
        "gradientAccumulation": 2,
        "maxLength": length,
        "learningRate": 1e-3,
    }
    blocks: dict[str, Any] = {"method": "QLoRA" if quantization else "LoRA", "training": training}
    if quantization:
        blocks["quantization"] = {"type": quantization}
    folder = write_model(machine, "1B", "-few-layers", num_hidden_layers=2 if machine.dry else _LAYERS)
    return prepare(folder, blocks, packed_rows(random_examples(64, length // 2), length))


def _train(machine: Machine, run: Run, folder: Path, team: Team | None) -> _Trained:
    """Train on a base in parts in a group of one, or without a `team` on the whole one.

    Both come from the CPU, where a base that is to be in parts is loaded and quantised: a GPU may round otherwise.
    """
    clear(machine)
    model = _from_cpu(machine, run)
    if team:
        shard(model, team.nodes, machine.device)
    else:
        model.to(machine.device)
    trainer = trainer_for(machine, run, model, folder, team or Team())
    trainer.train()
    return _Trained(losses(trainer), {name: tensor.cpu() for name, tensor in trained_state(model).items()})


def _from_cpu(machine: Machine, run: Run) -> PeftModel:
    base = load(run.folder, run.plan.settings, "cpu", machine.device)
    return attach(base, run.plan.settings, MethodContext(run.tokenizer, run.plan.steps))


@contextmanager
def _group_of_one(folder: Path) -> Iterator[Team]:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=0, world_size=1)
    try:
        yield Team(sharded=True)
    finally:
        dist.destroy_process_group()


def _killed(machine: Machine, *, leader: bool) -> Outcome:
    steps = _DRY_STEPS if machine.dry else _KILLED_STEPS
    training = {"maxSteps": steps, "learningRate": 1e-3, "batchSize": 4, "gradientAccumulation": 2}
    blocks = {
        "method": "LoRA",
        "training": training | {"maxLength": 256},
        "checkpoint": {"everySteps": steps // 10},
        "resources": {"gpus": 2},
    }
    with scratch(machine) as folder:
        model, rows = make_tiny_model(folder / "model"), write_rows(folder / "rows.jsonl")
        found = killed.kill_and_retry(machine, write_job(folder, model, rows, blocks), leader=leader)
    wrong = killed.complaints(found, leader=leader, steps=steps, code=int(ExitCode.RETRYABLE))
    return judged(wrong, **found)


def _memory(machine: Machine, spread: Spread) -> Outcome:
    """Train a few steps on all GPUs; passed where the estimate holds on the fullest, and is not much too high."""
    (shape, parallelism), devices = spread, devices_of(machine)
    write_model(machine, shape.model)
    run = planned(machine, shape, devices, parallelism)
    estimate, available = run.plan.memory, device_facts(None).memory_bytes
    if estimate is None:
        return Outcome(Verdict.FAILED, words="there is no estimate")
    told: Figures = {"devices": devices, "estimate_bytes": estimate.total, "weights_estimate_bytes": estimate.weights}
    if available is not None and estimate.total > available:
        return Outcome(Verdict.NEEDS_GPU, told, "a larger one, by the estimate")
    sharded = run.plan.settings.training.sharded
    if sharded != (parallelism == "FSDP"):
        return Outcome(Verdict.FAILED, told, "the plan is of the other way")
    clear(machine)
    work = partial(_measure, run, _taken(machine, devices))
    found = together(machine, devices, work, sharded=sharded)
    told["each"] = found
    if machine.dry:
        return Outcome(Verdict.NEEDS_GPU, told)
    return compared(estimate.total, max(each["used_bytes"] for each in found), told)


def _taken(machine: Machine, devices: int) -> list[int]:
    """Return the bytes of each GPU that this process takes, which sees the first one only."""
    if machine.dry:
        return [0] * devices
    free, total = torch.cuda.mem_get_info()
    return [total - free, *[0] * (devices - 1)]


def _measure(run: Run, taken: list[int], machine: Machine, team: Team) -> Figures:
    """Train, and return what this process's GPU held at most."""
    with scratch(machine) as folder:
        trainer = trainer_for(machine, run, _of_a_team(machine, run, team), folder, team)
        pace = _timed(trainer, Pace(machine, warm=1))
        trainer.train()
        return {
            "losses": losses(trainer),
            "tokens_per_second": pace.tokens_per_second,
            **used(machine, taken[team.rank]),
        }


def _of_a_team(machine: Machine, run: Run, team: Team) -> PeftModel:
    """Return the base with its adapter as each of the team has it.

    One in parts comes from the CPU, but is made on the GPU: to quantise a 70B on a CPU takes an hour.
    """
    if not team.sharded:
        model = adapted(machine, run)
    else:
        base = load(run.folder, run.plan.settings, machine.device)
        torch.nn.Module.to(base, "cpu")
        model = attach(base, run.plan.settings, MethodContext(run.tokenizer, run.plan.steps))
    team.share_from_leader(parameter.data for parameter in model.parameters() if parameter.requires_grad)
    if team.sharded:
        clear(machine)
        shard(model, team.nodes, machine.device)
    return model


def _timed(trainer: Any, pace: Pace) -> Pace:
    trainer.data_collator = pace.counting(trainer.data_collator)
    trainer.add_callback(pace)
    return pace


def _speed(machine: Machine) -> Outcome:
    """Train the same job on 1, 2, 4 and 8 GPUs, as many as there are; passed where two are well faster than one."""
    figures: Figures = {}
    for devices in itertools.takewhile(lambda count: count <= devices_of(machine), (1, 2, 4, 8)):
        run = _paced(machine, devices)
        figures[f"{devices}_tokens_per_second"] = round(sum(together(machine, devices, partial(_pace, run))), 1)
        figures[f"{devices}_to_1"] = round(figures[f"{devices}_tokens_per_second"] / figures["1_tokens_per_second"], 3)
    if machine.dry:
        return Outcome(Verdict.NEEDS_GPU, figures)
    return judged({f"2 GPUs are less than {_TWICE} times as fast as one": figures["2_to_1"] < _TWICE}, **figures)


def _paced(machine: Machine, devices: int) -> Run:
    length, rows = (64, 1) if machine.dry else (2048, 4)
    training = {
        "precision": "BFloat16",
        "maxSteps": _WARM + _TIMED,
        "batchSize": rows,
        "gradientAccumulation": _PASSES,
        "maxLength": length,
        "gradientCheckpointing": True,
    }
    if devices > 1:
        training["parallelism"] = "DDP"
    examples = random_examples(3 * rows * _PASSES * (_WARM + _TIMED), length)
    return shaped(machine, "8B", {"method": "LoRA", "training": training}, packed_rows(examples, length), devices)


def _pace(run: Run, machine: Machine, team: Team) -> float:
    """Return the tokens of this process's own share that it gets through each second."""
    with scratch(machine) as folder:
        trainer = trainer_for(machine, run, _of_a_team(machine, run, team), folder, team)
        pace = _timed(trainer, Pace(machine, warm=_WARM))
        trainer.train()
        return pace.tokens_per_second


def _on_two(run: Callable[[Machine], Outcome]) -> Case:
    return Case(partial(_if_two, run=run))


def _if_two(machine: Machine, run: Callable[[Machine], Outcome]) -> Outcome:
    there = devices_of(machine)
    if there < 2:
        return Outcome(Verdict.NEEDS_GPU, {"devices": there}, f"needs 2 GPUs, this machine has {there}")
    return run(machine)


def _cases(machine: Machine) -> Mapping[str, Case]:
    kinds = {"16 bits": None, "NF4": "NF4"}
    found = {
        f"a base in parts, {name}": Case(partial(_in_parts, quantization=kind), needs_gpu=False)
        for name, kind in kinds.items()
    }
    found["another process is killed"] = _on_two(partial(_killed, leader=False))
    if not machine.dry:  # over gloo `python -m chaos.kills.together` does it
        found["the leading process is killed"] = _on_two(partial(_killed, leader=True))
    spreads = _SPREADS[3:4] if machine.dry else _SPREADS
    found |= {f"memory, {each[0].name}, {each[1]}": _on_two(partial(_memory, spread=each)) for each in spreads}
    return found | {"speed": _on_two(_speed)}


CHECK: Final = Check("several GPUs", _cases)
