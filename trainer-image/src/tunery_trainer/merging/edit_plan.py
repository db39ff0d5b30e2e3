"""What an adapter does to each tensor of the base model, decided from names and headers alone."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace

import torch

from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate
from tunery_common.errors import TuneryError
from tunery_common.inputs.misfit import OTHER_BASE, misfit
from tunery_trainer.merging.adapter_files import Adapter, Module
from tunery_trainer.merging.base_model import Checkpoint, embedding_name, tensor_name
from tunery_trainer.merging.files import Files
from tunery_trainer.merging.safetensors_stream import TensorInfo, read_rows


@dataclass(frozen=True, slots=True)
class Edit:
    """One tensor of the result: where it starts from, and what changes it."""

    name: str
    files: Files
    source: TensorInfo
    """The base's tensor, or the adapter's own in its place."""
    base_dtype: torch.dtype
    """The type that the base has the tensor in."""
    module: Module | None = None
    """The module of the adapter that changes it."""
    bias: bool = False
    """True for a module's bias, which lora_bias and IA3 change."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Every tensor of the result, by shard."""

    shards: dict[str, list[Edit]]
    tied: bool
    """False where input and output embedding end up different."""


def plan_edits(checkpoint: Checkpoint, adapter: Adapter) -> Plan:
    """Decide what happens to each tensor.

    Raises TuneryError(InvalidSpec) when the adapter changes a module that the base model does not have.
    """
    shards = {
        shard: [Edit(name, checkpoint.files, info, info.dtype) for name, info in tensors.items()]
        for shard, tensors in checkpoint.shards.items()
    }
    edits = {edit.name: edit for listed in shards.values() for edit in listed}
    head, tied = _untie(checkpoint, adapter)
    if head is not None:
        edits[head.name] = head
    for name, key in adapter.full.items():
        target = _locate(edits, checkpoint, name)
        if target is None and tied and _is_head(checkpoint, name):
            continue
        edit = edits[_required(target, adapter, name)]
        edits[edit.name] = replace(edit, files=adapter.files, source=adapter.tensors[key])
    for module in adapter.modules.values():
        _edit_module(edits, checkpoint, adapter, module)
    planned = {shard: [edits[edit.name] for edit in listed] for shard, listed in shards.items()}
    if head is not None:
        planned[_shard_of(checkpoint, embedding_name(checkpoint))].append(edits[head.name])
    return Plan(planned, tied)


def check_whole(checkpoint: Checkpoint, adapter: Adapter) -> None:
    """Check that each tensor which an adapter replaces as a whole has the shape of the base's.

    Only who trained it could say that a vocabulary was resized; of an adapter made elsewhere nobody does.
    Raises TuneryError(InvalidSpec), which names adapter and tensor.
    """
    for name, key in adapter.full.items():
        found = _locate(checkpoint.tensors, checkpoint, name)
        if found is None and _is_head(checkpoint, name):
            found = embedding_name(checkpoint)
        own = adapter.tensors[key].shape
        if found is not None and (base := checkpoint.tensors[found].shape) != own:
            first, second = (" x ".join(map(str, shape)) for shape in (own, base))
            message = f"{adapter.label}: {key} is {first}, the base's {found} is {second}"
            raise TuneryError(FailureReason.INVALID_SPEC, message, OTHER_BASE)


def _edit_module(edits: dict[str, Edit], checkpoint: Checkpoint, adapter: Adapter, module: Module) -> None:
    """Let a module of the adapter change its weight, and its bias where the method does."""
    weight = _required(_locate(edits, checkpoint, f"{module.name}.weight"), adapter, module.name)
    shape, outer = edits[weight].source.shape, adapter.outer_shape(module)
    straight = not module.embedding and fits(shape, outer)
    # A layer of another architecture that lies the other way round is none that the factors were trained on.
    if not straight and not ((module.embedding or checkpoint.conv1d) and fits(shape, outer[::-1])):
        weight_shape = shape[::-1] if checkpoint.conv1d else shape
        raise TuneryError(
            FailureReason.INVALID_SPEC, f"{adapter.label}: {_misfit(adapter, module, weight_shape)}", OTHER_BASE
        )
    edits[weight] = replace(edits[weight], module=module)
    bias = _locate(edits, checkpoint, f"{module.name}.bias")
    if "lora_B.bias" in module.keys and bias is None:
        raise TuneryError(
            FailureReason.INVALID_SPEC,
            f"{adapter.label}: lora_bias cannot be merged into {module.name}, which has no bias in the base model",
            recreate("Set into: Adapter, or name another adapter", "into", "adapters"),
        )
    scaled = "ia3_l" in module.keys and not is_feedforward(adapter, module)
    if bias is not None and ("lora_B.bias" in module.keys or scaled):
        edits[bias] = replace(edits[bias], module=module, bias=True)


