"""The training methods: one file each, and this list of them."""

from __future__ import annotations

from typing import Final

from tunery_api.methods import Method
from tunery_trainer.adapter.methods.adalora import ADALORA
from tunery_trainer.adapter.methods.base import TrainingMethod
from tunery_trainer.adapter.methods.ia3 import IA3
from tunery_trainer.adapter.methods.lora import LORA
from tunery_trainer.adapter.methods.prefix_tuning import PREFIX_TUNING
from tunery_trainer.adapter.methods.prompt_tuning import PROMPT_TUNING

METHODS: Final[dict[Method, TrainingMethod]] = {
    Method.LORA: LORA,
    Method.QLORA: LORA,
    Method.DORA: LORA,
    Method.QDORA: LORA,
    Method.ADALORA: ADALORA,
    Method.PREFIX_TUNING: PREFIX_TUNING,
    Method.PROMPT_TUNING: PROMPT_TUNING,
    Method.IA3: IA3,
}
"""Every method but Auto, which is resolved before anything is built."""
