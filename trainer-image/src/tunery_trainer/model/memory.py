"""How much memory training will take, without a GPU and without weights: a meta model and its saved tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple
from unittest.mock import patch

import torch
from peft.tuners.lora.layer import ParamWrapper
from transformers.quantizers.quantizers_utils import should_convert_module

from tunery_api.methods import QuantizationType
from tunery_api.status import MemoryStatus
from tunery_api.training import Optimizer
from tunery_trainer.model.language_part import decoder_layers
from tunery_trainer.model.targets import LINEAR
from tunery_trainer.settings.types import QuantizationSettings

_ABSMAX_PLAIN: Final = 4 / 64
"""bitsandbytes: one float32 for each block of 64 weights."""
_ABSMAX_DOUBLE: Final = 1 / 64 + 4 / (64 * 256)
"""The same constants in 8 bits, with one float32 for each 256 of them (QLoRA, Dettmers et al. 2023)."""
_SMALL_TENSOR: Final = 4096
"""bitsandbytes keeps the 8-bit optimizers' state of smaller tensors in 32 bits."""
_CUDA_CONTEXT: Final = 600 * 2**20
"""An allowance for the CUDA context and the kernels of cuBLAS and bitsandbytes; assumed, not measured."""
_CPU_PROCESS: Final = 1200 * 2**20
"""An allowance for the process once torch, transformers, peft and trl are imported; assumed, not measured."""
_ALLOCATOR_SLACK: Final = 0.05
"""Share that a caching allocator is assumed to lose to fragments; not measured."""
_HEAD_TILE: Final = 2**28
"""Bytes allowed for TRL's tiled language-model head, which never makes all logits; assumed, not measured."""
_ADAPTER_BYTES: Final = 4
"""Adapters are trained in float32 whatever the base is in."""
_PROBE: Final = (1, 2)
"""Batch sizes that are traced; activations are linear in the batch size."""


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


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak bytes of the device while training, by what they hold."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    kept_per_row: int
    """Activations of a row of a batch where all are kept for backward."""
    recomputed_per_row: int
    """The same with gradient checkpointing: each layer's input, and one layer expanded."""
    head: int
    """The tile of logits, and the largest weight that is dequantised."""
    overhead: int
    length: int
    """Tokens of a row, of both answers of a pair."""
    batch_size: int
    gradient_checkpointing: bool
    kept_once: int = 0
    """What is kept for backward however many rows there are: a mixture's experts with the adapter's change in them."""
    recomputed_once: int = 0
    """The same with gradient checkpointing: those of one layer."""

    @property
    def activations_per_row(self) -> int:
        """Bytes of activations that one more row in a batch takes."""
        return self.recomputed_per_row if self.gradient_checkpointing else self.kept_per_row

    @property
    def fixed(self) -> int:
        """Bytes that do not depend on the batch size."""
        once = self.recomputed_once if self.gradient_checkpointing else self.kept_once
        return self.weights + self.adapter + self.gradients + self.optimizer + self.head + self.overhead + once

    @property
    def total(self) -> int:
        """All bytes, the allocator's slack included."""
        return self._with_slack(self.batch_size)

    def of(self, batch_size: int, gradient_checkpointing: bool) -> MemoryEstimate:
        """Return the estimate of the same run with another batch, recomputing activations or not."""
        return replace(self, batch_size=batch_size, gradient_checkpointing=gradient_checkpointing)

    def largest_batch(self, available: int) -> int | None:
        """Return the largest batch size that fits into `available` bytes; None if not even one row does."""
        if self._with_slack(1) > available:
            return None
        room = available - self._with_slack(0)
        return max(1, int(room / max(1.0, self.activations_per_row * (1 + _ALLOCATOR_SLACK))))

    def to_status(self, available: int | None) -> MemoryStatus:
        """Return what the job's status shows."""
        return MemoryStatus(
            estimate_bytes=self.total,
            available_bytes=available,
            suggested_batch_size=self.largest_batch(available) if available else None,
        )

    def _with_slack(self, batch: int) -> int:
        movable = self.fixed - self.overhead + batch * self.activations_per_row
        return self.overhead + int(movable * (1 + _ALLOCATOR_SLACK))


