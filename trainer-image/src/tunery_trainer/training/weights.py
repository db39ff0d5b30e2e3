"""The weights that training changes: taken, put back, and as a checkpoint has them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file

from tunery_trainer.adapter.methods.base import Hooks

WEIGHTS_FILE: Final = "trainable.safetensors"
"""The adapter in a checkpoint: every parameter that is not the base's, under its full name, in its own type."""


def trained_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return every parameter that training changes or that a method steers (AdaLoRA's rank counts), by full name."""
    return {
        name: parameter.detach().to("cpu").contiguous().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or "ranknum" in name
    }


def put_state(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Put back what `trained_state` returned; raises KeyError when it is of another adapter."""
    parameters = dict(model.named_parameters())
    for name, saved in state.items():
        parameter = parameters[name]
        parameter.data = saved.to(parameter.device, copy=True)


def load_trained(model: torch.nn.Module, checkpoint: Path, hooks: Hooks | None) -> None:
    """Put the weights of a checkpoint back, in the type they were trained in, so that a resume is exact.

    Raises KeyError when the checkpoint is of another adapter.
    """
    put_state(model, load_file(checkpoint / WEIGHTS_FILE))
    if hooks and (checkpoint / "hooks.pt").exists():
        hooks.load_state(torch.load(checkpoint / "hooks.pt", weights_only=True, map_location="cpu"))
