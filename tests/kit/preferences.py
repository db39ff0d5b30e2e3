"""Preference rows of random tokens, and runs on them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset

from tunery_api.inputs import DatasetFormat
from tunery_trainer.adapter.attach import attach, training_hooks
from tunery_trainer.adapter.methods.lora_init import RELATIVE
from tunery_trainer.data.options import DatasetReport
from tunery_trainer.data.prepare import PreparedData
from tunery_trainer.losses.evaluation import Pass
from tunery_trainer.losses.objectives import Compared, objective_of
from tunery_trainer.model.load import load_base, load_tokenizer
from tunery_trainer.settings.types import RunSettings
from tunery_trainer.training.reference_scores import Scoring, TaskRows, task_rows
from tunery_trainer.training.trl_config import LoopSettings
from tunery_trainer.training.trl_trainer import AdapterTrainer, LoopParts

from kit.tiny_models import VOCABULARY
from kit.training import resolved_for, start_for

PASS: Final = Pass(pad_token_id=0, tokens=96)
REPORT: Final = DatasetReport(0, 0, 0, (), 0, 0, "0" * 64, DatasetFormat.AUTO, ())


def sequences(count: int, seed: int, prompts: int | None = None) -> list[tuple[list[int], list[int]]]:
    """Return prompts and answers of several lengths; the prompts with a seed of their own are the same again."""
    one, other = torch.Generator().manual_seed(prompts or seed), torch.Generator().manual_seed(seed + 1000)
    return [(_tokens(3, 9, one), _tokens(2, 12, other)) for _ in range(count)]


def _tokens(least: int, most: int, draw: torch.Generator) -> list[int]:
    length = int(torch.randint(least, most, (1,), generator=draw))
    return torch.randint(3, VOCABULARY, (length,), generator=draw).tolist()


def columns(pairs: list[tuple[list[int], list[int]]], prefix: str = "") -> dict[str, list[list[int]]]:
    """Return the columns of prompts with an answer, as the data layer writes them."""
    return {
        f"{prefix}input_ids": [[*prompt, *answer] for prompt, answer in pairs],
        f"{prefix}labels": [[*[-100] * len(prompt), *answer] for prompt, answer in pairs],
    }


def rows_of(task: str, count: int = 8, seed: int = 1) -> Dataset:
    """Return rows of a task."""
    own = columns(sequences(count, seed))
    if task == "SFT":
        return Dataset.from_dict(own)
    if task == "KTO":
        return Dataset.from_dict(own | {"desirable": [index % 3 != 1 for index in range(count)]})
    return Dataset.from_dict(own | columns(sequences(count, seed + 1, prompts=seed), "rejected_"))


def prepared(task: str, count: int = 8) -> PreparedData:
    """Return both sides of a data set."""
    return PreparedData(rows_of(task, count), rows_of(task, 5, seed=31), REPORT, from_cache=False)


def resolved_task(folder: Path, task: str, **blocks: Any) -> RunSettings:
    """Return the settings of a run of a task."""
    training = {"maxSteps": 2, "batchSize": 2, "gradientAccumulation": 1, "packing": False, "maxLength": 64}
    given = {"method": "LoRA", "lora": {"dropout": 0}, **blocks}
    return resolved_for(folder, given | {"task": task, "training": training | blocks.get("training", {})})


def moved(model: Any, by: float = 0.05, seed: int = 3) -> Any:
    """Return the model with its adapter changed."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += by * torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
    return model


def begun(
    folder: Path, resolved: RunSettings, data: PreparedData, how: Pass = PASS, ahead: Iterable[int] | None = None
) -> tuple[Any, TaskRows]:
    """Return the model with a fresh adapter, and the rows with the base as the reference.

    Training rows are scored ahead where it changes the base, and those of `ahead`.
    """
    base = load_base(folder, resolved, "cpu")
    rows, objective = task_rows(data, resolved), objective_of(resolved)
    if isinstance(objective, Compared):
        if ahead is None:
            ahead = range(len(rows.train)) if resolved.adapter.init in RELATIVE else ()
        rows = rows.scored(base, Scoring(objective, how), ahead)
    return attach(base, resolved, start_for(folder, 4)), rows


def trainer_on(
    folder: Path, resolved: RunSettings, begin: tuple[Any, TaskRows], output: Path, how: Pass = PASS
) -> AdapterTrainer:
    """Return the loop over such rows."""
    model, rows = begin
    objective = objective_of(resolved)
    loop = LoopSettings(resolved.training, resolved.training.max_steps or 1, keep_checkpoints=1, on_gpu=False)
    hooks = training_hooks(model, resolved)

    def held_out(step: int) -> dict[str, float]:
        return rows.measure(model, objective, how).metrics

    def compared(batches: Any, split: Any) -> Any:
        return rows.compared(batches, model, Scoring(objective, how))

    asked = compared if isinstance(objective, Compared) else None
    parts = LoopParts(rows.train, load_tokenizer(folder), output, held_out, hooks, objective, asked, how.team)
    return AdapterTrainer(model, loop, parts)
