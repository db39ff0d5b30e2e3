"""Counts what a training pass holds in memory, on the meta device: every tensor from its making to its end."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tunery_api.methods import QuantizationType

_BLOCK: Final = 512
"""CUDA's allocator hands out multiples of this many bytes."""
TILE_TOKENS: Final = {True: 4096, False: 1024}
"""On a GPU, and on a CPU: positions of a tile of logits (TRL's, and losses/lm_head.py)."""
_TILE_WORDS: Final = 32_768
"""Words of a tile (trl.trainer.utils)."""
_TILE_COPIES: Final = 8
"""Of a tile in float32, where torch works on it in place of Triton's kernel (trl.kernels.chunked_logprob)."""
_IN_16_BITS: Final = frozenset(
    {
        torch.nn.functional.linear,
        torch.matmul,
        torch.Tensor.matmul,
        torch.Tensor.__matmul__,
        torch.bmm,
        torch.Tensor.bmm,
        torch.mm,
        torch.addmm,
        torch.baddbmm,
        torch.conv1d,
        torch.nn.functional.conv1d,
        torch.einsum,
    }
)
"""What autocast computes in 16 bits, of what language models do (torch.amp's list); meta tensors have no autocast."""
_IN_32_BITS: Final = frozenset({torch.nn.functional.layer_norm, torch.pow, torch.Tensor.pow})
"""What it computes in float32."""


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass."""

    rows: int
    """Sequences: twice the rows of a batch where a row is a pair."""
    length: int
    """Tokens of a sequence."""
    recompute: bool
    """Whether activations are recomputed, layer by layer."""
    dtype: torch.dtype = torch.bfloat16
    masked: bool = True
    """Whether attention has a mask: then keys and values are repeated for each of their heads, and the mask is kept."""
    quantized: Mapping[int, QuantizationType] | None = None
    """By id of a frozen weight, how it is stored."""
    on_gpu: bool = True
    plain: bool = False
    """All logits and no autocast, as plain transformers trains: only where figures of others are compared with."""


@dataclass(frozen=True)
class Counted:
    """Bytes of one pass beyond parameters, optimizer and frozen weights."""

    peak: int
    kept: int
    """What is kept for backward when forward has ended."""
    by_layer: tuple[int, ...]
    """The share of `kept` that each layer has made."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch is not typed here
    """Adds up the storages that exist, each rounded as CUDA's allocator rounds it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        there = [*model.parameters(), *model.buffers()]
        there += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self._known = {tensor.untyped_storage()._cdata for tensor in there}
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count what it made."""
        out = func(*args, **(kwargs or {}))
        for leaf in (out,) if isinstance(out, torch.Tensor) else tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._made(leaf.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _made(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self._known.add(key)
        self.now += size
        weakref.finalize(storage, self._ended, key, size)

    def _ended(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def count(model: Any, layers: torch.nn.ModuleList, how: Pass) -> Counted:
    """Return what a pass of `model`, a PeftModel on the meta device, holds; its `layers` are the decoder's.

    Raises whatever the model raises on meta tensors.
    """
    for parameter in model.parameters():  # as after the first pass of a step: those of the second are added to them
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    live = LiveBytes(model)
    by_layer = _ByLayer(live, layers)
    with live, by_layer.watching(), _as_trained(model, how) as loss:
        result = loss()
        kept = live.now
        result.backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    return Counted(live.peak, kept, by_layer.made)


class _ByLayer:
    """What is there as each layer begins in the forward pass."""

    def __init__(self, live: LiveBytes, layers: torch.nn.ModuleList) -> None:
        self._live, self._layers = live, layers
        self._began: list[int] = []

    @property
    def made(self) -> tuple[int, ...]:
        """Bytes that each layer leaves for backward; 0 of the last one, whose end nothing tells.

        Not the input and output of each layer, of which one lets go only once the next begins.
        """
        return (*(after - before for before, after in itertools.pairwise(self._began)), *([0] if self._began else ()))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        handles = [layer.register_forward_pre_hook(self._enter) for layer in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, *_: Any) -> None:
        if len(self._began) < len(self._layers):  # then they are computed again
            self._began.append(self._live.now)


@contextlib.contextmanager
def _as_trained(model: Any, how: Pass) -> Iterator[Callable[[], torch.Tensor]]:
    """Make the model compute as the loop would; yields what runs forward and returns the loss."""
    ids = torch.zeros((how.rows, how.length), dtype=torch.long, device="meta")
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": how.plain}
    if how.masked:
        inputs["attention_mask"] = torch.ones_like(ids)
    if how.plain:
        inputs["labels"] = ids
    head = _Head(model, how)
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(patch("torch.nn.functional.scaled_dot_product_attention", _fused_attention))
        # These look at values, which meta tensors have none of.
        enter(patch("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None))
        enter(patch("transformers.masking_utils._ignore_causal_mask_sdpa", lambda *_, **__: not how.masked))
        # PEFT leaves it for the experts of a mixture, and a meta device has none.
        enter(patch("torch.autocast", lambda *_, **__: contextlib.nullcontext()))
        _recompute(model, how)
        stack.callback(model.get_base_model().activation_checkpointing_disable)
        enter(_inputs_left_alone(model, how))
        enter(head.standing_in())

        def loss() -> torch.Tensor:
            with _Products(how):
                return head.loss(model(**inputs))

        yield loss


def _recompute(model: Any, how: Pass) -> None:
    if how.recompute:
        # Within backward torch takes the mode away, so what is computed again enters it anew.
        options = {"use_reentrant": False, "context_fn": lambda: (contextlib.nullcontext(), _Products(how))}
        model.get_base_model().activation_checkpointing_enable(activation_checkpointing_kwargs=options)


@contextlib.contextmanager
def _inputs_left_alone(model: torch.nn.Module, how: Pass) -> Iterator[None]:
    """Keep PEFT from copying inputs to float32, as training does in 16 bits."""
    copied = how.plain or how.dtype is torch.float32
    layers = [] if copied else [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [getattr(layer, "cast_input_dtype_enabled", True) for layer in layers]
    for layer in layers:
        layer.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.cast_input_dtype_enabled = value


class _Products(TorchFunctionMode):
    """Computes as autocast does, and quantised linear layers by the products of bitsandbytes."""

    def __init__(self, how: Pass) -> None:
        super().__init__()
        self._dtype = None if how.plain or how.dtype is torch.float32 else how.dtype
        self._weights, self._on_gpu = how.quantized or {}, how.on_gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, or what stands for it."""
        kwargs = kwargs or {}
        if self._dtype is not None and (func in _IN_16_BITS or func in _IN_32_BITS):
            wanted = self._dtype if func in _IN_16_BITS else torch.float32
            args, kwargs = tree_map(lambda value: _cast(value, wanted), (args, kwargs))
        if func is torch.nn.functional.linear and id(args[1]) in self._weights:
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            int8 = self._weights[id(args[1])] is QuantizationType.INT8
            out = _Product.apply(args[0], args[1], int8, int8 and self._on_gpu)
            return out if bias is None else out + bias
        return func(*args, **kwargs)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if floating and value.dtype != dtype else value


class _Product(torch.autograd.Function):
    """bitsandbytes' product: 4 bits expand the weight both ways.

    Int8 keeps its input, and expands the weight in backward; on a CPU (MatMul8bitFp) in forward, too.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, keeps_input: bool, by_integers: bool
    ) -> torch.Tensor:
        ctx.weight = weight
        shape = (*inputs.shape[:-1], weight.shape[0])
        if keeps_input:
            ctx.save_for_backward(inputs)
        if by_integers:
            sums, rows = inputs.new_empty(shape, dtype=torch.int32), inputs.new_empty(inputs.shape, dtype=torch.int8)
            del rows
            return torch.empty_like(sums, dtype=inputs.dtype)
        expanded = torch.empty_like(weight)
        result = inputs.new_empty(shape)
        del expanded
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        expanded = torch.empty_like(ctx.weight)
        result = gradient.new_empty((*gradient.shape[:-1], ctx.weight.shape[1]))
        del expanded
        return result, None, None, None


class _Head:
    """TRL's head, which makes logits by tiles, in place of the model's own."""

    def __init__(self, model: Any, how: Pass) -> None:
        self._head, self._loss = model.get_output_embeddings(), None
        self._trained = next((p for p in self._head.parameters() if p.requires_grad), None)
        self._plain, self._output = how.plain, None
        words = min(_TILE_WORDS, self._head.weight.shape[0])
        positions = min(how.rows * how.length, TILE_TOKENS[how.on_gpu])
        self._tile = positions * words * (how.dtype.itemsize + (0 if how.on_gpu else 4 * _TILE_COPIES))

    @contextlib.contextmanager
    def standing_in(self) -> Iterator[None]:
        """Take the hidden states for the loss, and leave the model's head one position."""
        if self._plain:
            yield
            return
        handle = self._head.register_forward_pre_hook(self._take)
        try:
            yield
        finally:
            handle.remove()

    def loss(self, output: Any) -> torch.Tensor:
        """Return the loss of the forward pass that has just ended."""
        if self._plain:
            self._output = output  # with its logits and keys and values, as in a loop that keeps them by a name
            all_of_it: torch.Tensor = output.loss
            return all_of_it
        if self._loss is None:
            raise ValueError("the model does not call its own head")
        result, self._loss = self._loss, None
        return result

    def _take(self, module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = args[0]
        self._loss = _TiledHead.apply(hidden, self._trained, self._tile).sum()
        return (hidden[..., -1:, :].detach(), *args[1:])


class _TiledHead(torch.autograd.Function):
    """A copy of the positions with a label, taken to be all; a tile of logits; their gradient in float32."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor | None, tile: int) -> torch.Tensor:
        flat = hidden.new_empty((hidden.shape[:-1].numel(), hidden.shape[-1]))
        _scratch(hidden, tile)
        ctx.save_for_backward(flat)
        ctx.weight, ctx.tile, ctx.shape = weight, tile, hidden.shape
        return flat.new_empty(flat.shape[0], dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        (flat,) = ctx.saved_tensors
        full = torch.empty_like(flat, dtype=torch.float32)
        weight = None if ctx.weight is None else torch.empty_like(ctx.weight, dtype=torch.float32)
        _scratch(flat, ctx.tile)
        return full.to(flat.dtype).reshape(ctx.shape), weight, None


def _scratch(like: torch.Tensor, size: int) -> None:
    """Take `size` bytes and give them back."""
    like.new_empty(size, dtype=torch.uint8)


class _FusedAttention(torch.autograd.Function):
    """What fused attention keeps for backward: q, k, v, the mask, the output and one float for each query."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        statistics = query.new_empty(query.shape[:-1], dtype=torch.float32)
        bias = None if mask is None else query.new_empty(mask.shape)
        ctx.save_for_backward(query, key, value, output, statistics, bias)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *_: Any,
    **__: Any,
) -> torch.Tensor:
    """Stand in for scaled_dot_product_attention, which on meta tensors takes the path that stores S x S scores."""
    return _FusedAttention.apply(query, key.to(query.dtype), value.to(query.dtype), attn_mask)  # type: ignore[no-any-return]
