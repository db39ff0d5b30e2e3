"""The base model as transformers and PEFT build it, without its weights: its modules, and what is saved of them."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftConfig, PeftType, get_peft_model, get_peft_model_state_dict
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from tunery_trainer.model.language_part import auto_class, language_prefix
from tunery_trainer.model.targets import LINEAR

UNKNOWN: Final = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    ImportError,
    StrictDataclassError,
)
"""What transformers raises for a config.json that it does not know, or that no model can have."""
Shapes = dict[str, tuple[int, ...]]


class Saved(NamedTuple):
    """What PEFT saves of an adapter, by the configuration of that on a base."""

    shapes: Shapes
    """By the names that it saves them under."""
    embeddings: frozenset[str]
    """The modules whose weights it saves beside them, where it is told to: of the tokens, and the head."""
    leaves: frozenset[str]
    """The base's modules that have no others within."""


def meta_model(config: dict[str, Any]) -> Any:
    """Return the model of a config.json, before it was quantised, on the meta device.

    Raises UNKNOWN for a config that transformers does not know.
    """
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    built = AutoConfig.for_model(**plain)
    with torch.device("meta"):
        return auto_class(built).from_config(built)


def linear_modules(config: dict[str, Any]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the modules that transformers quantises in a model, and those among them that lie in × out.

    Those of the language model: others have no part in what was trained, and lose nothing in a merge.
    """
    model = meta_model(config)
    prefix = language_prefix(model)
    kept = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or [])]
    found = {
        name: isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if isinstance(module, LINEAR) and name.startswith(prefix) and should_convert_module(name, kept)
    }
    return frozenset(found), frozenset(name for name, transposed in found.items() if transposed)


def saved_by_peft(model: Any, config: dict[str, Any]) -> Saved:
    """Return what PEFT saves of an adapter of this configuration on `model`, which bears it afterwards.

    `model` is one of `meta_model`.

    Raises what PEFT raises where the two do not go together.
    """
    ends = {id(module) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    embeddings = frozenset(name for name, module in model.named_modules() if id(module) in ends)
    leaves = frozenset(name for name, module in model.named_modules() if not list(module.children()))
    # How the factors begin says nothing about their shapes, and may take weights.
    fields = {**config, "task_type": None, "init_lora_weights": True, "base_model_name_or_path": None}
    peft = PeftConfig.from_peft_type(**{name: value for name, value in fields.items() if name in config})
    ranks = peft.rank_pattern if peft.peft_type == PeftType.ADALORA else None
    if ranks:
        peft.rank_pattern = None
    tensors = get_peft_model_state_dict(get_peft_model(model, peft), save_embedding_layers=False)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return Saved(shapes | _pruned(shapes, ranks or {}), embeddings, leaves)


def _pruned(shapes: Shapes, ranks: dict[str, list[bool]]) -> Shapes:
    """Return the shapes of AdaLoRA's factors with the ranks that it has left them; raises KeyError for an odd name."""
    found: Shapes = {}
    for name, kept in ranks.items():
        module, rank = f"base_model.model.{adalora_module(name)}", sum(kept)
        found[f"{module}.lora_E"] = (rank, 1)
        found[f"{module}.lora_A"] = (rank, shapes[f"{module}.lora_A"][1])
        found[f"{module}.lora_B"] = (shapes[f"{module}.lora_B"][0], rank)
    return found


def adalora_module(name: str) -> str:
    """Return the module that a key of AdaLoRA's rank_pattern means: `….q_proj.lora_E`, or `….lora_E.default`."""
    return name.removesuffix(".default").removesuffix(".lora_E")
