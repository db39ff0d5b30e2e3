"""Prompt tuning (Lester et al. 2021): trained embeddings before the prompt, started from real ones."""

from __future__ import annotations

from typing import Final

import torch
from peft import PeftModel, PromptTuningConfig, PromptTuningInit, TaskType
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_trainer.adapter.methods.base import MethodContext, TrainingMethod
from tunery_trainer.adapter.methods.lora_init import ADAPTER
from tunery_trainer.settings.types import PromptSettings, RunSettings


def prompt_settings(resolved: RunSettings) -> PromptSettings:
    """Return the settings of the virtual tokens; every prompt or prefix tuning run has them."""
    if resolved.prompt is None:
        raise ValueError(f"{resolved.method} needs its settings")
    return resolved.prompt


def start_tokens(settings: PromptSettings, tokenizer: PreTrainedTokenizerBase, seed: int) -> torch.Tensor:
    """Return the ids that the virtual tokens start from, shape [virtual_tokens].

    The text, repeated or cut to length; without one, ordinary tokens of the vocabulary, drawn with `seed`.
    Raises TuneryError(InvalidSpec) for a text that has no tokens.
    """
    count = settings.virtual_tokens
    if settings.init_text is None:
        special = set(tokenizer.all_special_ids)
        ordinary = torch.tensor([token for token in range(len(tokenizer)) if token not in special])
        picks = torch.randint(len(ordinary), (count,), generator=torch.Generator().manual_seed(seed))
        return ordinary[picks]
    ids = tokenizer(settings.init_text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise TuneryError(FailureReason.INVALID_SPEC, "spec.promptTuning.initText: holds no token of the model")
    return torch.tensor((ids * (count // len(ids) + 1))[:count])


def prompt_config(model: PreTrainedModel, resolved: RunSettings, start: MethodContext) -> PromptTuningConfig:
    """Return PEFT's configuration."""
    return PromptTuningConfig(
        num_virtual_tokens=prompt_settings(resolved).virtual_tokens,
        # The start is ours: PEFT would want the tokenizer's path in the published configuration.
        prompt_tuning_init=PromptTuningInit.RANDOM,
        task_type=TaskType.CAUSAL_LM,
    )


@torch.no_grad()
def _begin(model: PeftModel, resolved: RunSettings, start: MethodContext) -> None:
    """Copy the embeddings of real tokens: random ones lie outside of what the model has ever read."""
    if start.tokenizer is None:
        return
    embeddings = model.get_base_model().get_input_embeddings()
    ids = start_tokens(prompt_settings(resolved), start.tokenizer, resolved.training.seed)
    weight = model.prompt_encoder[ADAPTER].embedding.weight
    weight.copy_(embeddings(ids.to(embeddings.weight.device)))


PROMPT_TUNING: Final = TrainingMethod(config=prompt_config, begin=_begin)
