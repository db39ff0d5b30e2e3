"""LoRA (Hu et al. 2021), QLoRA (Dettmers et al. 2023), DoRA and QDoRA (Liu et al. 2024)."""

from __future__ import annotations

from typing import Any, Final

from peft import EvaConfig, LoraConfig, TaskType
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunery_api.methods import LoraInit, Method
from tunery_trainer.adapter.methods.base import MethodContext, TrainingMethod
from tunery_trainer.adapter.methods.lora_init import begin_lora
from tunery_trainer.model.language_part import outside_language
from tunery_trainer.model.targets import (
    check_modules_to_save,
    check_patterns,
    ends_with,
    linear_layers,
    lora_targets,
)
from tunery_trainer.settings.experts import EXPERT_METHODS
from tunery_trainer.settings.types import RunSettings

_INIT: Final[dict[LoraInit, bool | str]] = {
    LoraInit.DEFAULT: True,
    LoraInit.GAUSSIAN: "gaussian",
    LoraInit.PISSA: "pissa_niter_16",
    LoraInit.OLORA: "olora",
    LoraInit.EVA: "eva",
    LoraInit.LOFTQ: True,
}
"""LoftQ starts as Default and is then given the quantisation's error; see initialization.

PiSSA by 16 iterations of the randomised decomposition keeps more than 99 % of what the exact one keeps of real weights
(with 4, as PEFT's documentation has it, 93 %); what is published is exact either way.
"""


def lora_config(model: PreTrainedModel, resolved: RunSettings, start: MethodContext) -> LoraConfig:
    """Return PEFT's configuration of the LoRA family; raises TuneryError(InvalidSpec) for names that do not exist."""
    adapter = resolved.adapter
    asked = adapter.target_modules or ("all-linear",)
    targets, experts = lora_targets(model, asked, experts=resolved.method in EXPERT_METHODS)
    options: dict[str, Any] = common_options(model, resolved, (*targets, *experts))
    return LoraConfig(
        target_modules=list(targets),
        target_parameters=list(experts) or None,
        r=adapter.rank,
        use_rslora=adapter.use_rslora,
        use_dora=resolved.method in (Method.DORA, Method.QDORA),
        init_lora_weights=_INIT[adapter.init],
        # rho 1 keeps every rank as asked, so that the weights of a resumed run have the shapes of the first.
        eva_config=EvaConfig(rho=1.0, use_label_mask=False) if adapter.init is LoraInit.EVA else None,
        rank_pattern=dict(adapter.rank_pattern),
        alpha_pattern=dict(adapter.alpha_pattern),
        **options,
    )


def common_options(model: PreTrainedModel, resolved: RunSettings, targets: tuple[str, ...]) -> dict[str, Any]:
    """Return the options that LoRA and AdaLoRA share, with names checked against the model and its `targets`."""
    adapter = resolved.adapter
    check_modules_to_save(model, adapter.modules_to_save)
    check_patterns(model, targets, adapter.rank_pattern, "spec.lora.rankPattern")
    check_patterns(model, targets, adapter.alpha_pattern, "spec.lora.alphaPattern")
    layers = linear_layers(model).items()
    return {
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "exclude_modules": outside_language(model),
        "modules_to_save": list(adapter.modules_to_save) or None,
        "bias": "none",
        "fan_in_fan_out": any(
            isinstance(layer, Conv1D) and any(ends_with(path, name) for name in targets) for path, layer in layers
        ),
        "task_type": TaskType.CAUSAL_LM,
    }


LORA: Final = TrainingMethod(config=lora_config, begin=begin_lora)
