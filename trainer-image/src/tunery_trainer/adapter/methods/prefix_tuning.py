"""Prefix tuning (Li and Liang 2021): trained keys and values before the prompt, in each layer."""

from __future__ import annotations

from typing import Final

import torch
from peft import PeftModel, PrefixTuningConfig, TaskType
from transformers import PreTrainedModel

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.adapter.methods.base import MethodContext, TrainingMethod
from tunery_trainer.adapter.methods.lora_init import ADAPTER
from tunery_trainer.adapter.methods.prompt_tuning import prompt_settings, start_tokens
from tunery_trainer.settings.types import RunSettings


def prefix_config(model: PreTrainedModel, resolved: RunSettings, start: MethodContext) -> PrefixTuningConfig:
    """Return PEFT's configuration; raises TuneryError(InvalidSpec) for a model whose layers differ in their heads."""
    settings = prompt_settings(resolved)
    heads, width = _heads(model)
    return PrefixTuningConfig(
        num_virtual_tokens=settings.virtual_tokens,
        num_attention_heads=heads,
        token_dim=heads * width,
        prefix_projection=settings.projection,
        encoder_hidden_size=model.config.get_text_config().hidden_size,
        task_type=TaskType.CAUSAL_LM,
    )


@torch.no_grad()
def _heads(model: PreTrainedModel) -> tuple[int, int]:
    """Return number and width of the heads that keys have: configurations name them too differently to be read."""
    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    layers = model(input_ids=token, use_cache=True).past_key_values.layers
    shapes = {
        (layer.keys.shape[1], layer.keys.shape[3]) for layer in layers if getattr(layer, "keys", None) is not None
    }
    if len(shapes) != 1:
        raise TuneryError(
            FailureReason.INVALID_SPEC,
            f"spec.method: PrefixTuning needs the same heads in every layer, which {type(model).__name__} does not "
            "have; use PromptTuning or LoRA",
        )
    heads, width = shapes.pop()
    return heads, width


@torch.no_grad()
def _begin(model: PeftModel, resolved: RunSettings, start: MethodContext) -> None:
    """Start from the keys and values of real tokens, which the paper found best; a projection starts at random."""
    settings = prompt_settings(resolved)
    base = model.get_base_model()
    if settings.projection or start.tokenizer is None or base.device.type == "meta":  # then it is only counted
        return
    ids = start_tokens(settings, start.tokenizer, resolved.training.seed).to(base.device)
    cache = base(input_ids=ids[None], use_cache=True).past_key_values
    # PEFT's order: for each token, layer by layer, the keys of all heads and then the values.
    parts = [part[0].transpose(0, 1) for layer in cache.layers for part in (layer.keys, layer.values)]
    encoder = model.prompt_encoder[ADAPTER]
    encoder.load_prompt_embeddings(torch.stack(parts, dim=1).reshape(len(ids), -1).float())


PREFIX_TUNING: Final = TrainingMethod(config=prefix_config, begin=_begin)
