"""Tokens a second of the trainer, of plain TRL (packed and padded) and of the bare model: one process, one model.

All train the same adapter on the same examples with the same optimizer, on random weights that are the same each time.
Counted are the examples' own tokens, without padding. The trainer is measured first and last: the difference between
the two is what a figure is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoConfig
from trl import SFTConfig, SFTTrainer

from tunery_trainer.adapter.methods import METHODS
from tunery_trainer.adapter.methods.base import MethodContext
from tunery_trainer.losses.lm_head import autocast
from tunery_trainer.model.quantization import bitsandbytes_config
from tunery_trainer.training.trl_config import LoopSettings, sft_config

from gpu.models import random_model
from gpu.runs import Pace, Run, adapted, batch_on, packed_rows, random_examples, scratch, shaped, trainer_for
from gpu.verdicts import Case, Check, Machine, Outcome, Verdict, judged

_WARM: Final = 3
_STEPS: Final = 12
_ROWS: Final = 4


def _compare(machine: Machine, shape: str, quantization: str | None, *, recompute: bool) -> Outcome:
    length = 64 if machine.dry else 2048
    steps = _WARM + 2 if machine.dry else _STEPS
    examples = random_examples(32 if machine.dry else 1200, length // 4)
    training = {
        "precision": "BFloat16",
        "maxSteps": steps,
        "batchSize": _ROWS,
        "gradientAccumulation": 1,
        "maxLength": length,
        "gradientCheckpointing": recompute,
    }
    blocks: dict[str, Any] = {"method": "QLoRA" if quantization else "LoRA", "training": training}
    if quantization:
        blocks["quantization"] = {"type": quantization}
    run = shaped(machine, shape, blocks, packed_rows(examples, length))
    turns: list[tuple[str, Callable[[Path], float]]] = [
        ("ours", partial(_ours, machine, run)),
        ("trl_packed", partial(_trl, machine, run, examples, packing=True)),
        ("trl_padded", partial(_trl, machine, run, examples, packing=False)),
        ("bare_model", partial(_bare, machine, run)),
        ("ours_again", partial(_ours, machine, run)),
    ]
    figures: dict[str, Any] = {}
    for name, measure in turns:
        with scratch(machine) as folder:
            figures[f"{name}_tokens_per_second"] = measure(folder)
    ours = min(figures["ours_tokens_per_second"], figures["ours_again_tokens_per_second"])
    for other in ("trl_packed", "trl_padded", "bare_model"):
        figures[f"ours_to_{other}"] = round(ours / figures[f"{other}_tokens_per_second"], 3)
    if machine.dry:
        return Outcome(Verdict.NEEDS_GPU, figures)
    return judged({"plain TRL is faster": figures["ours_to_trl_packed"] < 1}, **figures)


def _ours(machine: Machine, run: Run, folder: Path) -> float:
    pace = Pace(machine, _WARM)
    trainer = trainer_for(machine, run, adapted(machine, run), folder)
    trainer.data_collator = pace.counting(trainer.data_collator)
    trainer.add_callback(pace)
    trainer.train()
    return pace.tokens_per_second


def _plain(machine: Machine, run: Run) -> Any:
    """Return the same base with the same adapter, loaded and adapted as PEFT's documentation does it."""
    resolved = run.plan.settings
    options: dict[str, Any] = {"attn_implementation": "sdpa"}
    if resolved.quantization:
        options["quantization_config"] = bitsandbytes_config(resolved.quantization)
    config = AutoConfig.from_pretrained(run.folder)
    base = random_model(config, machine.device, torch.bfloat16, options)
    start = MethodContext(run.tokenizer, run.plan.steps)
    return get_peft_model(base, METHODS[resolved.method].config(base, resolved, start))


def _trl(machine: Machine, run: Run, examples: list[list[int]], folder: Path, *, packing: bool) -> float:
    """Measure SFTTrainer as TRL's documentation has it, with the trainer's own rates, batch and optimizer."""
    training = run.plan.settings.training
    ours = sft_config(LoopSettings(training, run.plan.steps, 1, on_gpu=not machine.dry), folder)
    names = ("max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "bf16")
    more = ("max_grad_norm", "use_cpu", "gradient_checkpointing", "gradient_checkpointing_kwargs", "seed", "data_seed")
    kept = {name: getattr(ours, name) for name in (*names, *more)}
    rows = training.batch_size if packing else training.batch_size * _examples_in_a_row(run)
    config = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=rows,
        packing=packing,
        max_length=training.max_length,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **kept,
    )
    data = Dataset.from_dict({"input_ids": examples})
    model = _plain(machine, run)
    trainer = SFTTrainer(model=model, args=config, train_dataset=data, processing_class=run.tokenizer)
    pace = Pace(machine, _WARM)
    trainer.data_collator = pace.counting(trainer.data_collator)
    trainer.add_callback(pace)
    trainer.train()
    return pace.tokens_per_second


def _examples_in_a_row(run: Run) -> int:
    lengths = [len(row["seq_lengths"]) for row in run.rows]
    return max(1, round(sum(lengths) / len(lengths)))


def _bare(machine: Machine, run: Run, folder: Path) -> float:
    """Measure forward and backward of the trainer's model with transformers' own loss, and nothing else."""
    model = adapted(machine, run).train()
    if run.plan.settings.training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    pace = Pace(machine, _WARM)
    for step in range(run.plan.steps):
        rows = [run.rows[(step * _ROWS + index) % len(run.rows)] for index in range(_ROWS)]
        with autocast(torch.device(machine.device), torch.bfloat16):
            loss = model(**batch_on(machine, rows, by_example=True), use_cache=False).loss
        loss.backward()
        model.zero_grad(set_to_none=True)
        pace.count(sum(len(row["input_ids"]) for row in rows))
        pace.mark()
    return pace.tokens_per_second


def _cases(machine: Machine) -> Mapping[str, Case]:
    kept = {
        "1B LoRA": Case(partial(_compare, shape="1B", quantization=None, recompute=False)),
        "8B LoRA, recomputed": Case(partial(_compare, shape="8B", quantization=None, recompute=True)),
        "8B QLoRA, recomputed": Case(partial(_compare, shape="8B", quantization="NF4", recompute=True)),
    }
    return dict(list(kept.items())[:1]) if machine.dry else kept


CHECK: Final = Check("tokens a second beside plain TRL and the bare model", _cases)
