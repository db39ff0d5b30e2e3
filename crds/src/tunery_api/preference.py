"""What is learned from the rows: to continue as they do, or to prefer one answer to another."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import Field

from tunery_api.fields import ABOVE_0, ApiModel, DecimalString


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

    beta: DecimalString = Field(
        "0.1",
        description="DPO and KTO: how strongly the model is held to what it was before training. DPO with loss IPO: "
        "the paper's tau. ORPO: the weight of the odds ratio beside the loss of the chosen answer (lambda). Above 0, "
        "such as 0.1.",
        json_schema_extra=ABOVE_0,
    )
    loss_type: PreferenceLoss = Field(
        PreferenceLoss.SIGMOID,
        description="DPO only: Sigmoid (the paper's), Hinge (SLiC) or IPO, which averages over an answer's tokens.",
    )
    desirable_weight: DecimalString = Field(
        "1",
        description="KTO only: weight of the answers with label true. Times their number it should be 1 to 4/3 of "
        "undesirableWeight times the number of the others. Above 0.",
        json_schema_extra=ABOVE_0,
    )
    undesirable_weight: DecimalString = Field(
        "1", description="KTO only: weight of the answers with label false. Above 0.", json_schema_extra=ABOVE_0
    )


READ_OF_PREFERENCE: Final[dict[TrainingTask, frozenset[str]]] = {
    TrainingTask.DPO: frozenset({"beta", "lossType"}),
    TrainingTask.ORPO: frozenset({"beta"}),
    TrainingTask.KTO: frozenset({"beta", "desirableWeight", "undesirableWeight"}),
}
"""The fields of `preference` that each task looks at."""
