"""The base weights as a quantised base has them: quantised and dequantised again with bitsandbytes, on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tunery_api.methods import QuantizationType


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the base was quantised when the adapter was trained."""

    type: QuantizationType = QuantizationType.NF4
    double: bool = True
    dtype: torch.dtype = torch.bfloat16
    """The type that the weights were loaded in before they were quantised."""


def dequantized(weight: torch.Tensor, settings: Quantization, *, transposed: bool) -> torch.Tensor:
    """Return the weight that the forward pass of a quantised base really uses, in `settings.dtype`.

    `transposed`: the weight lies in × out; transformers quantises it the other way round.
    """
    weight = weight.to(settings.dtype)
    weight = (weight.T if transposed else weight).contiguous()
    restored = _int8(weight) if settings.type == QuantizationType.INT8 else _four_bit(weight, settings)
    return restored.T.contiguous() if transposed else restored


def _four_bit(weight: torch.Tensor, settings: Quantization) -> torch.Tensor:
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=settings.double, quant_type=settings.type.lower()
    )
    restored: torch.Tensor = functional.dequantize_4bit(packed, state)
    return restored


def _int8(weight: torch.Tensor) -> torch.Tensor:
    from bitsandbytes import functional

    rows, scales, _ = functional.int8_vectorwise_quant(weight.half())
    restored: torch.Tensor = functional.int8_vectorwise_dequant(rows, scales)
    return restored.to(weight.dtype)


def linear_modules(config: dict[str, Any]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the modules that transformers quantises in a model, and those among them that lie in × out.

    Those of the language model: others have no part in what was trained, and lose nothing in a merge.
    Builds the model from its config without any weights.
    """
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    from tunery_trainer.model.language_part import language_prefix
    from tunery_trainer.model.targets import LINEAR

    model = meta_model(config)
    prefix = language_prefix(model)
    kept = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or [])]
    found = {
        name: isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if isinstance(module, LINEAR) and name.startswith(prefix) and should_convert_module(name, kept)
    }
    return frozenset(found), frozenset(name for name, transposed in found.items() if transposed)


def meta_model(config: dict[str, Any]) -> Any:
    """Return the model of a config.json, before it was quantised, on the meta device.

    Raises what transformers raises for a config that it does not know.
    """
    from transformers import AutoConfig

    from tunery_trainer.model.language_part import auto_class

    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    built = AutoConfig.for_model(**plain)
    with torch.device("meta"):
        return auto_class(built).from_config(built)
