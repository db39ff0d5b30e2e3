"""What the guide's guidelines say of a rank."""

from __future__ import annotations

from typing import Final

from tunery_api.methods import RANK_GUIDELINES, PresetValues, RankGuideline

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
