"""How much memory training will take, without a GPU and without weights: a pass on the meta device, counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import torch
from peft import AdaLoraConfig, PeftModel
from transformers.quantizers.quantizers_utils import should_convert_module

from tunery_api.methods import QuantizationType
from tunery_api.training import Optimizer, Precision
from tunery_trainer.model.live_bytes import TILE_TOKENS, Counted, Pass, count
from tunery_trainer.model.outline import Outline, Weight
from tunery_trainer.model.quantization import dtype_of
from tunery_trainer.model.targets import LINEAR
from tunery_trainer.settings.memory import Activations, Bent, Line, MemoryEstimate
from tunery_trainer.settings.types import QuantizationSettings

_ABSMAX_PLAIN: Final = 4 / 64
"""bitsandbytes: one float32 for each block of 64 weights."""
_ABSMAX_DOUBLE: Final = 1 / 64 + 4 / (64 * 256)
"""The same constants in 8 bits, with one float32 for each 256 of them (QLoRA, Dettmers et al. 2023)."""
_SMALL_TENSOR: Final = 4096
"""bitsandbytes keeps the 8-bit optimizers' state of smaller tensors in 32 bits."""
_CUDA_CONTEXT: Final = 600 * 2**20
"""An allowance for the CUDA context and the kernels of cuBLAS and bitsandbytes; assumed, not measured."""
_NCCL: Final = 2**30
"""An allowance for NCCL's buffers and its part of the CUDA context; assumed, not measured."""
_GATHERED_LAYERS: Final = 2
"""Layers of a base that is spread which are whole at once: the one that is computed, and the next one on its way."""
_CPU_PROCESS: Final = 1030 * 2**20
"""The process once torch, transformers, peft and trl are imported, 400 MiB of libraries' files included; measured."""
_ADAPTER_BYTES: Final = 4
"""Adapters are trained in float32 whatever the base is in."""
_ADALORA_BYTES: Final = 3 * 4
"""AdaLoRA's importance of each weight, smoothed, and its uncertainty, in float32 (peft.tuners.adalora.layer)."""
_PROBE: Final = (1, 16)
"""Batch sizes that are counted. The peak is the largest of several straight lines, so the chord is never below it; but
for the tile of logits, which grows no more once it is full: that batch size is counted, too."""


@dataclass(frozen=True)
class MemoryPlan:
    """What decides the memory of a run apart from the model itself."""

    batch_size: int
    length: int
    """Tokens of a sequence in a batch."""
    quantization: QuantizationSettings | None
    optimizer: Optimizer
    gradient_checkpointing: bool
    on_gpu: bool
    sequences: int = 1
    """Sequences of a row in a forward pass: two of a pair."""
    precision: Precision = Precision.BFLOAT16
    masked: bool = True
    """Whether attention has a mask: packed rows have none where attention is by example."""
    recomputable: bool = True
    """Whether activations can be recomputed; prefix tuning's cannot."""
    keepable: bool = True
    """Whether it is asked what keeping them all would take."""
    world: int = 1
    """Devices that train together."""
    spread_over: int = 1
    """Devices that the base is spread over; 1: each has all of it."""


def estimate_memory(
    model: PeftModel, outline: Outline, plan: MemoryPlan, alike: MemoryEstimate | None = None
) -> MemoryEstimate:
    """Return the estimate for `model`, an adapter on `outline.fresh()`: on the meta device, and not quantised.

    `alike` is that of a plan whose passes are the same, which are not counted again then.
    Raises whatever the model's passes raise on meta tensors; a caller treats that as "not known".
    """
    if plan.precision is Precision.FLOAT32:
        model.float()
    trained = list(_trained(model, outline))
    number = sum(parameter.numel() * times for parameter, times in trained)
    state = sum(_optimizer_bytes(parameter.numel(), plan) * times for parameter, times in trained)
    plain, recomputing = (alike.plain, alike.recomputing) if alike else _passes(model, outline, plan)
    estimate = MemoryEstimate(
        weights=weights_bytes(outline, plan.quantization, plan.precision, plan.spread_over),
        adapter=number * _ADAPTER_BYTES,
        gradients=number * _ADAPTER_BYTES,
        optimizer=int(state) + (number * _ADALORA_BYTES if _is_adalora(model) else 0),
        plain=plain,
        recomputing=recomputing,
        overhead=_CUDA_CONTEXT if plan.on_gpu else _CPU_PROCESS,
        length=plan.length * plan.sequences,
        batch_size=plan.batch_size,
        gradient_checkpointing=plan.gradient_checkpointing,
        on_gpu=plan.on_gpu,
    )
    return with_others(estimate) if plan.world > 1 else estimate


