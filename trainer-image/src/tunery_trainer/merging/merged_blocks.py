"""The merged values of one tensor, row by row as PEFT's `merge` computes them, rounded once at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import torch

from tunery_trainer.merging.adapter_files import Adapter, Module
from tunery_trainer.merging.edit_plan import Edit, is_feedforward
from tunery_trainer.merging.quantized import Quantization, dequantized
from tunery_trainer.merging.safetensors_stream import read_rows, read_tensor

BLOCK_ELEMENTS: Final = 1 << 21
"""Entries of a weight that are worked on at once."""
BLOCK_ROWS: Final = 256
"""Blocks are multiples of this many rows: products of fewer may round unlike the whole product."""


class Scratch:
    """Memory that block after block is worked in: taken anew for each, it would be faulted in again each time."""

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}

    def take(self, use: str, shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor for this use; what was taken for it before is overwritten."""
        count = torch.Size(shape).numel()
        kept = self._kept.get(use)
        if kept is None or kept.dtype != dtype or kept.numel() < count:
            kept = self._kept[use] = torch.empty(max(count, BLOCK_ELEMENTS), dtype=dtype)
        return kept[:count].view(shape)


@dataclass(frozen=True, slots=True)
class Context:
    """What all edits share."""

    adapter: Adapter
    quantization: Quantization | None = None
    """How the base was quantised in training; None: it was not."""
    quantized: frozenset[str] = frozenset()
    """Tensors of the base that were quantised."""
    transposed: frozenset[str] = frozenset()
    """Tensors that lie in × out (GPT-2's Conv1D, PEFT's fan_in_fan_out)."""
    scratch: Scratch = field(default_factory=Scratch)


def merged_blocks(edit: Edit, context: Context) -> Iterator[torch.Tensor]:
    """Yield the merged tensor in blocks of rows: float32 where it was changed, else in its own type.

    A block is good until the next one is asked for.
    """
    change = _Change(edit, edit.module, context) if edit.module else None
    restore = context.quantization if edit.name in context.quantized else None
    if not edit.source.shape or restore or (change and change.needs_whole):
        weight = read_tensor(edit.files, edit.source)
        if restore:
            weight = dequantized(weight, restore, transposed=edit.name in context.transposed)
        yield change.apply(weight, 0) if change else weight
        return
    for start, stop in aligned_blocks(edit.source.shape):
        rows = read_rows(edit.files, edit.source, start, stop)
        yield change.apply(rows, start) if change else rows


def aligned_blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows of about BLOCK_ELEMENTS entries, in multiples of BLOCK_ROWS."""
    width = max(1, torch.Size(shape[1:]).numel())
    step = max(1, BLOCK_ELEMENTS // width // BLOCK_ROWS) * BLOCK_ROWS
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


class _Change:
    """What one module of the adapter does to one weight or bias; its small tensors are read once."""

    def __init__(self, edit: Edit, module: Module, context: Context) -> None:
        self.adapter, self.module, self.bias = context.adapter, module, edit.bias
        self.scratch = context.scratch
        self.by_columns = edit.name in context.transposed or module.embedding
        self.parts = {
            part: self.adapter.read(key).float()
            for part, key in self.module.keys.items()
            if part not in ("lora_A", "lora_B", "lora_E", "lora_embedding_A", "lora_embedding_B")
        }
        self.factors = None if self.bias or not self.module.factors else self._read_factors()

    @property
    def needs_whole(self) -> bool:
        """DoRA's norm runs along an output's weights; where those are a column, all rows are needed at once."""
        return self.bias or (self.by_columns and "lora_magnitude_vector" in self.parts)

    def apply(self, rows: torch.Tensor, start: int) -> torch.Tensor:
        """Return changed rows in float32; `rows` begin at row `start` and may be overwritten."""
        merged = self.scratch.take("merged", rows.shape, torch.float32).copy_(rows)
        if self.bias:
            return self._apply_to_bias(merged)
        if self.factors:
            merged.add_(self._delta(start, start + len(merged)))
        if "lora_magnitude_vector" in self.parts:
            self._rescale(merged, start)
        if "ia3_l" in self.parts:
            scale = self.parts["ia3_l"].T if self.by_columns else self.parts["ia3_l"]
            merged.mul_(scale if len(scale) == 1 else scale[start : start + len(merged)])
        if "trainable_tokens_delta" in self.parts:
            self._put_tokens(merged, start)
        return merged

    def _read_factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.adapter.a(self.module), self.adapter.b(self.module)

    def _delta(self, start: int, stop: int) -> torch.Tensor:
        """Rows of scaling·B·A in the weight's own orientation."""
        a, b = self.factors or self._read_factors()
        if self.by_columns:
            product = (b @ a[:, start:stop]).T
        else:
            product = self.scratch.take("delta", (stop - start, a.shape[1]), torch.float32)
            torch.mm(b[start:stop], a, out=product)
        return product.mul_(self.adapter.scaling(self.module))

    def _rescale(self, merged: torch.Tensor, start: int) -> None:
        """DoRA (Liu et al. 2024): m · (W + ΔW) / |W + ΔW|, with one norm for each output."""
        magnitude = self.parts["lora_magnitude_vector"].view(-1)
        if self.by_columns:
            merged.mul_((magnitude / torch.linalg.norm(merged.T, dim=1)).view(1, -1))
        else:
            magnitude = magnitude[start : start + len(merged)]
            merged.mul_((magnitude / torch.linalg.norm(merged, dim=1)).view(-1, 1))

    def _put_tokens(self, merged: torch.Tensor, start: int) -> None:
        """Replace the rows of trained tokens."""
        indices = token_indices(self.adapter, self.module)
        for token, value in zip(indices, self.parts["trainable_tokens_delta"], strict=True):
            if start <= token < start + len(merged):
                merged[token - start] = value

    def _apply_to_bias(self, bias: torch.Tensor) -> torch.Tensor:
        """A bias gains lora_bias's own, or is scaled with its module's output by IA3."""
        if "lora_B.bias" in self.parts:
            bias = bias + self.parts["lora_B.bias"] * self.adapter.scaling(self.module)
        if "ia3_l" in self.parts and not is_feedforward(self.adapter, self.module):
            bias = bias * self.parts["ia3_l"].view(bias.shape)
        return bias


def token_indices(adapter: Adapter, module: Module) -> list[int]:
    """The rows that `trainable_token_indices` names for a module: one list for all, or one by module name."""
    listed = adapter.config.get("trainable_token_indices") or []
    if isinstance(listed, dict):
        listed = next((v for k, v in listed.items() if module.name == k or module.name.endswith(f".{k}")), [])
    return [int(index) for index in listed]
