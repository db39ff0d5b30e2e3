"""A training run by the trainer's own plan, base, adapter and loop, on rows of random tokens."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import math
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback

from tunery_api.inputs import DatasetFormat
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.runspec import RunIdentity
from tunery_common.inputs.location import FetchedModel
from tunery_trainer.adapter.attach import attach, training_hooks
from tunery_trainer.adapter.methods.base import MethodContext
from tunery_trainer.data.options import DatasetReport, TokenReport
from tunery_trainer.data.pack import pack
from tunery_trainer.model.collator import Collator
from tunery_trainer.model.load import load_tokenizer
from tunery_trainer.plan.basis import Basis
from tunery_trainer.plan.training_plan import TrainingPlan, plan_training
from tunery_trainer.process.device import device_facts
from tunery_trainer.team.team import ALONE, Team
from tunery_trainer.training.trl_config import LoopSettings
from tunery_trainer.training.trl_trainer import AdapterTrainer, LoopParts

from gpu.models import load, write_model
from gpu.older import accept
from gpu.verdicts import Machine

PUT_BETWEEN: Final = accept()
"""What this machine's torch is asked for in other words."""

VOCABULARY: Final = 300
"""Tokens that rows are made of; every shape has more."""


def random_examples(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Return examples of random tokens, of an eighth of `longest` to all of it."""
    draw = random.Random(seed)
    lengths = [draw.randint(max(2, longest // 8), longest) for _ in range(count)]
    return [[draw.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]


def packed_rows(examples: Sequence[Sequence[int]], capacity: int) -> Dataset:
    """Return the examples as the data layer packs them, every token with its label."""
    chosen = [[examples[index] for index in row] for row in pack([len(one) for one in examples], capacity)]
    ids = [list(itertools.chain.from_iterable(row)) for row in chosen]
    lengths = [[len(one) for one in row] for row in chosen]
    return Dataset.from_dict({"input_ids": ids, "labels": ids, "seq_lengths": lengths})


def single_rows(examples: Sequence[Sequence[int]]) -> Dataset:
    """Return the examples one a row."""
    return Dataset.from_dict({"input_ids": list(examples), "labels": list(examples)})


@dataclass(frozen=True)
class Run:
    """What a run is made from."""

    folder: Path
    """The base model's."""
    plan: TrainingPlan
    rows: Dataset
    tokenizer: Any


def prepare(folder: Path, blocks: dict[str, Any], rows: Dataset, devices: int = 1) -> Run:
    """Return the run that a LoRAJob with `blocks` would be on these rows, planned as preflight plans it.

    `devices` like the one here are to train together.
    """
    base = {"model": {"uri": "s3://models/base"}, "dataset": {"uri": "s3://data/rows.jsonl"}}
    spec = LoRAJobSpec.model_validate(base | blocks)
    job = RunIdentity(kind="LoRAJob", namespace="gpu", name="gpu", uid="gpu")
    basis = Basis(job, spec, FetchedModel(folder, None, 0), dataclasses.replace(device_facts(None), devices=devices))
    plan = plan_training(basis, len(rows), _report(rows))
    return Run(folder, plan, rows, load_tokenizer(folder))


def shaped(machine: Machine, shape: str, blocks: dict[str, Any], rows: Dataset, devices: int = 1) -> Run:
    """Return a run of a model of that shape, as `prepare` does."""
    return prepare(write_model(machine, shape), blocks, rows, devices)


def _report(rows: Dataset) -> DatasetReport:
    lengths = [max(len(row["input_ids"]), len(row.get("rejected_input_ids", ()))) for row in rows]
    packed = "seq_lengths" in rows.column_names
    tokens = TokenReport(
        tokens=sum(lengths),
        loss_tokens=sum(lengths),
        truncated_percent=0.0,
        lost_tokens=0,
        p50_length=sorted(lengths)[len(lengths) // 2],
        p90_length=max(lengths),
        p99_length=max(lengths),
        longest=max(lengths),
        unlearnable_rows=0,
        examples=len(rows),
        split_rows=0,
        repeated_tokens=0,
        assistant_turns=0,
        context_turns=0,
        trained_turns=0,
        lost_reasoning=0,
        template="none",
        sequences=len(rows),
        packed=packed,
    )
    return DatasetReport(len(rows), 0, 0, (), 0, 0, "0" * 64, DatasetFormat.TEXT, (), tokens)


def adapted(machine: Machine, run: Run) -> PeftModel:
    """Return the base with its adapter, on the device."""
    base = load(run.folder, run.plan.settings, machine.device)
    return attach(base, run.plan.settings, MethodContext(run.tokenizer, run.plan.steps))


def trainer_for(machine: Machine, run: Run, model: PeftModel, folder: Path, team: Team = ALONE) -> AdapterTrainer:
    """Return the loop as the trainer sets it up in one of `team`; checkpoints go to `folder`."""
    loop = LoopSettings(run.plan.settings.training, run.plan.steps, keep_checkpoints=3, on_gpu=not machine.dry)
    hooks = training_hooks(model, run.plan.settings)
    return AdapterTrainer(model, loop, LoopParts(run.rows, run.tokenizer, folder, None, hooks, team=team))


def losses(trainer: AdapterTrainer) -> list[float]:
    """Return the logged losses."""
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference, as a share of the largest value that is expected; infinite where one is NaN."""
    scale = expected.float().abs().max().clamp(min=1e-9)
    largest = ((found.float() - expected.float()).abs().max() / scale).item()
    return largest if math.isfinite(largest) else math.inf


@contextlib.contextmanager
def scratch(machine: Machine) -> Iterator[Path]:
    """A folder for the body, and the GPU's memory cleared before it."""
    clear(machine)
    with tempfile.TemporaryDirectory(dir=machine.folder) as folder:
        yield Path(folder)


def clear(machine: Machine) -> None:
    """Give back what the case before has left."""
    gc.collect()
    if not machine.dry:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(machine: Machine) -> int | None:
    """Return the most bytes that tensors have taken since `clear`; None on a CPU."""
    return None if machine.dry else torch.cuda.max_memory_allocated()


def used(machine: Machine, elsewhere: int = 0) -> dict[str, int]:
    """Return the peak of what tensors took and of what the allocator held, and what CUDA holds beside.

    `elsewhere` are bytes of this GPU that another process has. Empty on a CPU.
    """
    if machine.dry:
        return {}
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved() - elsewhere
    allocated = torch.cuda.max_memory_allocated()
    return {
        "allocated_bytes": allocated,
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "context_bytes": context,
        "used_bytes": allocated + context,
    }


def batch_on(machine: Machine, rows: Sequence[dict[str, Any]], *, by_example: bool) -> dict[str, Any]:
    """Return rows as the loop hands them to the model."""
    batch = Collator(0, by_example=by_example)(rows)
    return {name: part.to(machine.device) if isinstance(part, torch.Tensor) else part for name, part in batch.items()}


class Pace(TrainerCallback):  # type: ignore[misc]
    """The real tokens, without padding, that a loop gets through each second once it is warm."""

    def __init__(self, machine: Machine, warm: int) -> None:
        self._machine, self._warm = machine, warm
        self._tokens = 0
        self._marks: list[tuple[float, int]] = []

    def counting(self, collate: Any) -> Any:
        """Return `collate`, with the tokens of its rows counted."""

        def counted(rows: Sequence[dict[str, Any]]) -> Any:
            self._tokens += sum(len(row["input_ids"]) for row in rows)
            return collate(rows)

        return counted

    def count(self, tokens: int) -> None:
        """Note that so many tokens more were read."""
        self._tokens += tokens

    def mark(self) -> None:
        """Note the time at the end of a step."""
        if not self._machine.dry:
            torch.cuda.synchronize()
        self._marks.append((time.perf_counter(), self._tokens))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.mark()

    @property
    def tokens_per_second(self) -> float:
        """Over the steps after the warm ones."""
        (begin, first), (end, last) = self._marks[self._warm - 1], self._marks[-1]
        return round((last - first) / (end - begin), 1)