def with_others(alone: MemoryEstimate) -> MemoryEstimate:
    """Return the estimate of a device that trains together with others, of what it takes alone.

    What is summed over all devices goes as one message, beside the gradients that it is made of.
    """
    overhead = alone.overhead + (_NCCL if alone.on_gpu else 0)
    return replace(alone, gradients=2 * alone.gradients, overhead=overhead)


def _passes(model: PeftModel, outline: Outline, plan: MemoryPlan) -> tuple[Activations, Activations]:
    """Return what passes hold that keep all activations, and that recompute them; where it is not asked, the other."""
    ways = [recompute for recompute, asked in ((True, plan.recomputable), (False, plan.keepable)) if asked] or [False]
    counted = [_activations(model, outline, plan, recompute=recompute) for recompute in ways]
    return counted[-1], counted[0]


def weights_bytes(
    outline: Outline, quantization: QuantizationSettings | None, precision: Precision, devices: int = 1
) -> int:
    """Return what the frozen base takes on a device at most, quantised or not; it is spread over so many `devices`.

    Of a base that is spread each has its part, all constants of quantisation, and what is whole for a while beside the
    parts: layers in turn, and all that is no layer, as embedding and head.
    """
    sizes = [(weight, _stored_bytes(weight, quantization, precision)) for weight in outline.weights]
    whole = sum(size for _, size in sizes)
    if devices == 1:
        return int(whole)
    layers: dict[str, float] = {}
    constants = 0.0
    for weight, size in sizes:
        own = _constants(weight, quantization)
        constants += own
        layer = _layer_of(weight.path, outline.layers)
        layers[layer] = layers.get(layer, 0.0) + size - own
    outside = layers.pop("", 0.0)
    gathered = outside + sum(sorted(layers.values())[-_GATHERED_LAYERS:])
    return int((whole - constants) / devices + constants + gathered)


def _layer_of(path: str, layers: str) -> str:
    """Return the number of the layer that a parameter is of; empty where it is of none."""
    head, _, rest = path.partition(f"{layers}.")
    return "" if head or not rest else rest.partition(".")[0]


def trained_number(model: PeftModel, outline: Outline) -> int:
    """Return how many parameters an adapter trains on the whole model, of which `model` has a few layers."""
    return sum(parameter.numel() * times for parameter, times in _trained(model, outline))


