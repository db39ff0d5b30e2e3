"""An example in a packed row has the loss that it has alone, and what stands before it changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import torch

from tunery_trainer.losses.evaluation import held_out_loss
from tunery_trainer.losses.lm_head import autocast, head, log_probabilities
from tunery_trainer.model.attention import BY_EXAMPLE, computes_by_example

from gpu.models import load
from gpu.runs import batch_on, packed_rows, random_examples, scratch, shaped, single_rows
from gpu.verdicts import Case, Check, Machine, Outcome, judged

_LEAK: Final = 1e-4
"""Largest change of a log p, in nats: the same products in the same shapes round alike."""
_DRIFT: Final = 2e-3
"""Largest relative difference of the losses: the shapes differ, and so does the rounding of bfloat16."""


def _compare(machine: Machine, attention: str, quantization: dict[str, Any] | None) -> Outcome:
    length = 256 if machine.dry else 2048
    examples = random_examples(24, length // 2)
    blocks = {"method": "QLoRA" if quantization else "LoRA", "training": {"precision": "BFloat16"}}
    rows = packed_rows(examples, length)
    run = shaped(machine, "1B", blocks | ({"quantization": quantization} if quantization else {}), rows)
    with scratch(machine):
        model = load(run.folder, run.plan.settings, machine.device)
        trained_with = model.config._attn_implementation
        model.set_attn_implementation(attention)
        loss = {
            name: held_out_loss(model, chosen, 0, dtype=torch.bfloat16)
            for name, chosen in (("packed", rows), ("alone", single_rows(examples)))
        }
        row, first = rows[0], rows[0]["seq_lengths"][0]
        leak = _leak(machine, model, row, first)
        joined = _leak(machine, model, row | {"seq_lengths": [len(row["input_ids"])]}, first)
    drift = abs(loss["packed"] - loss["alone"]) / loss["alone"]
    return judged(
        {
            "one example reads another": not leak <= _LEAK,
            "the comparison would see no leak": not joined > 100 * _LEAK,
            "packed rows have another loss": not drift <= _DRIFT,
            "the trainer does not take attention by example here": trained_with != BY_EXAMPLE,
        },
        **loss,
        relative_difference=drift,
        leak=leak,
        leak_if_not_kept_apart=joined,
        trains_with=trained_with,
    )


def _leak(machine: Machine, model: Any, row: dict[str, Any], first: int) -> float:
    """Return how far the log p of the tokens behind the `first` ones move when each of those is another."""
    changed = dict(row)
    changed["input_ids"] = [token + 1 for token in row["input_ids"][:first]] + row["input_ids"][first:]
    changed["labels"] = changed["input_ids"]
    outputs = []
    with torch.no_grad(), head(model), autocast(torch.device(machine.device), torch.bfloat16):
        for one in (row, changed):
            batch = batch_on(machine, [one], by_example=computes_by_example(model))
            outputs.append(log_probabilities(model, batch)[0, first:])
    return float((outputs[0] - outputs[1]).abs().max())


def _cases(machine: Machine) -> Mapping[str, Case]:
    return {
        "by example": Case(partial(_compare, attention=BY_EXAMPLE, quantization=None), needs_gpu=False),
        "masked": Case(partial(_compare, attention="sdpa", quantization=None), needs_gpu=False),
        "by example, NF4": Case(partial(_compare, attention=BY_EXAMPLE, quantization={"type": "NF4"}), needs_gpu=False),
    }


CHECK: Final = Check("packed = alone", _cases)
