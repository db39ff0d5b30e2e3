"""Tiny models of several architectures with random weights, and adapters on them as PEFT makes and saves them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, PreTrainedModel

VOCABULARY = 96
TOKENS = torch.arange(2 * 12).view(2, 12) * 7 % VOCABULARY
"""Fixed input: 2 rows of 12 tokens."""


class Tiny(StrEnum):
    """The architectures."""

    LLAMA_UNTIED = "llama"
    LLAMA_TIED = "llama-tied"
    GPT2 = "gpt2"


def tiny_config(kind: Tiny, **changes: Any) -> PretrainedConfig:
    """Return a config with two layers of width 32."""
    if kind == Tiny.GPT2:
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        return GPT2Config(vocab_size=VOCABULARY, **{**sizes, **changes})
    sizes = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    options = {"attention_bias": True, "num_key_value_heads": 2, "tie_word_embeddings": kind == Tiny.LLAMA_TIED}
    return LlamaConfig(vocab_size=VOCABULARY, **{**sizes, **options, **changes})


def save_tiny(folder: Path, kind: Tiny, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Save a model with random weights (biases and norms too) in several shards."""
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes)).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name or "ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder


def load(folder: Path, **arguments: Any) -> PreTrainedModel:
    """Load a model on the CPU in the type it was saved in."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **arguments).eval()


def trained_adapter(base: Path, config: Any, folder: Path, *, seed: int, grow_by: int = 0, **arguments: Any) -> Path:
    """Save an adapter whose every trainable weight was moved, as training would."""
    torch.manual_seed(seed)
    model = load(base, **arguments)
    if grow_by:
        model.resize_token_embeddings(model.config.vocab_size + grow_by)
    peft = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    peft.save_pretrained(folder)
    return folder


def with_adapter(base: Path, adapter: Path, **arguments: Any) -> PeftModel:
    """Load a base and an adapter, the plain way."""
    return PeftModel.from_pretrained(load(base, **arguments), adapter).eval()


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    """Return the logits of the fixed input in float32."""
    result: torch.Tensor = model(input_ids=TOKENS).logits
    return result.float()


def logits(base: Path, adapter: Path | None = None, **arguments: Any) -> torch.Tensor:
    """Return the logits of a base, or of a base with an adapter."""
    return logits_of(with_adapter(base, adapter, **arguments) if adapter else load(base, **arguments))
