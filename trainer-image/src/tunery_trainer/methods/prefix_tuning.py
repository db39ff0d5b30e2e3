"""Prefix tuning (Li and Liang 2021): trained keys and values before the prompt, in each layer."""

from __future__ import annotations

from typing import Final

import torch
from peft import PeftModel, PrefixTuningConfig, TaskType
from transformers import PreTrainedModel

from tunery_trainer.methods.base import MethodParts, Start
from tunery_trainer.methods.initialization import ADAPTER
from tunery_trainer.methods.prompt_tuning import prompt_settings, start_tokens
from tunery_trainer.resolved import Resolved


def prefix_config(model: PreTrainedModel, resolved: Resolved, start: Start) -> PrefixTuningConfig:
    """Return PEFT's configuration."""
    settings = prompt_settings(resolved)
    return PrefixTuningConfig(
        num_virtual_tokens=settings.virtual_tokens,
        prefix_projection=settings.projection,
        encoder_hidden_size=model.config.get_text_config().hidden_size,
        task_type=TaskType.CAUSAL_LM,
    )


@torch.no_grad()
def _begin(model: PeftModel, resolved: Resolved, start: Start) -> None:
    """Start from the keys and values of real tokens, which the paper found best; a projection starts at random."""
    settings = prompt_settings(resolved)
    if settings.projection:
        return
    base = model.get_base_model()
    ids = start_tokens(settings, start.tokenizer, resolved.training.seed).to(base.device)
    cache = base(input_ids=ids[None], use_cache=True).past_key_values
    # PEFT's order: for each token, layer by layer, the keys of all heads and then the values.
    parts = [part[0].transpose(0, 1) for layer in cache.layers for part in (layer.keys, layer.values)]
    encoder = model.prompt_encoder[ADAPTER]
    encoder.load_prompt_embeddings(torch.stack(parts, dim=1).reshape(len(ids), -1).float())


PREFIX_TUNING: Final = MethodParts(config=prefix_config, begin=_begin)
