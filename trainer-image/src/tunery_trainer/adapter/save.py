"""A trained adapter as files that plain PEFT loads onto the original base."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Final

import torch
from peft import AdaLoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

from tunery_trainer.adapter.attach import TARGETS
from tunery_trainer.adapter.methods.adalora import largest_rank, plain_lora
from tunery_trainer.adapter.methods.lora_init import ADAPTER, FIRST_A, FIRST_B, lora_layers

WEIGHTS_FILE: Final = "adapter_model.safetensors"
CONFIG_FILE: Final = "adapter_config.json"


def save_published(model: PeftModel, folder: Path, served_name: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors, fit for the original base called `served_name`.

    An adapter that is relative to a changed base (PiSSA, OLoRA) is written as the plain LoRA of twice the rank that
    has the same effect on the original base, AdaLoRA as the plain LoRA of its largest rank. The model itself is left
    as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: PeftConfig = copy.deepcopy(model.peft_config[ADAPTER])
    weights = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    if any(hasattr(layer, FIRST_A) for _, layer in lora_layers(model)):
        tensors = _subtract_first_delta(model, tensors)
        _double_rank(config, model)
    if isinstance(config, AdaLoraConfig):
        config, tensors = plain_lora(model, config, tensors)
    path = folder / WEIGHTS_FILE
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)
    _published_config(config, model, served_name).save_pretrained(str(folder))


def _published_config(config: PeftConfig, model: PeftModel, served_name: str) -> PeftConfig:
    config.base_model_name_or_path = served_name
    config.revision = None
    config.inference_mode = True
    for name in (*TARGETS, "feedforward_modules", "modules_to_save"):
        if getattr(config, name, None):
            setattr(config, name, sorted(getattr(config, name)))
    for name, plain in (("init_lora_weights", True), ("eva_config", None), ("prefix_projection", False)):
        if hasattr(config, name):
            setattr(config, name, plain)
    return config


def published_rank(model: PeftModel) -> int | None:
    """Return the largest rank of what `save_published` writes; None where the method has none."""
    config: Any = model.peft_config[ADAPTER]
    if isinstance(config, AdaLoraConfig):
        return largest_rank(model)
    if not getattr(config, "r", None):
        return None
    relative = any(hasattr(layer, FIRST_A) for _, layer in lora_layers(model))
    largest: int = max([config.r, *config.rank_pattern.values()])
    return 2 * largest if relative else largest


def _subtract_first_delta(model: PeftModel, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return `tensors` with A and B stacked with the first ones: s B A - s B0 A0 = [sB, -sB0] [A; A0]."""
    converted = dict(tensors)
    for path, layer in lora_layers(model):
        key_a, key_b = f"{path}.lora_A.weight", f"{path}.lora_B.weight"
        first_a, first_b = getattr(layer, FIRST_A).cpu(), getattr(layer, FIRST_B).cpu()
        scaling = layer.scaling[ADAPTER]
        converted[key_a] = torch.cat([tensors[key_a], first_a])
        converted[key_b] = torch.cat([tensors[key_b], -first_b], dim=1) * scaling
    return converted


def _double_rank(config: PeftConfig, model: PeftModel) -> None:
    """Twice the rank in every layer, with alpha equal to it: the scaling already stands in B."""
    config.r *= 2
    config.rank_pattern = {key: 2 * rank for key, rank in config.rank_pattern.items()}
    config.lora_alpha = config.r
    config.alpha_pattern = dict(config.rank_pattern)
    config.use_rslora = False
