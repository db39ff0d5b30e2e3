"""The guide's tuned configurations, number for number, and what its guidelines say of a rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tunery_api.methods import RANK_GUIDELINES, Preset, RankGuideline


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


FAR: Final = 2
"""A rank is far off its use below half of the lowest that the guide suggests for it, and above twice the highest."""
_SMALLEST: Final = RANK_GUIDELINES[0]


def guideline_for(rank: int) -> RankGuideline:
    """Return the guideline of the largest listed rank that is not above `rank` (the first for smaller ones)."""
    return max((line for line in RANK_GUIDELINES if line.rank <= rank), key=lambda line: line.rank, default=_SMALLEST)


def suggested_ranks(preset: PresetValues) -> tuple[int, int]:
    """Return the lowest and highest rank that the guide has for a preset's use: its guideline's and the preset's."""
    listed = next(line.rank for line in RANK_GUIDELINES if preset.use in line.use)
    return min(listed, preset.rank), max(listed, preset.rank)


def rank_reason(rank: int, preset: PresetValues | None) -> str | None:
    """Return what a rank is for where no preset says the use; with one, one sentence if it is far off, else None."""
    meant = guideline_for(rank)
    if preset is None:
        return f"{meant.name}: {meant.use}"
    lowest, highest = suggested_ranks(preset)
    if lowest <= FAR * rank and rank <= FAR * highest:
        return None
    suggested = f"{lowest}" if lowest == highest else f"{lowest} to {highest}"
    return f"rank {rank} is {meant.name} ({meant.use}); the guide suggests {suggested} for {preset.use}"
