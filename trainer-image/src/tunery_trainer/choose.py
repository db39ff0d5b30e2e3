"""Choose the method for `method: Auto` by the guide's decision tree (recommend_peft_method), and say why."""

from __future__ import annotations

from typing import Final

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import Method
from tunery_trainer.resolved import DeviceFacts, DeviceKind, ModelFacts

FEW_ROWS: Final = 100
"""Below this the guide takes prompt tuning."""
BYTES_PER_PARAMETER: Final = 2
"""The guide takes QLoRA below twice its rough need of 1 GB for each billion parameters, which is the model in bf16."""


def choose_method(spec: LoRAJobSpec, facts: ModelFacts, rows: int, devices: DeviceFacts) -> tuple[Method, str]:
    """Return the method, never Auto, and one sentence that says why.

    A GPU whose memory is not known is taken for a small one: QLoRA trains wherever LoRA does.
    """
    if spec.method is not Method.AUTO:
        return spec.method, "The manifest asks for it."
    if spec.quantization is not None:
        return Method.QLORA, "The manifest asks for a quantised base, and LoRA on one is QLoRA."
    needed = BYTES_PER_PARAMETER * facts.parameters
    if devices.memory_bytes is not None and devices.memory_bytes < needed:
        return Method.QLORA, (
            f"Memory of {_gib(devices.memory_bytes)} is less than twice what the model needs in 4 bits "
            f"({_gib(needed)} in all), so the base is quantised."
        )
    if rows < FEW_ROWS and spec.continue_from is None:
        return Method.PROMPT_TUNING, f"{rows} rows are fewer than {FEW_ROWS}: prompt tuning makes the most of them."
    if devices.memory_bytes is None and devices.kind is DeviceKind.CUDA:
        return Method.QLORA, "The GPU's memory is not known, and QLoRA trains wherever LoRA does."
    if devices.memory_bytes is None:
        return Method.LORA, "On a CPU quantising the base gains no speed, and the memory is not limited."
    return Method.LORA, (
        f"Memory of {_gib(devices.memory_bytes)} holds the model unquantised, and {rows} rows are enough for LoRA."
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
