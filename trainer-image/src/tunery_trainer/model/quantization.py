"""Words of the API for types and quantisation, as torch and bitsandbytes know them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from tunery_api.methods import ComputeType, QuantizationType
from tunery_api.training import Precision
from tunery_trainer.settings.types import QuantizationSettings

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

DTYPES: Final = {"BFloat16": torch.bfloat16, "Float16": torch.float16, "Float32": torch.float32}
"""By the words of the API's Precision and ComputeType."""


def dtype_of(word: Precision | ComputeType) -> torch.dtype:
    """Return torch's type for a word of the API; Precision.AUTO has none (KeyError)."""
    return DTYPES[word.value]


def bitsandbytes_config(settings: QuantizationSettings) -> BitsAndBytesConfig:
    """Return the library's configuration for `settings`; norms, embeddings and head stay as they are."""
    from transformers import BitsAndBytesConfig  # 3 s that a merge of adapters has no use for

    if settings.type is QuantizationType.INT8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.type.value.lower(),
        bnb_4bit_use_double_quant=settings.double_quant,
        bnb_4bit_compute_dtype=dtype_of(settings.compute_type),
    )
