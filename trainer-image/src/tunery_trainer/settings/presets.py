"""The guide's tuned configurations and rank guidelines, number for number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tunery_api.methods import Preset


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


PRESETS: Final[dict[Preset, PresetValues]] = {
    Preset.INSTRUCTION_TUNING: PresetValues(16, 32, 0.05, ("attention",), 2e-4, 3, 0.1),
    Preset.DOMAIN_ADAPTATION: PresetValues(32, 64, 0.1, ("all-linear",), 1e-4, 5, 0.05),
    Preset.STYLE_TRANSFER: PresetValues(8, 16, 0.0, ("query-value",), 3e-4, 2, 0.1),
}


@dataclass(frozen=True)
class RankGuideline:
    """How much a rank can change, and what for; the guide's RANK_GUIDELINES."""

    rank: int
    name: str
    use: str


RANK_GUIDELINES: Final = (
    RankGuideline(4, "minimal adaptation", "style transfer, minor behaviour changes"),
    RankGuideline(8, "light adaptation", "task-specific fine-tuning"),
    RankGuideline(16, "moderate adaptation", "general instruction tuning"),
    RankGuideline(32, "substantial adaptation", "domain adaptation, significant behaviour changes"),
    RankGuideline(64, "heavy adaptation", "complex domain shift, approaching full fine-tuning"),
)


def guideline_for(rank: int) -> RankGuideline:
    """Return the guideline of the largest listed rank that is not above `rank` (the first for smaller ones)."""
    return max((line for line in RANK_GUIDELINES if line.rank <= rank), key=lambda line: line.rank, default=_SMALLEST)


_SMALLEST: Final = RANK_GUIDELINES[0]
