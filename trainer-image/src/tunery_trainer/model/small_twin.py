"""A model of a few thousand weights with the structure of a real one: its own configuration, made small."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Final

from transformers import PreTrainedConfig

VOCABULARY: Final = 128
"""Tokens of the small model; ids from 3 on are free of meaning."""
POSITIONS: Final = 512
WINDOW: Final = 16
"""Tokens of a sliding window or a chunk."""
_SIZES: Final[dict[str, int]] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "text_vocab_size"), VOCABULARY),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "word_embed_proj_dim"), 64
    ),
    **dict.fromkeys(("attention_hidden_size", "lru_width", "mamba_d_ssm", "mamba_d_inner", "rotary_dim_full"), 64),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx"), POSITIONS
    ),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "attn_num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("head_dim", "global_head_dim", "d_kv", "attention_head_dim", "v_head_dim", "swa_head_dim"), 16),
    **dict.fromkeys(("kv_channels", "linear_key_head_dim", "linear_value_head_dim", "index_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "mamba_dt_rank", "time_step_rank"), 16),
    **dict.fromkeys(("linear_num_value_heads", "mamba_num_heads", "mamba_n_heads"), 8),
    **dict.fromkeys(("linear_num_key_heads",), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim", "mamba_d_state", "ssm_state_size"), 16),
    **dict.fromkeys(("state_size", "mamba_chunk_size", "chunk_size", "mamba_d_state"), 16),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "ffn_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "mamba_n_groups"), 1),
    **dict.fromkeys(("hidden_size_per_layer_input", "moe_latent_size"), 16),
    **dict.fromkeys(("laurel_rank", "altup_num_inputs"), 4),
}
"""What a field that bears one of these names becomes, where it is a larger number."""
_WIDE: Final = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff", "mlp_hidden_size", "d_inner")
_KEY_HEADS: Final = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "num_global_key_value_heads")
_LAYERS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
_WINDOWS: Final = (
    "sliding_window",
    "attention_window_size",
    "attention_chunk_size",
    "sliding_window_size",
    "window_size",
)
_TOKENS: Final = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_LEAST_LAYERS: Final = 2


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy of `config`, of a text model, whose model is built in less than a second.

    Which kinds of layers there are, and what they compute, is kept; how wide and how many is not. The result may be
    one that its own model refuses: architectures have relations of their own between their sizes.
    """
    small = copy.deepcopy(config)
    layers = _kept_layers(small)
    for name, value in list(_fields(small)):
        new = _smaller(name, value, layers, small)
        if new is not value:
            setattr(small, name, new)
    return small


def _fields(config: PreTrainedConfig) -> Iterator[tuple[str, Any]]:
    for name in config.to_dict():
        try:
            yield name, getattr(config, name)
        except (AttributeError, ValueError):  # a value that differs from layer to layer
            continue


def _kept_layers(config: PreTrainedConfig) -> list[int]:
    """Return the first layer of each kind, and at least two of them."""
    count = next((getattr(config, name) for name in _LAYERS if isinstance(getattr(config, name, None), int)), 2)
    kinds: dict[Any, int] = {}
    for index, kind in enumerate(zip(*_patterns(config, count), strict=False)):
        kinds.setdefault(tuple(map(str, kind)), index)
    chosen = sorted(kinds.values())
    more = (index for index in range(count) if index not in chosen)
    while len(chosen) < min(_LEAST_LAYERS, count):
        chosen.append(next(more))
    return sorted(chosen)


def _patterns(config: PreTrainedConfig, count: int) -> list[Sequence[Any]]:
    """Return the fields that say something of each layer."""
    return [
        value
        for _, value in _fields(config)
        if isinstance(value, (list, tuple)) and len(value) == count and count > _LEAST_LAYERS
    ]


def _smaller(name: str, value: Any, layers: list[int], config: PreTrainedConfig) -> Any:
    if name in _TOKENS:
        return None if value is None else min(2, value if isinstance(value, int) else 2)
    if isinstance(value, bool) or value is None:
        return value
    if name in _LAYERS:
        return len(layers)
    if isinstance(value, (list, tuple)):
        return _picked(value, layers)
    if not isinstance(value, int):
        return value
    if name in _WINDOWS:
        return min(value, WINDOW)
    if name in _KEY_HEADS:
        return _key_heads(value, config)
    if name.endswith(_WIDE) or name in _WIDE:
        return min(value, 64)
    if name == "head_dim" and getattr(config, "qk_rope_head_dim", None):
        return _SIZES["qk_rope_head_dim"]  # multi-head latent attention: the part that is rotated
    if name == "rotary_dim":
        return min(value, _SIZES["head_dim"] // 2)
    return min(value, _SIZES[name]) if name in _SIZES else value


def _picked(values: Sequence[Any], layers: list[int]) -> Sequence[Any]:
    if layers and len(values) > max(layers) and len(values) > _LEAST_LAYERS and len(values) >= len(layers):
        return [values[index] for index in layers]
    return values


def _key_heads(value: int, config: PreTrainedConfig) -> int:
    heads = next(
        (getattr(config, n) for n in ("num_attention_heads", "n_head", "num_heads") if hasattr(config, n)), value
    )
    return 4 if value == heads else min(value, 2)
