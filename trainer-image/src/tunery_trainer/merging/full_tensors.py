"""Whole tensors in an adapter (modulesToSave, resized embeddings, trained biases and tokens): their weighted mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunery_trainer.merging.adapter_files import Adapter
from tunery_trainer.merging.deltas import BLOCK_ELEMENTS
from tunery_trainer.merging.safetensors_stream import Layout, TensorInfo, Writer, read_rows

TOKENS = "trainable_tokens_delta"


def layouts(adapters: Sequence[Adapter], dtype: torch.dtype) -> list[Layout]:
    """Lay out the whole tensors of the result; all adapters have the same ones."""
    return [Layout(keys[0], dtype, adapters[0].tensors[keys[0]].shape) for keys in _keys(adapters)]


def write(adapters: Sequence[Adapter], writer: Writer, dtype: torch.dtype) -> None:
    """Write Σ weight·tensor / Σ weight, block by block, in the order of `layouts`."""
    total = sum(adapter.weight for adapter in adapters)
    for keys in _keys(adapters):
        infos = [adapter.tensors[key] for adapter, key in zip(adapters, keys, strict=True)]
        for start, stop in row_blocks(infos[0]):
            mean = torch.zeros((stop - start, *infos[0].shape[1:]))
            for adapter, key, info in zip(adapters, keys, infos, strict=True):
                rows = read_rows(adapter.files, info, start, stop).float()
                if not bool(torch.isfinite(rows).all()):
                    raise adapter.diverged(key)
                mean.add_(rows, alpha=adapter.weight / total)
            writer.write(mean.to(dtype))


def row_blocks(info: TensorInfo) -> list[tuple[int, int]]:
    """Split a tensor into ranges of rows of about BLOCK_ELEMENTS entries."""
    rows = info.shape[0]
    step = max(1, BLOCK_ELEMENTS * info.dtype.itemsize // max(1, info.row_bytes))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def _keys(adapters: Sequence[Adapter]) -> list[list[str]]:
    """The keys of each whole tensor, one for each adapter."""
    found = [[adapter.full[name] for adapter in adapters] for name in adapters[0].full]
    for name, module in adapters[0].modules.items():
        if TOKENS in module.keys:
            found.append([adapter.modules[name].keys[TOKENS] for adapter in adapters])
    return found
