"""IA3 (Liu et al. 2022): keys, values and inner activations are scaled by trained vectors."""

from __future__ import annotations

from typing import Final

from peft import IA3Config, TaskType
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunery_trainer.adapter.methods.base import MethodContext, TrainingMethod
from tunery_trainer.model.language_part import outside_language
from tunery_trainer.model.targets import check_modules_to_save, ia3_targets, linear_layers
from tunery_trainer.settings.types import RunSettings


def ia3_config(model: PreTrainedModel, resolved: RunSettings, start: MethodContext) -> IA3Config:
    """Return PEFT's configuration; raises TuneryError(InvalidSpec) for names that do not exist."""
    adapter = resolved.adapter
    targets, feedforward = ia3_targets(model, adapter.target_modules)
    check_modules_to_save(model, adapter.modules_to_save)
    return IA3Config(
        target_modules=list(targets),
        exclude_modules=outside_language(model),
        feedforward_modules=list(feedforward),
        modules_to_save=list(adapter.modules_to_save) or None,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear_layers(model).values()),
        task_type=TaskType.CAUSAL_LM,
    )


IA3: Final = TrainingMethod(config=ia3_config)
