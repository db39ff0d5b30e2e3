"""Attention by example beside the masked one, forward and backward, in the shapes of real models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import torch
from torch.nn.functional import scaled_dot_product_attention

from tunery_trainer.model.attention import attend, works_on

from gpu.runs import difference
from gpu.verdicts import Case, Check, Machine, Outcome, judged

HEADS: Final = {
    "SmolLM2-135M": (9, 3, 64),
    "Llama-3.2-1B": (32, 8, 64),
    "Llama-3.1-8B": (32, 8, 128),
    "Llama-3.1-70B": (64, 8, 128),
    "GPT-2": (12, 12, 64),
    "Phi-3-mini": (32, 32, 96),
    "Gemma-3-4B": (8, 4, 256),
}
"""Heads of queries, heads of keys, and their width."""
_ENDS: Final = (0, 700, 701, 1337, 2048)
_TINY_ENDS: Final = (0, 9, 10, 31, 48)
_WORSE: Final = 2.0
"""How much further from float32 it may be than the masked one in bfloat16 is, as in Flash Attention's own tests."""
_ROUNDING: Final = 1e-2
"""Of the largest value: some roundings of bfloat16 in sums over heads. A wrong mask makes tenths."""


def _compare(machine: Machine, heads: tuple[int, int, int], window: int | None) -> Outcome:
    """Compare output and gradients with masked attention in float32."""
    queries, keys, width = (4, 2, 16) if machine.dry else heads
    dtype, device = torch.bfloat16, torch.device(machine.device)
    ends = torch.tensor(_TINY_ENDS if machine.dry else _ENDS, dtype=torch.int32, device=device)
    length = int(ends[-1])
    draw = torch.Generator(device=device).manual_seed(0)
    shapes = ((1, queries, length, width), (1, keys, length, width), (1, keys, length, width))
    drawn = [torch.randn(shape, generator=draw, device=device).to(dtype) for shape in shapes]
    gradient = torch.randn(1, length, queries, width, generator=draw, device=device)
    told: dict[str, Any] = {"ends": ends, "window": window}
    expected = _gradients(drawn, gradient, torch.float32, partial(_masked, **told))
    found, masked = (_gradients(drawn, gradient, dtype, partial(how, **told)) for how in (_by_example, _masked))
    names = ("output", "query_gradient", "key_gradient", "value_gradient")
    figures: dict[str, Any] = {}
    for name, ours, plain, exact in zip(names, found, masked, expected, strict=True):
        figures[name], figures[f"{name}_masked"] = difference(ours, exact), difference(plain, exact)
    works = works_on(device, dtype, (queries, keys, width))
    worse = any(figures[name] > _WORSE * figures[f"{name}_masked"] + _ROUNDING for name in names)
    return judged(
        {"the trainer's own trial says no": not works, "it is not the masked attention": worse},
        works_on=works,
        **figures,
    )


def _gradients(drawn: list[torch.Tensor], gradient: torch.Tensor, dtype: torch.dtype, how: Any) -> list[torch.Tensor]:
    tensors = [tensor.to(dtype, copy=True).requires_grad_() for tensor in drawn]
    result = how(*tensors)
    return [result.detach(), *torch.autograd.grad(result, tensors, gradient.to(dtype))]


def _by_example(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, ends: torch.Tensor, window: int | None
) -> torch.Tensor:
    longest = int((ends[1:] - ends[:-1]).max())
    told: dict[str, Any] = {"cu_seq_lens_q": ends, "max_length_q": longest, "sliding_window": window}
    return attend(torch.nn.Module(), query, key, value, None, **told)[0]


def _masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, ends: torch.Tensor, window: int | None
) -> torch.Tensor:
    places = torch.arange(query.shape[2], device=query.device)
    example = torch.bucketize(places, ends, right=True)
    distance = places[:, None] - places[None, :]
    mask = (example[:, None] == example[None, :]) & (distance >= 0)
    if window is not None:
        mask &= distance < window
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def _cases(machine: Machine) -> Mapping[str, Case]:
    whole = {name: Case(partial(_compare, heads=heads, window=None)) for name, heads in HEADS.items()}
    window = 8 if machine.dry else 512
    limited = {
        f"{name}, window": Case(partial(_compare, heads=HEADS[name], window=window))
        for name in ("Llama-3.1-8B", "Gemma-3-4B")
    }
    return whole | limited


CHECK: Final = Check("attention by example is the masked attention", _cases)
