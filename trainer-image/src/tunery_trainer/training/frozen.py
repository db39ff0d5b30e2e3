"""Whether training changes what it must, and nothing else: digests of the base, who is trained, whether it moves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from peft import PeftModel

from tunery_trainer.model.sharding import held


def fingerprints(model: torch.nn.Module) -> dict[str, str]:
    """Return the SHA-256 of three matrices of the frozen base: of its first, a middle and its last layer, by name."""
    names = [name for name, parameter in model.named_parameters() if not parameter.requires_grad and _is_layer(name)]
    chosen = dict.fromkeys(names[place] for place in (0, len(names) // 2, -1)) if names else {}
    parameters = dict(model.named_parameters())
    return {name: _digest(parameters[name]) for name in chosen}


def changed(model: torch.nn.Module, before: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of those that are not what they were."""
    parameters = dict(model.named_parameters())
    return tuple(name for name, digest in before.items() if _digest(parameters[name]) != digest)


def strangers(model: PeftModel) -> tuple[str, ...]:
    """Return the parameters that are trained and are neither the adapter's nor copies that modulesToSave asks for."""
    prefix = model.base_model.prefix if hasattr(model.base_model, "prefix") else ""
    own = ("modules_to_save", "prompt_encoder", *((prefix,) if prefix else ()))
    trained = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return tuple(name for name in trained if not any(part in name for part in own))


def levels(model: torch.nn.Module) -> torch.Tensor:
    """Return the sum of each tensor that is trained, in float64: unchanged where no step has changed anything."""
    return torch.stack([each.detach().double().sum() for each in model.parameters() if each.requires_grad])


def _is_layer(name: str) -> bool:
    return name.endswith("weight") and any(part.isdigit() for part in name.split("."))


def _digest(parameter: torch.nn.Parameter) -> str:
    data = held(parameter.detach()).to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()
