"""The settings of DPO, ORPO and KTO."""

from __future__ import annotations

from typing import Any, Final

from tunery_api.preference import PREFERENCE_TASKS, PreferenceSpec, TrainingTask
from tunery_trainer.decisions import Decisions
from tunery_trainer.resolved import PreferenceSettings

PREFERENCE_RATE: Final = 0.25
"""Of the rate of SFT: 5e-5 for LoRA, ten times the 5e-6 that ORPO trains whole models with (Hong et al. 2024, the
factor of ten as in TRL's examples). TRL's DPO example with LoRA takes a tenth of ours, over 16,000 pairs; a set that
takes some hundred steps would hardly move by that."""


def preference_settings(decide: Decisions) -> PreferenceSettings | None:
    """Return how answers are weighed, and record it; None for SFT."""
    task, block = decide.spec.task, decide.spec.preference or PreferenceSpec()

    def plain(name: str) -> Any:
        return decide.plain(block, "preference", name)

    if task not in PREFERENCE_TASKS:
        return None
    beta = float(plain("beta"))
    if task is TrainingTask.KTO:
        desirable, undesirable = float(plain("desirable_weight")), float(plain("undesirable_weight"))
        return PreferenceSettings(beta, desirable_weight=desirable, undesirable_weight=undesirable)
    return PreferenceSettings(beta, plain("loss_type") if task is TrainingTask.DPO else None)
