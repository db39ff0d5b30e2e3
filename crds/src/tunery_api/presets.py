"""The guide's tuned configurations, number for number, and the learning rates that methods start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tunery_api.methods import Method, Preset


@dataclass(frozen=True)
class PresetValues:
    """What a preset fills in where the manifest is silent; the guide's TUNED_CONFIGURATIONS."""

    rank: int
    alpha: int
    dropout: float
    target_modules: tuple[str, ...]
    learning_rate: float
    epochs: float
    warmup: float
    """Share of all steps."""
    use: str
    """As the guideline of its rank calls it."""


PRESETS: Final[dict[Preset, PresetValues]] = {
    Preset.INSTRUCTION_TUNING: PresetValues(16, 32, 0.05, ("attention",), 2e-4, 3, 0.1, "general instruction tuning"),
    Preset.DOMAIN_ADAPTATION: PresetValues(32, 64, 0.1, ("all-linear",), 1e-4, 5, 0.05, "domain adaptation"),
    Preset.STYLE_TRANSFER: PresetValues(8, 16, 0.0, ("query-value",), 3e-4, 2, 0.1, "style transfer"),
}

DEFAULT_LEARNING_RATE: Final = 2e-4
METHOD_LEARNING_RATES: Final = {
    Method.ADALORA: 1e-3,
    Method.IA3: 3e-3,
    Method.PROMPT_TUNING: 3e-2,
    Method.PREFIX_TUNING: 1e-2,
}
"""Where 2e-4 would hardly move the weights: AdaLoRA and IA3 as in their papers (Zhang et al. 2023, Liu et al. 2022),
prompt and prefix tuning as in PEFT's own examples. No preset changes them: the presets are tuned for LoRA."""
PROJECTION_LEARNING_RATE: Final = 1e-3
"""Prefix tuning through its network: at 1e-2 the loss of SmolLM2 tripled within 20 steps (docs/benchmarks.md)."""
LORA_LEARNING_RATES: Final = (1e-5, 5e-4)
"""The guide's span, for the LoRA family."""
RATE_AROUND: Final = 10.0
"""How far another method's rate may be from its own."""


def method_rate(method: Method, projection: bool) -> float | None:
    """Return the learning rate of a method that has one of its own; `projection` is that of prefix tuning."""
    if method is Method.PREFIX_TUNING and projection:
        return PROJECTION_LEARNING_RATE
    return METHOD_LEARNING_RATES.get(method)


def usual_span(own: float | None) -> tuple[float, float]:
    """Return the guide's span of learning rates, or that around the rate of a method that has one of its own."""
    return (own / RATE_AROUND, own * RATE_AROUND) if own else LORA_LEARNING_RATES
