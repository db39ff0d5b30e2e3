"""Every tiny model of the tests, of random weights, and their tokenizers: for merges, by family, and one that chats."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

VOCABULARY: Final = 128
"""Of the families' models: `<unk>`, `<s>`, `</s>`, and words of a letter and a number."""
MERGED_VOCABULARY: Final = 96
"""Of the models that adapters are merged into, which have no tokenizer."""


class Tiny(StrEnum):
    """The architectures."""

    LLAMA_UNTIED = "llama"
    LLAMA_TIED = "llama-tied"
    GPT2 = "gpt2"


def tiny_config(kind: Tiny, **changes: Any) -> PretrainedConfig:
    """Return a config with two layers of width 32."""
    if kind == Tiny.GPT2:
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        return GPT2Config(vocab_size=MERGED_VOCABULARY, **{**sizes, **changes})
    sizes = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    options = {"attention_bias": True, "num_key_value_heads": 2, "tie_word_embeddings": kind == Tiny.LLAMA_TIED}
    return LlamaConfig(vocab_size=MERGED_VOCABULARY, **{**sizes, **options, **changes})


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


COMMON: Final[dict[str, Any]] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
MODERN: Final[dict[str, Any]] = COMMON | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
FAMILIES: Final[dict[str, dict[str, Any]]] = {
    "llama": MODERN,
    "mistral": MODERN,
    "qwen3": MODERN,
    "gemma": MODERN,
    "phi": {name: value for name, value in MODERN.items() if name != "head_dim"},
    "gpt2": COMMON | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "falcon": COMMON
    | {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256},
    "bloom": COMMON | {"hidden_size": 64, "n_layer": 2, "n_head": 4},
}


def write_family(folder: Path, family: str, **changes: Any) -> Path:
    """Write a random model of `family` with its tokenizer into `folder`."""
    return write_model(folder, AutoConfig.for_model(family, **(FAMILIES[family] | changes)), AutoModelForCausalLM)


def write_model(folder: Path, config: Any, auto: Any) -> Path:
    """Write a random model of `config`, built by the auto class `auto`, with its tokenizer into `folder`."""
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)  # weights as small as a fresh model's give every token the same chance
    model.save_pretrained(folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, VOCABULARY)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )
    return folder


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = ["system user assistant tool Hello there, how are you today?\n", "Naïve ünïcode, 12 numbers; and 🙂 smiles."]


def build_tokenizer(
    template: str | None, eos: str = "<|im_end|>", marks: Sequence[str] = ("<|im_start|>", "<|im_end|>")
) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of about 400 tokens with `marks` (by default ChatML's) as special tokens."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", *marks],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(_CORPUS * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=eos, pad_token="<|endoftext|>")
    tokenizer.chat_template = template
    return tokenizer


def write_chat_model(folder: Path, **changes: Any) -> Path:
    """Save a tiny Llama with a byte tokenizer and a chat template, with `changes` of its config."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        token: index for index, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet])
    }
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    options = {"num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True}
    marks = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(vocab_size=len(vocabulary), **{**sizes, **options, **marks, **changes})
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
