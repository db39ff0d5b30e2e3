"""The settings of DPO, ORPO and KTO."""

from __future__ import annotations

from typing import Any, Final

from tunery_api.methods import PREFERENCE_TASKS, PreferenceSpec, TrainingTask
from tunery_trainer.settings.decisions import Decisions
from tunery_trainer.settings.types import PreferenceSettings

PREFERENCE_RATE: Final = 0.25
"""Of the rate of SFT: 5e-5 for LoRA, ten times the 5e-6 that ORPO trains whole models with (Hong et al. 2024, the
factor of ten as in TRL's examples). TRL's DPO example with LoRA takes a tenth of ours, in 1,000 steps of 16 pairs; most
sets here make a hundred steps or two."""

_MOST: Final = 4 / 3
"""By so much the wanted answers may outweigh the others (Ethayarajh et al. 2024, equation 8); at least they equal."""
_ROUNDING: Final = 0.01


def preference_settings(decisions: Decisions) -> PreferenceSettings | None:
    """Return how answers are weighed, and record it; None for SFT."""
    task, block = decisions.spec.task, decisions.spec.preference or PreferenceSpec()

    def plain(name: str) -> Any:
        return decisions.plain(block, "preference", name)

    if task not in PREFERENCE_TASKS:
        return None
    beta = plain("beta")
    if task is TrainingTask.KTO:
        desirable, undesirable = plain("desirable_weight"), plain("undesirable_weight")
        return PreferenceSettings(beta, desirable_weight=desirable, undesirable_weight=undesirable)
    return PreferenceSettings(beta, plain("loss_type") if task is TrainingTask.DPO else None)


def weights_warning(settings: PreferenceSettings, wanted: int, others: int) -> str | None:
    """Return what KTO's weights do not make up for of unequal numbers of answers; None where there is nothing."""
    ratio = settings.desirable_weight * wanted / (settings.undesirable_weight * others)
    if 1 - _ROUNDING <= ratio <= _MOST + _ROUNDING:
        return None
    least = settings.desirable_weight * wanted / others
    return (
        f"{wanted} answers are wanted and {others} are not, and by their weights those count {ratio:.3g} times as much "
        f"as these; 1 to 4/3 is good: spec.preference.undesirableWeight {least / _MOST:.3g} to {least:.3g}"
    )
