"""The guide's table for any model: what each method takes, and in how large batches it fits on each kind of GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tunery_api.methods import QUANTIZED_TWIN, Method, QuantizationSpec, QuantizationType
from tunery_api.training import Parallelism
from tunery_trainer.data.options import DatasetReport
from tunery_trainer.model.memory import weights_bytes
from tunery_trainer.plan.basis import Basis
from tunery_trainer.plan.training_plan import TrainingPlan, plan_if_possible
from tunery_trainer.settings.memory import MemoryEstimate
from tunery_trainer.settings.parallelism import no_choice, spread_over
from tunery_trainer.settings.types import DeviceKind

_MIB: Final = 2**20


@dataclass(frozen=True)
class GpuClass:
    """A kind of GPU."""

    name: str
    memory_bytes: int
    """As its driver tells it."""


GPU_CLASSES: Final = (
    GpuClass("T4 16", 15_360 * _MIB),
    GpuClass("L4 24", 23_034 * _MIB),
    GpuClass("4090 24", 24_564 * _MIB),
    GpuClass("A100 40", 40_960 * _MIB),
    GpuClass("L40S 48", 46_068 * _MIB),
    GpuClass("A6000 48", 49_140 * _MIB),
    GpuClass("H100 80", 81_559 * _MIB),
    GpuClass("A100 80", 81_920 * _MIB),
    GpuClass("H200 141", 143_771 * _MIB),
    GpuClass("B200 192", 183_359 * _MIB),
)
"""By name and GB as they are sold."""
_METHODS: Final = (Method.LORA, Method.DORA, Method.ADALORA, Method.IA3, Method.PREFIX_TUNING, Method.PROMPT_TUNING)
_FOUR_BITS: Final = QuantizationSpec(type=QuantizationType.NF4, double_quant=True)
_EIGHT_BITS: Final = QuantizationSpec(type=QuantizationType.INT8)


@dataclass(frozen=True)
class TableRow:
    """One method on a base that is quantised, or is not."""

    method: Method
    quantization: str
    """As people say it; empty: none."""
    estimate: MemoryEstimate
    """Of one row of maxLength, its activations recomputed where the method can."""
    spread: MemoryEstimate | None = None
    """The same with the base spread over the GPUs of a node; None where that is not left to Auto, or cannot be."""

    def largest_batch(self, gpu: GpuClass) -> int | None:
        """Return the largest batch that fits; None where not even one row does."""
        return self._of(gpu).largest_batch(gpu.memory_bytes)

    def is_spread(self, gpu: GpuClass) -> bool:
        """Say whether it fits only as Auto has it then, with the base spread."""
        return self._of(gpu) is self.spread and self.largest_batch(gpu) is not None

    def _of(self, gpu: GpuClass) -> MemoryEstimate:
        return self.estimate if self.spread is None or self.estimate.fits(gpu.memory_bytes) else self.spread


def method_table(basis: Basis, data: DatasetReport) -> Iterator[TableRow]:
    """Yield what each method would take on a GPU for rows as in `data`; what the model cannot do is left out.

    Everything else is as the manifest has it. FP4 takes what NF4 takes.
    """
    stored = basis.facts.stored
    for method in _METHODS:
        named = QUANTIZED_TWIN.get(method, method)
        if stored is not None:
            yield from _rows(_plan(basis, named, None, data), f"{stored.type} as stored")
            continue
        yield from _rows(_plan(basis, method, None, data), "")
        if method is not Method.DORA:
            yield from _rows(_plan(basis, named, _EIGHT_BITS, data), "Int8")
        yield from _in_4_bits(_plan(basis, named, _FOUR_BITS, data))


def _plan(
    basis: Basis, method: Method, quantization: QuantizationSpec | None, data: DatasetReport
) -> TrainingPlan | None:
    spec = basis.spec.model_copy(update={"method": method, "quantization": quantization})
    gpus = dataclasses.replace(basis.device, kind=DeviceKind.CUDA, memory_bytes=None, bfloat16=True)
    other = basis.planned_for(spec, gpus)
    return plan_if_possible(other, method, data)


def _rows(plan: TrainingPlan | None, quantization: str) -> Iterator[TableRow]:
    if plan is None or plan.memory is None:
        return
    device = plan.basis.device
    yield TableRow(
        plan.settings.method,
        quantization,
        _of_one_row(plan, plan.memory, spread_over(plan.settings, device)),
        _of_one_row(plan, plan.memory, device.devices) if _left_to_memory(plan) else None,
    )


def _of_one_row(plan: TrainingPlan, memory: MemoryEstimate, devices: int) -> MemoryEstimate:
    """Return what one row takes of each device, with the base spread over so many."""
    training, outline = plan.settings.training, plan.basis.outline
    weights = weights_bytes(outline, plan.settings.quantization, training.precision, devices)
    return dataclasses.replace(memory.of(1, gradient_checkpointing=True), weights=weights)


def _left_to_memory(plan: TrainingPlan) -> bool:
    """Say whether the memory of a GPU decides if the base is spread, as `plan_method` has it."""
    known = dataclasses.replace(plan.basis.device, memory_bytes=GPU_CLASSES[0].memory_bytes)
    asked = plan.basis.spec.training.parallelism
    return asked is Parallelism.AUTO and no_choice(known, plan.settings.quantization) is None


def _in_4_bits(plan: TrainingPlan | None) -> Iterator[TableRow]:
    """Yield both ways to store the constants of quantisation, which differ in nothing else."""
    if plan is None or plan.settings.quantization is None:
        return
    plain = dataclasses.replace(plan.settings.quantization, double_quant=False)
    yield from _rows(plan.with_settings(dataclasses.replace(plan.settings, quantization=plain)), "NF4")
    yield from _rows(plan, "NF4 double")
