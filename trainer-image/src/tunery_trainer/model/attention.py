"""Attention example by example: no mask of row times row, and no product between tokens that do not see each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, NamedTuple

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

BY_EXAMPLE: Final = "by_example"
"""Its name in transformers; for a name without a mask function of its own transformers makes no mask."""
_REFUSED: Final = ("softcap", "s_aux", "position_bias", "output_attentions")
"""Arguments of some architectures that change the scores, which neither of the two kernels knows."""


def attend(  # noqa: PLR0913 (the signature that transformers calls)
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Return causal attention within each example, (rows, length, heads, value width), as transformers calls it.

    `query` is (rows, heads, length, width). `cu_seq_lens_q` are the ends of the examples, counted through all rows
    and their padding, from 0; without it an example begins where `position_ids` are 0, and where a row does.
    Raises ValueError for what it does not know.
    """
    unknown = [name for name in _REFUSED if others.get(name) is not None and others[name] is not False]
    if unknown or attention_mask is not None or others.get("dropout") or query.shape[2] != key.shape[2]:
        raise ValueError(f"attention by example knows no {unknown or 'mask, dropout or cache'}")
    if others.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise ValueError("attention by example is causal")
    rows, heads, length, _ = query.shape
    ends = _ends(rows, length, others.get("position_ids"), query.device) if cu_seq_lens_q is None else cu_seq_lens_q
    flat = [tensor.transpose(1, 2).reshape(rows * length, tensor.shape[1], -1) for tensor in (query, key, value)]
    window = others.get("sliding_window")
    longest = int(others.get("max_length_q") or length)
    compute = _on_gpu if query.is_cuda else _on_cpu
    result = compute(flat, ends, Bounds(longest, window), scaling)
    return result.reshape(rows, length, heads, -1), None


AttentionInterface.register(BY_EXAMPLE, attend)


def computes_by_example(model: torch.nn.Module) -> bool:
    """Tell whether `model`, of transformers or of PEFT, wants to be told where examples end."""
    return bool(getattr(model.config, "_attn_implementation", None) == BY_EXAMPLE)


@contextmanager
def with_cache(model: torch.nn.Module) -> Iterator[None]:
    """Let `model` attend as transformers does while it generates: example by example there is no cache."""
    configs: dict[int, Any] = {id(each.config): each.config for each in model.modules() if hasattr(each, "config")}
    changed = [each for each in configs.values() if getattr(each, "_attn_implementation", None) == BY_EXAMPLE]
    for config in changed:
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        for config in changed:
            config._attn_implementation = BY_EXAMPLE


def _ends(rows: int, length: int, position_ids: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    begins = torch.zeros(rows, length, dtype=torch.bool, device=device)
    begins[:, 0] = True
    if position_ids is not None:
        begins |= position_ids.expand(rows, length) == 0
    starts = begins.flatten().nonzero().flatten()
    return torch.cat([starts, starts.new_tensor([rows * length])]).int()


class Bounds(NamedTuple):
    """How far attention reaches."""

    longest: int
    """Tokens of the longest example."""
    window: int | None
    """Tokens that a query sees, itself included; None: all before it."""


def _on_gpu(flat: list[torch.Tensor], ends: torch.Tensor, bounds: Bounds, scaling: float | None) -> torch.Tensor:
    query, key, value = flat
    longest, window = bounds
    result = varlen_attn(
        *(query, key, value, ends, ends, longest, longest),
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    if isinstance(result, tuple):
        raise TypeError("varlen_attn gives more back than it was asked for")
    return result


def _on_cpu(flat: list[torch.Tensor], ends: torch.Tensor, bounds: Bounds, scaling: float | None) -> torch.Tensor:
    window = bounds.window
    query, key, value = (tensor.transpose(0, 1)[None] for tensor in flat)
    places = ends.tolist()
    parts = []
    for start, end in pairwise(places):
        band = _band(end - start, window) if window is not None and end - start > window else None
        parts.append(
            scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, start:end],
                value[:, :, start:end],
                attn_mask=band,
                is_causal=band is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(parts, dim=2)[0].transpose(0, 1)


@lru_cache(maxsize=64)
def _band(length: int, window: int) -> torch.Tensor:
    """Return which keys each query sees: itself and the `window` - 1 before it."""
    positions = torch.arange(length)
    distance = positions[:, None] - positions[None, :]
    return (distance >= 0) & (distance < window)


def works_on(device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int]) -> bool:
    """Try it on a GPU, forward and backward, beside plain attention; `heads` are queries', keys' and their width.

    False where the kernel is not there for this GPU, type or width, or differs: then rows are masked, as ever.
    """
    if device.type != "cuda":
        return True
    queries, keys, width = heads
    draw = torch.Generator(device=device).manual_seed(0)
    shapes = ((1, queries, 24, width), (1, keys, 24, width), (1, keys, 24, width))
    ends = torch.tensor([0, 9, 24], dtype=torch.int32, device=device)
    try:
        found, expected = (
            _gradients(shapes, draw.manual_seed(0), dtype, lambda *qkv, how=how: how(*qkv, ends))
            for how in (_by_kernel, _by_mask)
        )
    except (RuntimeError, ValueError, TypeError):  # also what another torch does not know
        return False
    return all(torch.allclose(a, b, atol=3e-2, rtol=3e-2) for a, b in zip(found, expected, strict=True))


def _by_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return attend(torch.nn.Module(), query, key, value, None, cu_seq_lens_q=ends)[0]


def _by_mask(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    places = torch.arange(query.shape[2], device=query.device)
    example = torch.bucketize(places, ends, right=True)
    mask = (example[:, None] == example[None, :]) & (places[:, None] >= places[None, :])
    gqa = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=gqa).transpose(1, 2)


def _gradients(
    shapes: tuple[tuple[int, ...], ...], draw: torch.Generator, dtype: torch.dtype, how: Any
) -> list[torch.Tensor]:
    tensors = [
        torch.randn(shape, generator=draw, device=draw.device, dtype=torch.float32).to(dtype).requires_grad_()
        for shape in shapes
    ]
    result = how(*tensors)
    result.float().pow(2).sum().backward()
    return [result.detach().float(), *(tensor.grad.float() for tensor in tensors if tensor.grad is not None)]
