"""Optimizer steps of every method and quantisation in one precision, through the trainer's loop."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import torch

from tunery_trainer.training.weights import trained_state

from gpu.runs import (
    Run,
    adapted,
    losses,
    packed_rows,
    peak,
    random_examples,
    scratch,
    shaped,
    single_rows,
    trainer_for,
)
from gpu.verdicts import Case, Machine, Outcome, Verdict, judged

_FOUR_BITS: Final = ("NF4", "FP4")
_ANY: Final = (*_FOUR_BITS, "Int8")
MATRIX: Final[dict[str, tuple[str | None, ...]]] = {
    "LoRA": (None,),
    "DoRA": (None,),
    "QLoRA": _ANY,
    "QDoRA": _FOUR_BITS,
    **dict.fromkeys(("AdaLoRA", "IA3", "PrefixTuning", "PromptTuning"), (None, *_ANY)),
}
"""What the API allows: each method with what its base may be quantised to."""
_PROMPTS: Final = ("PrefixTuning", "PromptTuning")
_STEPS: Final = 3
_HALF_STEPS: Final = 12
"""In float16 the first steps are skipped until the loss is scaled down to what half precision holds."""


def take_steps(machine: Machine, method: str, quantization: str | None, precision: str) -> Outcome:
    """Train a few steps; passed where the loss is a number, something moved, and the adapter is in float32."""
    if machine.dry and precision == "Float16":
        return Outcome(Verdict.NEEDS_GPU, words="a CPU trains in no float16")
    run = _run(machine, method, quantization, precision)
    with scratch(machine) as folder:
        model = adapted(machine, run)
        before = trained_state(model)
        trainer = trainer_for(machine, run, model, folder)
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
        moved, most = _moved(before, trained_state(model)), peak(machine)
        kinds = sorted({str(p.dtype) for p in model.parameters() if p.requires_grad})
    told = losses(trainer)
    wrong = {
        "a loss is no number": not (told and all(map(math.isfinite, told))),
        "nothing moved": moved == 0,
        "a weight of the adapter is no number": not math.isfinite(moved),
        "the adapter is not in float32": kinds != ["torch.float32"],
    }
    return judged(wrong, losses=told, moved=moved, adapter=kinds, seconds=round(seconds, 2), peak_bytes=most)


def _run(machine: Machine, method: str, quantization: str | None, precision: str) -> Run:
    steps = _HALF_STEPS if precision == "Float16" else _STEPS
    training = {"precision": precision, "maxSteps": steps, "batchSize": 2, "gradientAccumulation": 1}
    blocks: dict[str, Any] = {"method": method, "training": training}
    if quantization:
        blocks["quantization"] = {"type": quantization}
    examples = random_examples(16, 48 if machine.dry else 512)
    rows = single_rows(examples) if method in _PROMPTS else packed_rows(examples, 64 if machine.dry else 1024)
    return shaped(machine, "1B", blocks, rows)


def _moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """Return the share of the trained numbers that are others now; NaN where one is no number."""
    if not all(torch.isfinite(tensor.float()).all() for tensor in after.values()):
        return math.nan
    changed = sum(
        int((after[name] != tensor).sum()) for name, tensor in before.items() if tensor.shape == after[name].shape
    )
    return changed / sum(tensor.numel() for tensor in after.values())


def cases(machine: Machine, precision: str) -> Mapping[str, Case]:
    """Return a case for each method and quantisation; in a dry run of float32 only one quantisation."""
    few = machine.dry and precision != "BFloat16"
    return {
        f"{method}{f' {kind}' if kind else ''}": Case(
            partial(take_steps, method=method, quantization=kind, precision=precision), needs_gpu=False
        )
        for method, kinds in MATRIX.items()
        for kind in kinds
        if not few or kind is None or (method, kind) == ("QLoRA", "NF4")
    }
