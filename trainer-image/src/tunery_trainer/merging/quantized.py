"""The base weights as a quantised base has them: quantised and dequantised again with bitsandbytes, on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

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
