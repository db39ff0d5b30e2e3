"""What every method is made of: a PEFT configuration, a start, and what it adds to the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunery_trainer.settings.types import RunSettings

Batch = Mapping[str, torch.Tensor]
"""input_ids and attention_mask, optionally labels: integers of shape [rows, length]."""


@dataclass(frozen=True)
class MethodContext:
    """What a method may need to begin with, beside the settings."""

    tokenizer: PreTrainedTokenizerBase | None
    """None: how the adapter begins does not matter, since it is only counted."""
    total_steps: int
    """Optimizer steps of the whole run; AdaLoRA plans its budget over them."""
    batches: Iterable[Batch] | None = None
    """Training batches for EVA; nobody else looks at them."""
    overwritten: bool = False
    """The adapter's weights come from a checkpoint or a published adapter: how they begin does not matter."""


class Hooks(Protocol):
    """What a method adds to the training loop."""

    def extra_loss(self, model: torch.nn.Module) -> torch.Tensor | None:
        """Return a scalar to add to the loss of a step, or None."""
        ...

    def after_step(self, model: torch.nn.Module, step: int) -> None:
        """Run after the optimizer's step number `step` (from 1), before the gradients are cleared."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what a resume needs beside the parameters: tensors and plain values."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        ...


@dataclass(frozen=True)
class TrainingMethod:
    """One method."""

    config: Callable[[PreTrainedModel, RunSettings, MethodContext], PeftConfig]
    """Build PEFT's configuration; raises TuneryError(InvalidSpec) for what this model cannot do."""
    begin: Callable[[PeftModel, RunSettings, MethodContext], None] | None = None
    """Give the fresh adapter its first weights where PEFT cannot do it alone."""
    hooks: Callable[[PeftModel], Hooks] | None = None