def _misfit(adapter: Adapter, module: Module, weight: tuple[int, ...]) -> str:
    """Say which of a module's tensors does not fit the base's weight, given out × in."""
    keys, outer = module.factors, adapter.outer_shape(module)
    if keys is None or module.embedding or len(weight) != 2:
        return f"{module.name} has shape {weight} in the base model, {outer} in the adapter"
    gives, takes = weight
    a, b = (adapter.tensors[key].shape for key in keys)
    wrong_a = outer[1] != takes
    key, found, wanted = (keys[0], a, (a[0], takes)) if wrong_a else (keys[1], b, (gives, b[1]))
    return misfit(key, found, wanted)


def fits(weight: tuple[int, ...], change: tuple[int, ...]) -> bool:
    """Tell whether a change of this shape applies to a weight: IA3's scale has one row or one column."""
    return len(weight) == len(change) and all(w == c or c == 1 for w, c in zip(weight, change, strict=True))


def is_feedforward(adapter: Adapter, module: Module) -> bool:
    """Tell whether IA3 scales the module's input (True) or its output, by the shape of the scale: (1, n) or (n, 1)."""
    return adapter.tensors[module.keys["ia3_l"]].shape[0] == 1


def _untie(checkpoint: Checkpoint, adapter: Adapter) -> tuple[Edit | None, bool]:
    """Return the head's own tensor, where a tied model's embeddings part, and whether they stay tied."""
    if not checkpoint.tied:
        return None, False
    embedding = embedding_name(checkpoint)
    changed = {m.name for m in adapter.modules.values() if "trainable_tokens_delta" not in m.keys}
    changed |= {name.removesuffix(".weight") for name in adapter.full}
    heads = [name for name in changed if _is_head(checkpoint, f"{name}.weight")]
    inputs = [n for n in changed if embedding and tensor_name(checkpoint, n, "weight") == embedding]
    if embedding is None or not (heads or inputs) or adapter.config.get("ensure_weight_tying"):
        return None, True
    if heads and inputs and _same_full(adapter, heads[0], inputs[0]):
        return None, True
    head = f"{heads[0] if heads else 'lm_head'}.weight"
    if head in checkpoint.tensors:
        return None, False
    source = checkpoint.tensors[embedding]
    return Edit(head, checkpoint.files, source, source.dtype), False


def _same_full(adapter: Adapter, head: str, embedding: str) -> bool:
    """Tell whether the adapter replaces both embeddings by one and the same tensor, as it does after a resize."""
    keys = [adapter.full.get(f"{name}.weight") for name in (head, embedding)]
    if keys[0] is None or keys[1] is None or {head, embedding} & adapter.modules.keys():
        return False
    one, two = (adapter.tensors[key] for key in keys if key)
    if one.shape != two.shape:
        return False
    step = 4096
    return all(
        torch.equal(
            read_rows(adapter.files, one, start, min(start + step, one.shape[0])),
            read_rows(adapter.files, two, start, min(start + step, one.shape[0])),
        )
        for start in range(0, one.shape[0], step)
    )


def _is_head(checkpoint: Checkpoint, name: str) -> bool:
    """A tied model's head has no tensor of its own; it is the top-level module that the checkpoint lacks."""
    module = name.removesuffix(".weight")
    return "." not in module and name.endswith(".weight") and tensor_name(checkpoint, module, "weight") is None


def _locate(names: Container[str], checkpoint: Checkpoint, name: str) -> str | None:
    """Find a tensor by the adapter's name for it."""
    if name in names:
        return name
    module, _, leaf = name.rpartition(".")
    return tensor_name(checkpoint, module, leaf)


def _required(found: str | None, adapter: Adapter, name: str) -> str:
    if found is None:
        raise TuneryError(FailureReason.INVALID_SPEC, f"{adapter.label}: the base model has no {name}", OTHER_BASE)
    return found


def _shard_of(checkpoint: Checkpoint, name: str | None) -> str:
    return next(shard for shard, tensors in checkpoint.shards.items() if name in tensors)
