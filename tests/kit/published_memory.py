"""Memory that others have measured, beside what the estimate says of the same run; the figures lie in data/memory."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import LlamaConfig

from tunery_api.methods import ComputeType, QuantizationType
from tunery_api.training import Optimizer, Precision
from tunery_trainer.model.live_bytes import Pass, count
from tunery_trainer.model.memory import (
    MemoryPlan,
    estimate_memory,
    layers_of,
    of_the_whole,
    trained_number,
    weights_bytes,
)
from tunery_trainer.model.outline import Outline, outline
from tunery_trainer.settings.memory import ALLOCATOR_SLACK, SAFETY
from tunery_trainer.settings.types import QuantizationSettings

FOLDER: Final = Path(__file__).parent.parent / "data" / "memory"
NF4: Final = QuantizationSettings(QuantizationType.NF4, double_quant=True, compute_type=ComputeType.BFLOAT16)
_ADAM: Final = 16
"""Bytes of a trained parameter in float32: itself, its gradient, both moments."""
_ADALORA: Final = 12
_PROBES: Final = (512, 768)


@dataclass(frozen=True)
class Compared:
    """One run: what it took, and what the estimate says of it."""

    name: str
    held_out: bool
    measured: float
    """Bytes; on a GPU without the context of CUDA."""
    estimated: float

    @property
    def error(self) -> float:
        """How much larger the estimate is, as a share."""
        return self.estimated / self.measured - 1

    @property
    def false_fit(self) -> bool:
        """Whether a GPU of exactly what was measured would be said to fit."""
        return self.estimated <= self.measured * (1 - SAFETY)


def read(name: str) -> dict[str, Any]:
    """Return a file of figures."""
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return content


def is_held_out(name: str) -> bool:
    """Say whether a row was kept back while the estimate was made: a rule, chosen before a figure was looked at."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 3 == 0


def outline_of(model: str) -> Outline:
    """Return the structure of a public model, from its dimensions."""
    with tempfile.TemporaryDirectory() as folder:
        LlamaConfig(**read("models")[model], max_position_embeddings=8192).save_pretrained(folder)
        return outline(Path(folder))


def benchmark_of_peft() -> Iterator[Compared]:
    """Compare with PEFT's MetaMathQA benchmark.

    The length of its longest batch is not published. One row tells it, and is left out.
    """
    figures = read("peft-metamathqa")
    shape = outline_of(figures["model"])
    rows = {row["name"]: row for row in figures["rows"]}
    known = rows.pop(figures["workloadFrom"])
    length = _length(shape, known, figures["batchSize"])
    for name, row in rows.items():
        taken = _reserved(shape, row, figures["batchSize"], length)
        yield Compared(name, is_held_out(name), row["maxReservedBytes"], taken)


def _length(shape: Outline, row: Mapping[str, Any], batch: int) -> int:
    """Return how long the longest batch was, by what one run took: the peak is nearly a straight line in it."""
    short, long = (_reserved(shape, row, batch, length) for length in _PROBES)
    first, last = _PROBES
    return round(first + (row["maxReservedBytes"] - short) * (last - first) / (long - short))


def _reserved(shape: Outline, row: Mapping[str, Any], batch: int, length: int) -> float:
    model = adapted(shape, PeftConfig.from_peft_type(**row["peftConfig"], task_type="CAUSAL_LM"))
    trained = trained_number(model, shape)
    if trained != row["trained"]:
        raise AssertionError(f"{row['name']} trains {row['trained']} parameters, not {trained}")
    how = Pass(rows=batch, length=length, recompute=False, plain=True)
    passes = of_the_whole(count(model, layers_of(model, shape), how), shape)
    adalora = _ADALORA if row["peftConfig"]["peft_type"] == "ADALORA" else 0
    parameters = weights_bytes(shape, None, Precision.BFLOAT16) + trained * (_ADAM + adalora)
    return (parameters + passes.peak) * (1 + ALLOCATOR_SLACK)


def readme_of_torchtune() -> Iterator[Compared]:
    """Compare with torchtune's README."""
    figures = read("torchtune")
    for row in figures["rows"]:
        shape = outline_of(row["model"])
        lora = LoraConfig(r=figures["rank"], target_modules=figures["targets"], task_type="CAUSAL_LM")
        plan = MemoryPlan(
            batch_size=figures["batchSize"],
            length=figures["length"],
            quantization=NF4 if row["quantization"] else None,
            optimizer=Optimizer.ADAMW,
            gradient_checkpointing=True,
            on_gpu=True,
            masked=False,
        )
        found = estimate_memory(adapted(shape, lora), shape, plan)
        in_16_bits = (found.adapter + found.gradients + found.optimizer) / 2
        taken = found.weights + in_16_bits + found.recomputing.peak.of(figures["batchSize"])
        yield Compared(row["name"], is_held_out(row["name"]), row["peakGiB"] * 2**30, taken)


def measured_on_a_cpu() -> Iterator[Compared]:
    """Compare with Tunery's own training on a CPU: what the process had resident at the peak."""
    figures = read("cpu")
    shape = outline_of(figures["model"])
    for row in figures["rows"]:
        lora = LoraConfig(
            r=figures["rank"], lora_dropout=figures["dropout"], target_modules="all-linear", task_type="CAUSAL_LM"
        )
        compute = ComputeType(row["precision"])
        plan = MemoryPlan(
            batch_size=row["rows"],
            length=row["length"],
            quantization=QuantizationSettings(NF4.type, NF4.double_quant, compute)
            if row["method"] == "QLoRA"
            else None,
            optimizer=Optimizer.ADAMW,
            gradient_checkpointing=row["gradientCheckpointing"],
            on_gpu=False,
            precision=Precision(row["precision"]),
            recomputable=row["gradientCheckpointing"],
            keepable=not row["gradientCheckpointing"],
        )
        found = estimate_memory(adapted(shape, lora), shape, plan)
        measured = row["ownBytes"] + row["weightsFileBytes"] + figures["libraryBytes"]
        yield Compared(row["name"], is_held_out(row["name"]), measured, found.total)


def table_of_the_guide() -> Iterator[Compared]:
    """Compare with the guide's table, which is itself an estimate."""
    for row in read("guide")["rows"]:
        shape = outline_of(row["model"])
        lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
        plan = MemoryPlan(1, 2048, NF4, Optimizer.PAGED_ADAMW_8BIT, True, True, masked=False)
        found = estimate_memory(adapted(shape, lora), shape, plan)
        yield Compared(row["name"], False, row["trainingGB"] * 1e9, found.total)


def adapted(shape: Outline, config: PeftConfig) -> PeftModel:
    """Return a few layers of a model with an adapter in float32."""
    model = get_peft_model(shape.fresh(), config).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and "ranknum" not in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model
