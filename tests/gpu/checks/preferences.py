"""DPO, ORPO and KTO: at the start nothing is preferred, and a few steps prefer what they are told to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import torch
from datasets import Dataset

from tunery_api.inputs import DatasetFormat
from tunery_trainer.adapter.attach import attach, training_hooks
from tunery_trainer.adapter.methods.base import MethodContext
from tunery_trainer.data.options import DatasetReport
from tunery_trainer.data.prepare import PreparedData
from tunery_trainer.losses.answers import sequences_per_row
from tunery_trainer.losses.evaluation import Pass
from tunery_trainer.losses.objectives import Compared, objective_of
from tunery_trainer.training.reference_scores import Scoring, TaskRows, task_rows
from tunery_trainer.training.trl_config import LoopSettings
from tunery_trainer.training.trl_trainer import AdapterTrainer, LoopParts

from gpu.models import load
from gpu.runs import Run, losses, peak, random_examples, scratch, shaped
from gpu.verdicts import Case, Check, Machine, Outcome, judged

_START: Final = {"DPO": math.log(2), "KTO": 0.5}
"""The losses of a model that is its own reference."""
_STEPS: Final = 8
_REPORT: Final = DatasetReport(0, 0, 0, (), 0, 0, "0" * 64, DatasetFormat.AUTO, ())


def _prefer(machine: Machine, task: str, method: str) -> Outcome:
    run, rows = _run(machine, task, method)
    resolved = run.plan.settings
    objective, training = objective_of(resolved), resolved.training
    tokens = training.batch_size * training.max_length * sequences_per_row(resolved.task)
    how = Pass(0, torch.bfloat16, tokens)
    with scratch(machine) as folder:
        base = load(run.folder, resolved, machine.device)
        scoring = Scoring(objective, how) if isinstance(objective, Compared) else None
        if scoring:
            rows = rows.scored(base, scoring)
        before = rows.measure(base, objective, how).metrics
        model = attach(base, resolved, MethodContext(run.tokenizer, run.plan.steps))
        loop = LoopSettings(training, run.plan.steps, keep_checkpoints=3, on_gpu=not machine.dry)
        compared = (lambda batches, split: rows.compared(batches, model, scoring)) if scoring else None
        hooks = training_hooks(model, resolved)
        parts = LoopParts(rows.train, run.tokenizer, folder, None, hooks, objective, compared)
        trainer = AdapterTrainer(model, loop, parts)
        trainer.train()
        after, most = rows.measure(model, objective, how).metrics, peak(machine)
    told, estimate = losses(trainer), run.plan.memory
    wrong = {
        "a loss is no number": not (told and all(map(math.isfinite, told))),
        "there is a preference before training": task in _START and abs(before["loss"] - _START[task]) > 1e-3,
        "the loss has not gone down": not after["loss"] < before["loss"],
        "the margin has not grown": not after["reward_margin"] > before["reward_margin"],
    }
    room = estimate.total if estimate else None
    return judged(wrong, before=before, after=after, losses=told, peak_bytes=most, estimate_bytes=room)


def _run(machine: Machine, task: str, method: str) -> tuple[Run, TaskRows]:
    rate = 1e-1 if method == "PromptTuning" else 2e-3
    training = {
        "precision": "BFloat16",
        "maxSteps": _STEPS,
        "batchSize": 4,
        "gradientAccumulation": 1,
        "maxLength": 64 if machine.dry else 1024,
        "learningRate": rate,
    }
    blocks: dict[str, Any] = {"method": method, "task": task, "training": training}
    longest = 24 if machine.dry else 400
    prompts, good, bad = (random_examples(16, longest, seed) for seed in range(3))
    columns = _columns(prompts, good)
    if task == "KTO":
        columns["desirable"] = [index % 2 == 0 for index in range(len(prompts))]
    else:
        columns |= {f"rejected_{name}": lists for name, lists in _columns(prompts, bad).items()}
    rows = Dataset.from_dict(columns)
    run = shaped(machine, "1B", blocks, rows)
    return run, task_rows(PreparedData(rows, rows, _REPORT, from_cache=False), run.plan.settings)


def _columns(prompts: list[list[int]], answers: list[list[int]]) -> dict[str, list[Any]]:
    pairs = list(zip(prompts, answers, strict=True))
    return {
        "input_ids": [prompt + answer for prompt, answer in pairs],
        "labels": [[-100] * len(prompt) + answer for prompt, answer in pairs],
    }


def _cases(machine: Machine) -> Mapping[str, Case]:
    return {
        f"{task} {method}": Case(partial(_prefer, task=task, method=method), needs_gpu=False)
        for task in ("DPO", "ORPO", "KTO")
        for method in ("LoRA", "QLoRA", "PromptTuning")
    }


CHECK: Final = Check("a few optimizer steps of DPO, ORPO and KTO in bfloat16", _cases)
