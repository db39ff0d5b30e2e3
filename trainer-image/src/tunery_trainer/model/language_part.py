"""The language model within a checkpoint: the class that loads it, and where its layers are beside vision and audio."""

from __future__ import annotations

import re
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

TEXT_OF_IMAGE_TEXT: Final = frozenset(
    {
        "aya_vision",
        "glm4v",
        "glm4v_moe",
        "internvl",
        "llava",
        "llava_next",
        "mistral3",
        "qwen2_5_vl",
        "qwen2_vl",
        "qwen3_vl",
        "qwen3_vl_moe",
    }
)
"""Model types without a causal class of their own whose language model was seen to train on text alone, each by a test.

The others of transformers' image-text-to-text models are refused: many ask for an image in every row.
"""


def auto_class(config: PreTrainedConfig) -> Any:
    """Return the auto class that loads the model of `config`, None where it is no language model that can be trained.

    What is published loads on what the same class gives to users.
    """
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    return AutoModelForImageTextToText if config.model_type in TEXT_OF_IMAGE_TEXT else None


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class of the model of `config`; KeyError where `auto_class` knows none."""
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    mapping = MODEL_FOR_CAUSAL_LM_MAPPING if causal else MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    found: type[PreTrainedModel] = mapping[type(config)]
    return found


def name_backbone(model: PreTrainedModel) -> None:
    """Let `model.base_model` be what stands below the head: Llama 4's text model names a part that it does not have."""
    if model.base_model is model and hasattr(model, "model"):
        model.base_model_prefix = "model"


def language_prefix(model: PreTrainedModel) -> str:
    """Return what the names of the language model's modules begin with: `model.language_model.`, or nothing.

    Empty where the model is nothing else.
    """
    if model.config.get_text_config() is model.config:
        return ""
    decoder = model.get_decoder()
    path = next((path for path, module in model.named_modules() if module is decoder), "")
    return f"{path}." if path else ""


def outside_language(model: PreTrainedModel) -> str | None:
    """Return PEFT's exclude_modules, a regular expression of all modules outside the language model; None: there are
    none."""
    prefix = language_prefix(model)
    return f"(?!{re.escape(prefix)}).*" if prefix else None


def decoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """Return the language model's layers: the outermost list with as many as its configuration says, else the longest.

    Experts of a mixture may be more than its layers.
    """
    inner = model.get_submodule(language_prefix(model).rstrip("."))
    lists = [module for module in inner.modules() if isinstance(module, torch.nn.ModuleList)]
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    longest = max(lists, key=len, default=torch.nn.ModuleList())
    return next((each for each in lists if len(each) == count), longest)
