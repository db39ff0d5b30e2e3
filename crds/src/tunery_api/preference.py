"""What is learned from the rows: to continue as they do, or to prefer one answer to another."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import Field

from tunery_api.fields import ApiModel, Number


class TrainingTask(StrEnum):
    """What a LoRAJob trains for."""

    SFT = "SFT"
    DPO = "DPO"
    ORPO = "ORPO"
    KTO = "KTO"


PREFERENCE_TASKS: Final = frozenset(TrainingTask) - {TrainingTask.SFT}


class PreferenceLoss(StrEnum):
    """The losses of DPO."""

    SIGMOID = "Sigmoid"
    HINGE = "Hinge"
    IPO = "IPO"


class PreferenceSpec(ApiModel):
    """The settings of DPO, ORPO and KTO."""

    beta: Number = Field(
        0.1,
        gt=0,
        description="DPO and KTO: how strongly the model is held to what it was before training. DPO with loss IPO: "
        "the paper's tau. ORPO: the weight of the odds ratio beside the loss of the chosen answer (lambda). Above 0, "
        "such as 0.1.",
    )
    loss_type: PreferenceLoss = Field(
        PreferenceLoss.SIGMOID,
        description="DPO only: Sigmoid (the paper's), Hinge (SLiC) or IPO, which averages over an answer's tokens.",
    )
    desirable_weight: Number = Field(
        1.0,
        gt=0,
        description="KTO only: weight of the answers with label true. Times their number it should be 1 to 4/3 of "
        "undesirableWeight times the number of the others. Above 0.",
    )
    undesirable_weight: Number = Field(
        1.0, gt=0, description="KTO only: weight of the answers with label false. Above 0."
    )


READ_OF_PREFERENCE: Final[dict[TrainingTask, frozenset[str]]] = {
    TrainingTask.DPO: frozenset({"beta", "lossType"}),
    TrainingTask.ORPO: frozenset({"beta"}),
    TrainingTask.KTO: frozenset({"beta", "desirableWeight", "undesirableWeight"}),
}
"""The fields of `preference` that each task looks at."""