def _trained(model: PeftModel, outline: Outline) -> Iterator[tuple[torch.nn.Parameter, int]]:
    """Yield each trained parameter, and how often the whole model has it."""
    layers = layers_of(model, outline)
    times = {id(p): times for layer, times in zip(layers, outline.times, strict=True) for p in layer.parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            yield parameter, times.get(id(parameter), 1)


def layers_of(model: PeftModel, outline: Outline) -> torch.nn.ModuleList:
    """Return the layers of an adapter's base that are there."""
    found: Any = model.get_base_model().get_submodule(outline.layers)
    return found if isinstance(found, torch.nn.ModuleList) else torch.nn.ModuleList()


def _stored_bytes(weight: Weight, quantization: QuantizationSettings | None, precision: Precision) -> float:
    """Return the bytes of one frozen parameter: only the linear layers below the head are quantised."""
    if quantization is None or not is_quantized(weight.path, weight.linear, quantization):
        return weight.numel * dtype_of(precision).itemsize
    if quantization.type is QuantizationType.INT8:
        return weight.numel + 4 * weight.shape[0]
    return weight.numel * 0.5 + _constants(weight, quantization)


def _constants(weight: Weight, quantization: QuantizationSettings | None) -> float:
    """Return the bytes of the constants that 4 bits are scaled by, of one frozen parameter."""
    if quantization is None or not is_quantized(weight.path, weight.linear, quantization):
        return 0.0
    if quantization.type is QuantizationType.INT8:
        return 0.0
    return weight.numel * (_ABSMAX_DOUBLE if quantization.double_quant else _ABSMAX_PLAIN)


def is_quantized(path: str, linear: bool, quantization: QuantizationSettings) -> bool:
    """Say whether the base's parameter at `path` is quantised.

    A checkpoint that was quantised before keeps some modules as they were, by transformers' own rule.
    """
    if not linear or not path.endswith(".weight") or "lm_head" in path:
        return False
    stored = quantization.stored
    left = stored.skipped if stored is not None else ()
    return not left or should_convert_module(path.removesuffix(".weight"), list(left))


def _quantized_weights(model: PeftModel, quantization: QuantizationSettings | None) -> dict[int, QuantizationType]:
    """Return the type of each quantised weight, by its id."""
    if quantization is None:
        return {}
    base = model.get_base_model()
    return {
        id(module.weight): quantization.type
        for path, module in base.named_modules()
        if isinstance(module, LINEAR)
        and not module.weight.requires_grad
        and is_quantized(f"{path.removesuffix('.base_layer')}.weight", True, quantization)
    }


def _optimizer_bytes(numel: int, plan: MemoryPlan) -> float:
    """Return the bytes of Adam's two moments of one tensor."""
    eight_bit = plan.optimizer in (Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT)
    if eight_bit and numel >= _SMALL_TENSOR:
        return numel * (2 + 2 * 4 / 256)
    return numel * 2 * 4


def _is_adalora(model: PeftModel) -> bool:
    return any(isinstance(config, AdaLoraConfig) for config in model.peft_config.values())


def _activations(model: PeftModel, outline: Outline, plan: MemoryPlan, *, recompute: bool) -> Activations:
    """Return what passes hold, of one batch and of a larger one, as straight lines."""
    quantized = _quantized_weights(model, plan.quantization)
    full = -(-TILE_TOKENS[plan.on_gpu] // (plan.length * plan.sequences))
    few, many = _PROBE
    probes = (few, full, many) if few < full < many else _PROBE
    counted = [
        of_the_whole(
            count(
                model,
                layers_of(model, outline),
                Pass(
                    rows=rows * plan.sequences,
                    length=plan.length,
                    recompute=recompute,
                    dtype=dtype_of(plan.precision),
                    masked=plan.masked,
                    quantized=quantized,
                    on_gpu=plan.on_gpu,
                ),
            ),
            outline,
        )
        for rows in probes
    ]
    peaks = [
        _line(pair, (first.peak, last.peak))
        for pair, (first, last) in zip(pairwise(probes), pairwise(counted), strict=True)
    ]
    kept = _line(_PROBE, (counted[0].kept, counted[-1].kept))
    return Activations(peaks[0] if len(peaks) == 1 else Bent(peaks[0], peaks[1], full), kept)


def of_the_whole(counted: Counted, outline: Outline) -> Counted:
    """Add what the layers that were left out keep."""
    if outline.whole:
        return counted
    more = sum(kept * (times - 1) for kept, times in zip(counted.by_layer, outline.times, strict=True))
    return Counted(counted.peak + more, counted.kept + more, counted.by_layer)


def _line(rows: tuple[int, int], bytes_of: tuple[int, int]) -> Line:
    """Return the straight line through the two."""
    (few, many), (less, more) = rows, bytes_of
    per_row = max(1, -(-(more - less) // (many - few)))
    return Line(max(0, less - few * per_row), per_row)
