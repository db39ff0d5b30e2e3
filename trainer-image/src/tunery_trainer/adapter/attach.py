"""The adapter on its base model, fresh and trainable."""

from __future__ import annotations

from typing import Final

import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from tunery_trainer.adapter.methods import METHODS
from tunery_trainer.adapter.methods.base import Hooks, MethodContext
from tunery_trainer.adapter.methods.lora_init import ADAPTER
from tunery_trainer.settings.types import RunSettings

TARGETS: Final = ("target_modules", "target_parameters")
"""PEFT's names for what carries an adapter: linear modules, and the parameters of a mixture's experts."""


def attach(model: PreTrainedModel, resolved: RunSettings, start: MethodContext) -> PeftModel:
    """Return `model` with a fresh adapter, its weights in float32, everything else frozen.

    The same settings and seed give the same weights. Call it on the loaded base: PiSSA and OLoRA change its weights.
    Raises TuneryError(InvalidSpec) for what the manifest names and the model does not have.
    """
    parts = METHODS[resolved.method]
    torch.manual_seed(resolved.training.seed)
    adapted = get_peft_model(model, parts.config(model, resolved, start))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if parts.begin:
        parts.begin(adapted, resolved, start)
    return adapted


def training_hooks(model: PeftModel, resolved: RunSettings) -> Hooks | None:
    """Return what the method adds to the training loop, or None where that is nothing."""
    hooks = METHODS[resolved.method].hooks
    return hooks(model) if hooks else None


def trainable_parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def target_modules(model: PeftModel) -> list[str]:
    """Return the names of the modules, and of a mixture's experts, that carry the adapter, sorted.

    None for prompt and prefix tuning.
    """
    config = model.peft_config[ADAPTER]
    return sorted(name for part in TARGETS for name in getattr(config, part, None) or ())
