"""A trained adapter put together again from what a checkpoint holds, on a base without weights.

What is published depends on the adapter's tensors and its configuration alone: no weight of the base is read, so a
CPU with the memory for the adapter does for a base of any size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import torch
from peft import AdaLoraConfig, PeftConfig, PeftModel, get_peft_model
from pydantic import JsonValue
from torch import nn
from transformers import PreTrainedModel

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.adapter.methods.lora_init import ADAPTER, FIRST_A, FIRST_B, lora_layers

_STARTS: Final = {"init_lora_weights": True, "eva_config": None}
"""Fields of PEFT's configurations that say how an adapter begins, with what needs no weights of the base."""


def recipe_of(model: PeftModel) -> dict[str, JsonValue]:
    """Return PEFT's configuration of the adapter as JSON, without how it began."""
    config: Any = model.peft_config[ADAPTER]
    recipe: dict[str, JsonValue] = json.loads(json.dumps(config.to_dict(), default=sorted))
    if isinstance(config, AdaLoraConfig):
        # Its hooks know which triplets are left, and by names that PEFT reads as layers of other ranks.
        recipe["rank_pattern"] = None
    return recipe | {name: value for name, value in _STARTS.items() if name in recipe}


def first_delta(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return what an adapter is relative to, by full name: A and B as they began; empty but for PiSSA and OLoRA."""
    return {
        f"{path}.{name}": getattr(layer, name).detach().cpu().contiguous()
        for path, layer in lora_layers(model)
        for name in (FIRST_A, FIRST_B)
        if hasattr(layer, name)
    }


def rebuilt(base: PreTrainedModel, recipe: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> PeftModel:
    """Return `base`, which may be on the meta device, with the adapter of `recipe` and its `tensors` by full name.

    Those are trained parameters, and what `first_delta` told. Raises TuneryError(AdapterCorrupt) where the three do
    not go together.
    """
    model = get_peft_model(base, PeftConfig.from_peft_type(**recipe))
    missing = {name for name, parameter in model.named_parameters() if parameter.requires_grad} - set(tensors)
    if missing:
        raise _corrupt(f"it lacks {sorted(missing)[0]}")
    for name, tensor in tensors.items():
        _put(model, name, tensor)
    return model


def _put(model: PeftModel, name: str, tensor: torch.Tensor) -> None:
    """Replace a parameter, which a tensor of another device cannot be copied into."""
    path, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise _corrupt(f"the base has no {path}") from error
    if leaf in (FIRST_A, FIRST_B):
        module.register_buffer(leaf, tensor, persistent=False)
    else:
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))


def _corrupt(message: str) -> TuneryError:
    return TuneryError(FailureReason.ADAPTER_CORRUPT, f"the checkpoint's adapter is not of this base: {message}")
