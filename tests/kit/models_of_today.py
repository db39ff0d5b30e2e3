"""Tiny random models with the structure of what is published today: beside a vision tower, and as mixtures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from transformers import AutoConfig, AutoModelForImageTextToText

from tunery_trainer.model.language_part import model_class

from kit.tiny_models import MODERN, write_model

_TOWER: Final[dict[str, Any]] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
"""More layers than the language model: the longest list of modules is the tower's."""
_DEEP: Final[dict[str, Any]] = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
}
_SECTIONS: Final = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
_EXPERTS: Final[dict[str, Any]] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MULTIMODAL: Final[dict[str, dict[str, Any]]] = {
    "gemma3": {"text_config": MODERN, "vision_config": _TOWER},
    "gemma4": {
        "text_config": MODERN | {"global_head_dim": 16, "hidden_size_per_layer_input": 0, "pad_token_id": 0},
        "vision_config": _TOWER,
        "audio_config": None,
    },
    "aya_vision": {
        "text_config": MODERN | {"model_type": "cohere2"},
        "vision_config": _TOWER | {"model_type": "siglip_vision_model"},
    },
    "glm4v": {
        "text_config": MODERN | {"rope_parameters": _SECTIONS | {"partial_rotary_factor": 1.0}},
        "vision_config": _DEEP | {"image_size": 28},
    },
    "glm4v_moe": {
        "text_config": MODERN
        | {
            "rope_parameters": _SECTIONS | {"partial_rotary_factor": 1.0},
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "moe_intermediate_size": 32,
            "num_experts_per_tok": 2,
        },
        "vision_config": _DEEP | {"image_size": 28},
    },
    "internvl": {
        "text_config": MODERN | {"model_type": "qwen2"},
        "vision_config": {n: v for n, v in _TOWER.items() if "size" not in n or n == "hidden_size"}
        | {"intermediate_size": 48, "image_size": [28, 28], "patch_size": [14, 14]},
    },
    "llava": {
        "text_config": MODERN | {"model_type": "llama"},
        "vision_config": _TOWER | {"model_type": "clip_vision_model", "projection_dim": 32},
    },
    "llava_next": {
        "text_config": MODERN | {"model_type": "mistral"},
        "vision_config": _TOWER | {"model_type": "clip_vision_model", "projection_dim": 32},
    },
    "mistral3": {
        "text_config": MODERN | {"model_type": "mistral"},
        "vision_config": _TOWER | {"model_type": "pixtral", "head_dim": 16},
    },
    "qwen2_vl": {
        "text_config": MODERN | {"rope_parameters": _SECTIONS},
        "vision_config": {"depth": 3, "embed_dim": 32, "num_heads": 2, "hidden_size": 64, "mlp_ratio": 2},
    },
    "qwen2_5_vl": {"text_config": MODERN | {"rope_parameters": _SECTIONS}, "vision_config": _DEEP},
    "qwen3_vl": {
        "text_config": MODERN | {"rope_parameters": _SECTIONS},
        "vision_config": _DEEP | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    },
    "qwen3_vl_moe": {
        "text_config": MODERN | _EXPERTS | {"rope_parameters": _SECTIONS},
        "vision_config": _DEEP | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    },
}
"""Configurations by model type, each with a tower of three layers above a language model of two."""

TEXT_CLASSES: Final[dict[str, dict[str, Any]]] = {
    "llama4": {
        "text_config": MODERN
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 96,
            "interleave_moe_layer_step": 1,
        },
        "vision_config": _TOWER | {"vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64},
    },
    "qwen3_5": {
        "text_config": MODERN
        | {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        "vision_config": _DEEP | {"num_position_embeddings": 16},
    },
}
"""Those of which AutoModelForCausalLM loads nothing but the language model, by a class of its own."""


def write_multimodal(folder: Path, kind: str) -> Path:
    """Write a random checkpoint with vision tower, as its own class saves it."""
    if kind in TEXT_CLASSES:
        return write_model(folder, AutoConfig.for_model(kind, **TEXT_CLASSES[kind]), AutoModelForImageTextToText)
    return write_model(folder, AutoConfig.for_model(kind, **MULTIMODAL[kind]), _Own)


class _Own:
    """Builds a model by its own class, as an auto class would."""

    @staticmethod
    def from_config(config: Any, **options: Any) -> Any:
        return model_class(config)._from_config(config, **options)


MIXTURES: Final[dict[str, dict[str, Any]]] = {
    "qwen3_moe": MODERN | _EXPERTS,
    "qwen2_moe": MODERN | _EXPERTS | {"shared_expert_intermediate_size": 48},
    "mixtral": MODERN | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": MODERN | {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * 2},
    "deepseek_v3": {name: value for name, value in MODERN.items() if name not in ("head_dim", "num_key_value_heads")}
    | {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
    },
    "glm4_moe": MODERN
    | {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
    },
    "llama4_text": MODERN
    | {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 96, "interleave_moe_layer_step": 1},
    "granitemoe": MODERN | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": MODERN | _EXPERTS,
}
"""Configurations by model type: shared experts, layers without a mixture and experts of either orientation."""


def write_mixture(folder: Path, kind: str) -> Path:
    """Write a random mixture of experts, as its own class saves it."""
    return write_model(folder, AutoConfig.for_model(kind, **MIXTURES[kind]), _Own)