def estimate_memory(model: torch.nn.Module, plan: MemoryPlan) -> MemoryEstimate:
    """Return the estimate for `model`, a PeftModel on the meta device whose base is not quantised.

    Raises whatever the model's forward raises on meta tensors; a caller treats that as "not known".
    """
    base, trained = _parameters(model)
    weights = sum(_stored_bytes(model, name, parameter, plan.quantization) for name, parameter in base.items())
    trained_count = sum(parameter.numel() for parameter in trained.values())
    kept, recomputed = _trace_activations(model, plan.length)
    tokens = plan.length * plan.sequences
    workspace = _largest_dequantized(base) if _four_bit(plan.quantization) else 0
    workspace = max(workspace, _largest_expert_gradient(model))
    return MemoryEstimate(
        weights=int(weights),
        adapter=trained_count * _ADAPTER_BYTES,
        gradients=trained_count * _ADAPTER_BYTES,
        optimizer=int(sum(_optimizer_bytes(parameter.numel(), plan) for parameter in trained.values())),
        kept_per_row=plan.sequences * kept.per_row,
        recomputed_per_row=plan.sequences * recomputed.per_row,
        head=min(_HEAD_TILE, 4 * tokens * plan.batch_size * _vocabulary(model)) + workspace,
        overhead=_CUDA_CONTEXT if plan.on_gpu else _CPU_PROCESS,
        length=tokens,
        batch_size=plan.batch_size,
        gradient_checkpointing=plan.gradient_checkpointing,
        kept_once=kept.once,
        recomputed_once=recomputed.once,
    )


def _parameters(model: torch.nn.Module) -> tuple[dict[str, torch.nn.Parameter], dict[str, torch.nn.Parameter]]:
    named = dict(model.named_parameters())
    trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    return {name: parameter for name, parameter in named.items() if name not in trained}, trained


def _stored_bytes(
    model: torch.nn.Module, name: str, parameter: torch.nn.Parameter, quantization: QuantizationSettings | None
) -> float:
    """Return the bytes of one frozen parameter: only the linear layers below the head are quantised."""
    owner = model.get_submodule(name.rpartition(".")[0])
    quantized = (
        quantization is not None and name.endswith(".weight") and isinstance(owner, LINEAR) and "lm_head" not in name
    )
    if not quantized or quantization is None or _skipped(name, quantization):
        return parameter.numel() * parameter.element_size()
    if quantization.type is QuantizationType.INT8:
        return parameter.numel() + 4 * parameter.shape[0]
    constants = _ABSMAX_DOUBLE if quantization.double_quant else _ABSMAX_PLAIN
    return parameter.numel() * (0.5 + constants)


def _skipped(name: str, quantization: QuantizationSettings) -> bool:
    """Say whether a checkpoint that was quantised before keeps this module as it was, by transformers' own rule."""
    stored = quantization.stored
    path = name.removeprefix("base_model.model.").removesuffix(".weight").removesuffix(".base_layer")
    return stored is not None and bool(stored.skipped) and not should_convert_module(path, list(stored.skipped))


def _four_bit(quantization: QuantizationSettings | None) -> bool:
    return quantization is not None and quantization.type is not QuantizationType.INT8


def _largest_dequantized(base: dict[str, torch.nn.Parameter]) -> int:
    """Return the bytes of the largest matrix in 16 bits: 4-bit layers are expanded one at a time.

    Embeddings and head are not among them.
    """
    matrices = (p for name, p in base.items() if p.ndim == 2 and "embed" not in name and "lm_head" not in name)
    return 2 * max((matrix.numel() for matrix in matrices), default=0)


