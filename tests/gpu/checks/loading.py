"""A model of 16 bits on the disk, loaded as it is and quantised on the way: what is stored, what it takes, how long."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig

from tunery_trainer.model.load import load_base

from gpu.models import NO_TENSORS, random_model, random_weights, write_model
from gpu.runs import peak, prepare, random_examples, scratch, single_rows
from gpu.verdicts import Case, Check, Machine, Outcome, judged

_STORED: Final = {None: torch.bfloat16, "NF4": torch.uint8, "FP4": torch.uint8, "Int8": torch.int8}
_APART: Final = {None: 0.01, "NF4": 0.15, "FP4": 0.2, "Int8": 0.05}
"""What quantising may do to the product of a matrix of normal numbers: its error, as a share of the product's size."""
_MATRICES: Final = ("self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def _load(machine: Machine, quantization: str | None) -> Outcome:
    folder = _on_disk(machine)
    blocks: dict[str, Any] = {"method": "QLoRA" if quantization else "LoRA", "training": {"precision": "BFloat16"}}
    if quantization:
        blocks["quantization"] = {"type": quantization}
    run = prepare(folder, blocks, single_rows(random_examples(8, 128)))
    with scratch(machine):
        before = _allocated(machine)
        begin = time.perf_counter()
        model = load_base(folder, run.plan.settings, machine.device)
        if not machine.dry:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        stored, most = _allocated(machine) - before, peak(machine)
        apart = max(_apart(machine, model, name) for name in _MATRICES)
        kind = model.get_decoder().layers[0].mlp.up_proj.weight.dtype
    estimate = run.plan.memory.weights if run.plan.memory else 0
    return judged(
        {
            "its matrices are stored otherwise": kind != _STORED[quantization],
            "its matrices are others": not apart <= _APART[quantization],
            "it takes more than estimated": stored > 1.02 * estimate,
        },
        seconds=round(seconds, 2),
        stored_bytes=stored,
        estimate_bytes=estimate,
        peak_bytes=most,
        stored_as=str(kind),
        products_differ_by=apart,
    )


def _allocated(machine: Machine) -> int:
    return 0 if machine.dry else torch.cuda.memory_allocated()


def _apart(machine: Machine, model: Any, name: str) -> float:
    """Return the error of the product of a matrix of the last layer, beside the one of 16 bits in float32."""
    layer = len(model.get_decoder().layers) - 1
    weights = random_weights(model.config, machine.device, torch.bfloat16)
    plain = weights[f"model.layers.{layer}.{name}.weight"][...].float()
    draw = torch.Generator(device=machine.device).manual_seed(0)
    given = torch.randn(64, plain.shape[1], generator=draw, device=machine.device).bfloat16()
    with torch.no_grad():
        found = model.get_decoder().layers[layer].get_submodule(name)(given).float()
    expected = given.float() @ plain.T
    return float((found - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt())


def _on_disk(machine: Machine) -> Path:
    """Return a folder with the weights that a model of random weights has."""
    folder = write_model(machine, "1B", name="-on-disk")
    if (folder / "model.safetensors").stat().st_size == len(NO_TENSORS):
        model = random_model(AutoConfig.from_pretrained(folder), machine.device, torch.bfloat16, {})
        model.save_pretrained(folder)
    return folder


def _cases(machine: Machine) -> Mapping[str, Case]:
    return {kind or "16 bits": Case(partial(_load, quantization=kind), needs_gpu=False) for kind in _STORED}


CHECK: Final = Check("loading from the disk, quantised on the way", _cases)
