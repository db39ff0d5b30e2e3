"""Methods for `method: Auto` by the guide's decision tree (recommend_peft_method), and why each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import PREFERENCE_TASKS, Method
from tunery_api.validation import lorajob_errors
from tunery_trainer.settings.types import DeviceFacts, DeviceKind, StoredQuantization

FEW_ROWS: Final = 100
"""Below this the guide takes prompt tuning."""


@dataclass(frozen=True)
class MethodChoice:
    """A method, never Auto, and one sentence that says why."""

    method: Method
    reason: str


def method_choices(
    spec: LoRAJobSpec, rows: int | None, devices: DeviceFacts, stored: StoredQuantization | None = None
) -> tuple[MethodChoice, ...]:
    """Return what may be trained in the order of preference: the first that fits into the memory is taken.

    `rows` counts the training rows (None: they were not read), `stored` is how the base is quantised already.
    The guide compares memory with twice the model in 4 bits; the estimate of each
    method, which knows activations and the batch, takes the place of that rule.
    """
    if spec.method is not Method.AUTO:
        return (MethodChoice(spec.method, "The manifest asks for it."),)
    if spec.quantization is not None:
        return (MethodChoice(Method.QLORA, "The manifest asks for a quantised base, and LoRA on one is QLoRA."),)
    known = f"{rows} rows are enough for LoRA" if rows is not None else f"LoRA wants {FEW_ROWS} rows at least"
    preferred = MethodChoice(Method.LORA, f"The model fits unquantised, and {known}.")
    if spec.task in PREFERENCE_TASKS:
        preferred = MethodChoice(Method.LORA, "The model fits unquantised, and LoRA keeps to it while it learns.")
    elif rows is not None and rows < FEW_ROWS and spec.continue_from is None:
        preferred = _for_few_rows(spec, rows)
    if stored is not None:
        quantised = MethodChoice(Method.QLORA, "The base is quantised already, and LoRA on such a one is QLoRA.")
        return (quantised,) if preferred.method is Method.LORA else (preferred, quantised)
    if devices.memory_bytes is not None:
        return (preferred, MethodChoice(Method.QLORA, "The model does not fit unquantised, so its base is quantised."))
    if devices.kind is DeviceKind.CUDA and preferred.method is Method.LORA:
        return (MethodChoice(Method.QLORA, "The GPU's memory is not known, and QLoRA trains wherever LoRA does."),)
    return (preferred,)


def _for_few_rows(spec: LoRAJobSpec, rows: int) -> MethodChoice:
    """Return prompt tuning, or LoRA if the manifest has settings that prompt tuning has not: they would be ignored."""
    few = f"{rows} rows are fewer than {FEW_ROWS}"
    if spec.preset is not None:
        why = f"The model fits unquantised; {few}, but prompt tuning has no rank, which preset {spec.preset} sets."
        return MethodChoice(Method.LORA, why)
    as_prompt = spec.model_copy(update={"method": Method.PROMPT_TUNING})
    fields = sorted({error.path for error in lorajob_errors(as_prompt)})
    if not fields:
        return MethodChoice(Method.PROMPT_TUNING, f"{few}: prompt tuning makes the most of them.")
    why = f"The model fits unquantised; {few}, but prompt tuning does not go with {', '.join(fields)}."
    return MethodChoice(Method.LORA, why)