def _optimizer_bytes(numel: int, plan: MemoryPlan) -> float:
    """Return the bytes of Adam's two moments of one tensor."""
    eight_bit = plan.optimizer in (Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT)
    if eight_bit and numel >= _SMALL_TENSOR:
        return numel * (2 + 2 * 4 / 256)
    return numel * 2 * 4


def _vocabulary(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


def _largest_expert_gradient(model: torch.nn.Module) -> int:
    """Return the bytes of the largest expert parameter that is adapted: backward makes its gradient as a whole."""
    wrapped = (module for module in model.modules() if isinstance(module, ParamWrapper))
    return max((2 * module.get_param().numel() for module in wrapped), default=0)


class _Line(NamedTuple):
    """Bytes that grow with the rows of a batch, and those that do not."""

    per_row: int
    once: int


def _trace_activations(model: torch.nn.Module, length: int) -> tuple[_Line, _Line]:
    """Return the bytes that backward needs: all kept, and with gradient checkpointing."""
    small, large = (_trace(model, batch, length) for batch in _PROBE)
    kept, recomputed = (max(1, more - less) for less, more in zip(small, large, strict=True))
    return _Line(kept, max(0, small[0] - kept)), _Line(recomputed, max(0, small[1] - recomputed))


def _trace(model: torch.nn.Module, batch: int, length: int) -> tuple[int, int]:
    """Return the bytes saved for backward by one forward pass of `batch` rows: all, and with gradient checkpointing.

    With checkpointing a layer keeps only its input, and is expanded again one at a time.
    """
    saved = _SavedBytes(model)
    ids = torch.zeros((batch, length), dtype=torch.long, device="meta")
    with (
        saved.watching(),
        patch("torch.nn.functional.scaled_dot_product_attention", _fused_attention),
        # It looks at values, which meta tensors have none of.
        patch("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None),
        # PEFT leaves it for the experts of a mixture, and a meta device has none.
        patch("torch.autocast", lambda *_, **__: contextlib.nullcontext()),
    ):
        model(input_ids=ids, use_cache=False)
    layers, outside = saved.by_layer, saved.outside
    everything = outside + sum(layers)
    return everything, outside + sum(saved.inputs) + max(layers) if layers else everything


class _SavedBytes:
    """Adds up the storages that autograd saves, each once, by decoder layer."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._layers = list(decoder_layers(model.get_base_model()))  # type: ignore[operator]
        self._known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self._kept: list[torch.Tensor] = []
        self._current: int | None = None
        self._in_head = False
        self._head = model.get_output_embeddings()  # type: ignore[operator]
        self.by_layer = [0] * len(self._layers)
        self.inputs = [0] * len(self._layers)
        self.outside = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Count while the body runs."""
        handles = [self._head.register_forward_pre_hook(self._enter_head)]
        for index, layer in enumerate(self._layers):
            handles.append(layer.register_forward_pre_hook(self._enter(index), with_kwargs=True))
            handles.append(layer.register_forward_hook(self._leave))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known or self._in_head:
            return tensor
        self._known.add(storage._cdata)
        self._kept.append(tensor)  # a freed storage's address would be taken for a known one
        if self._current is None:
            self.outside += storage.nbytes()
        else:
            self.by_layer[self._current] += storage.nbytes()
        return tensor

    def _enter(self, index: int) -> Any:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._current = index
            hidden = args[0] if args else kwargs["hidden_states"]
            self.inputs[index] = hidden.numel() * hidden.element_size()

        return hook

    def _leave(self, *_: Any) -> None:
        self._current = None

    def _enter_head(self, *_: Any) -> None:
        self._in_head = True


class _FusedAttention(torch.autograd.Function):
    """What fused attention keeps for backward: q, k, v, the output and one float for each query."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        statistics = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, statistics)
        return output


def _fused_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Stand in for scaled_dot_product_attention, which on meta tensors takes the path that stores S x S scores."""
    if query.dtype != value.dtype:
        value = value.to(query.dtype)
    return _FusedAttention.apply(query, key, value)  # type: ignore[no-any-return]
