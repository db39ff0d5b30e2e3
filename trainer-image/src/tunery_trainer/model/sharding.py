"""The frozen base spread over the devices of a node: each holds a part of every layer, and gathers it to compute it.

torch's `fully_shard`, on the base alone: the adapter stays whole in every process, so that optimizer, checkpoints and
published files are those of one device. The parts of a node's devices make the whole base; none of it crosses nodes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from peft import PeftModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from tunery_trainer.model.language_part import decoder_layers


def shard(model: PeftModel, nodes: int, device: str) -> None:
    """Spread the base of `model` over the devices of each of `nodes`, `device` being this process's own.

    Every process of the run has to call it. The adapter is on it already: what a method computes from whole weights
    (DoRA, PiSSA, LoftQ) is computed. It comes from the CPU, where the weights are mapped from their files.
    """
    base: PreTrainedModel = model.get_base_model()
    kind = torch.device(device).type
    mesh = init_device_mesh(kind, (nodes, dist.get_world_size() // nodes), mesh_dim_names=("node", "device"))["device"]
    own = {parameter for name, parameter in model.named_parameters() if _stays_whole(name, parameter)}
    for modules, again in _groups(base, own):
        fully_shard(modules, mesh=mesh, ignored_params=own, reshard_after_forward=again)
    fully_shard(base, mesh=mesh, ignored_params=own)
    _bring(model, own, device)
    _settle(model, base)


@torch.no_grad()
def _bring(model: PeftModel, own: set[torch.nn.Parameter], device: str) -> None:
    """Bring to the device what is not spread: the adapter, buffers, and what a quantised weight is scaled by."""
    for parameter in own:
        parameter.data = parameter.data.to(device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            state.to(device)


def _stays_whole(name: str, parameter: torch.nn.Parameter) -> bool:
    """Tell whether a parameter is trained, or steered by a method: AdaLoRA's rank counts."""
    return parameter.requires_grad or "ranknum" in name


def _groups(base: PreTrainedModel, own: set[torch.nn.Parameter]) -> Iterable[tuple[list[torch.nn.Module], bool]]:
    """Yield the modules that are gathered together, and whether they are let go between forward and backward pass.

    A layer is. The embedding is, unless the head is tied to it; the head is computed outside of its own forward pass,
    in tiles, and has to be there from the norm before it on.
    """
    layers, embedding, head = decoder_layers(base), base.get_input_embeddings(), base.get_output_embeddings()
    for layer in layers:
        yield [layer], True
    tied = head is not None and embedding.weight is head.weight
    if not tied:
        yield [embedding], True
    decoder = _parent(base, layers)
    rest = [each for each in decoder.children() if each not in (layers, embedding) and _has_some(each, own)]
    yield [*([embedding] if tied else []), *rest, *([head] if head is not None else [])], False


def _parent(base: torch.nn.Module, layers: torch.nn.ModuleList) -> torch.nn.Module:
    return next(each for each in base.modules() if layers in list(each.children()))


def _has_some(module: torch.nn.Module, own: set[torch.nn.Parameter]) -> bool:
    return any(parameter not in own for parameter in module.parameters())


@torch.no_grad()
def _settle(model: PeftModel, base: PreTrainedModel) -> None:
    """Run one token through the base itself: some methods go past it, to the parts that only its call makes ready."""
    was_training = model.training
    token = torch.zeros((1, 1), dtype=torch.long, device=next(base.parameters()).device)
    base.eval()(input_ids=token, use_cache=False)
    model.train(was_training)


def held(parameter: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a parameter: all of it, or its part."""
    local: torch.Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local
