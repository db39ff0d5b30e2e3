"""An adapter merged into its base model: shard by shard, tensor by tensor, into files laid out beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunery_trainer.merging.adapter_files import Adapter
from tunery_trainer.merging.base_model import (
    CONFIG,
    INDEX,
    Checkpoint,
    embedding_name,
    is_tokenizer_file,
    tensor_name,
    text_config,
)
from tunery_trainer.merging.edit_plan import Edit, Plan, fits, plan_edits
from tunery_trainer.merging.files import CHUNK, Files
from tunery_trainer.merging.merged_blocks import Context, merged_blocks
from tunery_trainer.merging.quantized import Quantization
from tunery_trainer.merging.safetensors_stream import Layout, Writer
from tunery_trainer.merging.verify import verify_shard

Done = Callable[[str], None]
"""Called with a file's name once it is complete in the target folder; may move it away and delete it."""


def _keep(name: str) -> None:
    """Leave a finished file where it is."""


@dataclass(frozen=True, slots=True)
class IntoBase:
    """How an adapter goes into its base."""

    dtype: torch.dtype | None = None
    """Type of the written weights; None: each tensor keeps the base's."""
    quantization: Quantization | None = None
    """How the base was quantised in training: the adapter is then merged into the dequantised weights."""
    verify: bool = False
    """Read each shard back and compare it with its tensors computed anew."""
    done: Done = _keep
    """At most one shard lies in the target folder between two calls, if it removes it."""


def merge_into_base(checkpoint: Checkpoint, adapter: Adapter, target: Path, how: IntoBase | None = None) -> float:
    """Write the base model with the adapter merged in: the same shards, then the rest, config and index last.

    The delta is added in float32 and rounded once: for plain LoRA the result is bit-equal to PEFT's
    `merge_and_unload`. Returns the largest relative error that `verify` found, else 0.
    Raises TuneryError: InvalidSpec where the adapter does not fit the base, AdapterCorrupt for NaN.
    """
    how = how or IntoBase()
    plan = plan_edits(checkpoint, adapter)
    context = _context(checkpoint, adapter, how.quantization)
    worst = 0.0
    for shard, edits in plan.shards.items():
        write_shard(target / shard, edits, context, how.dtype)
        if how.verify:
            worst = max(worst, verify_shard(target / shard, edits, context))
        how.done(shard)
    for name, files in _companions(checkpoint, adapter).items():
        copy_file(files, name, target / name)
        how.done(name)
    _write_json(target / CONFIG, merged_config(checkpoint, plan, how.dtype))
    how.done(CONFIG)
    if checkpoint.index is not None:
        _write_json(target / INDEX, _merged_index(checkpoint.index, plan, how.dtype))
        how.done(INDEX)
    return worst


def write_shard(path: Path, edits: list[Edit], context: Context, dtype: torch.dtype | None) -> None:
    """Write one shard, holding a block of one tensor at a time."""
    with Writer(path, [_layout(edit, dtype) for edit in edits]) as writer:
        for edit, layout in zip(edits, writer.layouts, strict=True):
            untouched = edit.module is None and edit.name not in context.quantized
            if untouched and layout.dtype == edit.source.dtype:
                writer.copy(edit.files, edit.source)
                continue
            for block in merged_blocks(edit, context):
                rounded = context.scratch.take("rounded", block.shape, layout.dtype).copy_(block)
                writer.write(rounded)


def merged_config(checkpoint: Checkpoint, plan: Plan, dtype: torch.dtype | None) -> dict[str, Any]:
    """Return config.json: no quantisation, the written type, the new vocabulary, tied only where that still holds."""
    config = {name: value for name, value in checkpoint.config.items() if name != "quantization_config"}
    text = dict(text_config(config))
    embedding = embedding_name(checkpoint)
    rows = [e.source.shape[0] for edits in plan.shards.values() for e in edits if e.name == embedding]
    base_rows = [info.shape[0] for name, info in checkpoint.tensors.items() if name == embedding]
    if rows != base_rows:
        text["vocab_size"] = rows[0]
    if "text_config" in config:
        config["text_config"] = text
    else:
        config = text
    if checkpoint.tied and not plan.tied:
        config["tie_word_embeddings"] = text["tie_word_embeddings"] = False
    if dtype is not None:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).removeprefix("torch.")
    return config


def _context(checkpoint: Checkpoint, adapter: Adapter, quantization: Quantization | None) -> Context:
    """Find out which tensors were quantised in training, and which lie in × out."""
    if quantization is None:
        return Context(adapter, transposed=_transposed(checkpoint, adapter))
    from tunery_trainer.merging.without_weights import linear_modules

    modules, transposed = linear_modules(checkpoint.config)
    return Context(adapter, quantization, _weights(checkpoint, modules), _weights(checkpoint, transposed))


def _transposed(checkpoint: Checkpoint, adapter: Adapter) -> frozenset[str]:
    """Of an architecture whose layers lie in × out decide by the shapes, where they tell; a square weight does."""
    if not checkpoint.conv1d:
        return frozenset()
    found = set()
    for module in adapter.modules.values():
        name = tensor_name(checkpoint, module.name, "weight")
        if name is None or module.embedding:
            continue
        shape, outer = checkpoint.tensors[name].shape, adapter.outer_shape(module)
        if fits(shape, outer[::-1]):
            found.add(name)
    return frozenset(found)


def _weights(checkpoint: Checkpoint, modules: frozenset[str]) -> frozenset[str]:
    names = (tensor_name(checkpoint, module, "weight") for module in modules)
    return frozenset(name for name in names if name is not None)


def _layout(edit: Edit, dtype: torch.dtype | None) -> Layout:
    own = edit.base_dtype
    return Layout(edit.name, dtype if dtype is not None and own.is_floating_point else own, edit.source.shape)


def _companions(checkpoint: Checkpoint, adapter: Adapter) -> Mapping[str, Files]:
    """The base's tokenizer, template and generation config; where the adapter brings its own, those."""
    found = dict.fromkeys(checkpoint.companions(), checkpoint.files)
    own = (name for name in adapter.files.sizes() if is_tokenizer_file(name))
    return found | dict.fromkeys(own, adapter.files)


def copy_file(files: Files, name: str, target: Path) -> None:
    """Copy a file in chunks."""
    size = files.sizes()[name]
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file:
        for start in range(0, size, CHUNK):
            file.write(files.read(name, start, min(CHUNK, size - start)))


def _merged_index(index: dict[str, Any], plan: Plan, dtype: torch.dtype | None) -> dict[str, Any]:
    """Return the index with every tensor that was written, and their size."""
    weight_map = {edit.name: shard for shard, edits in plan.shards.items() for edit in edits}
    layouts = [_layout(edit, dtype) for edits in plan.shards.values() for edit in edits]
    metadata = {**index.get("metadata", {}), "total_size": sum(layout.size for layout in layouts)}
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(torch.Size(layout.shape).numel() for layout in layouts)
    return {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
