"""What an evaluation of long rows takes beside the weights: never all logits, and less than a training step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import torch

from tunery_trainer.losses.evaluation import held_out_loss

from gpu.models import load
from gpu.runs import packed_rows, peak, random_examples, scratch, shaped
from gpu.verdicts import Case, Check, Machine, Outcome, judged


def _measure(machine: Machine, shape: str, length: int, quantization: str | None) -> Outcome:
    length = 256 if machine.dry else length
    rows = packed_rows(random_examples(16, length), length)
    training = {"precision": "BFloat16", "batchSize": 1, "maxLength": length, "gradientCheckpointing": True}
    blocks: dict[str, Any] = {"method": "QLoRA" if quantization else "LoRA", "training": training}
    if quantization:
        blocks["quantization"] = {"type": quantization}
    run = shaped(machine, shape, blocks, rows)
    with scratch(machine):
        model = load(run.folder, run.plan.settings, machine.device)
        weights = 0 if machine.dry else torch.cuda.memory_allocated()
        if not machine.dry:
            torch.cuda.reset_peak_memory_stats()
        loss = held_out_loss(model, rows, 0, dtype=torch.bfloat16, tokens=length)
        above = (peak(machine) or 0) - weights
        logits = 2 * length * model.config.get_text_config().vocab_size
    estimate = run.plan.memory
    allowed = estimate.total - estimate.weights - estimate.overhead if estimate else math.inf
    return judged(
        {
            "the loss is no number": not math.isfinite(loss),
            "it takes as much as all logits in 16 bits": above >= logits,
            "it takes more than the estimate of a training step": above > allowed,
        },
        loss=loss,
        above_weights_bytes=above,
        all_logits_bytes=logits,
        training_step_estimate_bytes=allowed,
    )


def _cases(machine: Machine) -> Mapping[str, Case]:
    shapes = (("1B", 8192, None), ("8B", 8192, None), ("8B", 32768, "NF4"))
    return {
        f"{shape}{f' {kind}' if kind else ''}, a row of {length}": Case(
            partial(_measure, shape=shape, length=length, quantization=kind)
        )
        for shape, length, kind in (shapes[:1] if machine.dry else shapes)
    }


CHECK: Final = Check("the memory of an evaluation", _cases)
