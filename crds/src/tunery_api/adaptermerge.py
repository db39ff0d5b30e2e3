"""Define the spec of AdapterMerge: combine adapters into one, or merge them into the base model."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from tunery_api.fields import (
    SERVER_DEFAULT,
    ApiModel,
    DatasetUri,
    Number,
)
from tunery_api.inputs import (
    AdapterReference,
    ColumnName,
    DatasetFormat,
    LocalReference,
    ModelSpec,
    OutputSpec,
    Split,
)
from tunery_api.jobs import LifecycleFields, PodResources, SchedulingSpec
from tunery_api.methods import ComputeType
from tunery_api.training import Loss


class MergeMethod(StrEnum):
    """How the deltas of several adapters become one."""

    LINEAR = "Linear"
    TIES = "TIES"
    DARE_LINEAR = "DARELinear"
    DARE_TIES = "DARETIES"
    MAGNITUDE_PRUNE = "MagnitudePrune"
    KNOTS_TIES = "KnOTSTIES"
    KNOTS_DARE_TIES = "KnOTSDARETIES"


ELECTING: Final = frozenset(
    {MergeMethod.TIES, MergeMethod.DARE_TIES, MergeMethod.KNOTS_TIES, MergeMethod.KNOTS_DARE_TIES}
)
"""The methods that elect a sign."""
DEFAULT_DENSITY: Final = 0.5
TRIMMED_DENSITY: Final = 0.2
"""The default of the methods that trim and elect: what the papers use, and what lost least in bench.merge_quality."""
OPEN_RANK_LIMIT: Final = 128
"""The largest rank that a result takes by itself: the largest that every server of LoRA adapters loads."""
OPEN_RANK_ERROR: Final = 0.5
"""A rank that is left open grows until no module's relative error (Frobenius) is above this."""


class MajoritySign(StrEnum):
    """How TIES elects a sign: by the sum of values, or by the count of signs."""

    TOTAL = "Total"
    FREQUENCY = "Frequency"


class MergeTarget(StrEnum):
    """What comes out."""

    ADAPTER = "Adapter"
    MODEL = "Model"


LARGEST_WEIGHT: Final = 1000
"""Of an adapter in a merge, by amount; beyond, nothing is left of the others, nor of float16's range."""


class MergeInput(AdapterReference):
    """One adapter of a merge; exactly one of loraJobRef and uri."""

    weight: Number | None = Field(
        None,
        ge=-LARGEST_WEIGHT,
        le=LARGEST_WEIGHT,
        description="Factor of this adapter's delta, such as 1, 0.5 or -1; for all adapters or for none. Default: one "
        "share of 1 for the methods that add up (Linear, DARELinear, MagnitudePrune), 1 for those that take a mean "
        "themselves.",
    )


class MergeDataset(ApiModel):
    """The rows that a merge is measured on: all of the split."""

    uri: DatasetUri = Field(
        description="The data: hf://owner/name, s3://bucket/key, pvc://claim/path or configmap://name/key; a file, a "
        "folder or a glob, as in a LoRAJob."
    )
    format: DatasetFormat = Field(DatasetFormat.AUTO, description="How a row is written. Auto looks at the columns.")
    split: Split = Field("train", description="The split to measure on, where the data set has splits.")
    columns: dict[Annotated[str, Field(max_length=32)], ColumnName] | None = Field(
        None, max_length=8, description="Renames: the format's field to the column of the data set."
    )
    max_invalid_rows: int = Field(
        0, ge=0, le=1_000_000, description="Bad rows that are left out and counted; one more refuses the data set."
    )
    secret_ref: LocalReference | None = Field(
        None, description="Secret that opens the data set. Default: the pod's workload identity."
    )


class MergeEvaluationSpec(ApiModel):
    """What the base, every input and the result are measured on, and what the result has to reach."""

    dataset: MergeDataset = Field(description="The rows: of all the tasks that the result is meant for.")
    max_length: int = Field(2048, ge=8, le=1_048_576, description="Tokens of a row; what is longer is cut off.")
    loss: Loss = Field(Loss.COMPLETION, description="Completion: the assistant's tokens; All: every token.")
    min_improvement: Number = Field(
        0.0,
        lt=1,
        description="Publish only if the result's loss is below the base model's by at least this share of it, such as "
        "0.05; below 1.",
    )


class MergeResourcesSpec(PodResources):
    """The resources of the merging container; requests equal limits."""

    gpus: int = Field(0, ge=0, le=1, description="GPUs of the pod: 0, or 1 to merge on a GPU.")


class AdapterMergeSpec(LifecycleFields):
    """What to merge, how, and where to put it."""

    adapters: list[MergeInput] = Field(min_length=1, max_length=32, description="The adapters, 1 to 32.")
    method: MergeMethod = Field(
        MergeMethod.LINEAR,
        description="Linear: weighted sum of the deltas. TIES: trimmed, sign elected. DARELinear, DARETIES: random "
        "drop and rescale before. MagnitudePrune: the largest entries of each, summed. KnOTSTIES, KnOTSDARETIES: TIES "
        "and DARETIES in the adapters' common basis, which keeps the rank low.",
        json_schema_extra={SERVER_DEFAULT: True},
    )
    density: Number | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of each delta's entries that is kept, above 0 and at most 1. Not for Linear. Default: 0.2 "
        "for TIES and KnOTSTIES, else 0.5.",
    )
    majority_sign: MajoritySign = Field(MajoritySign.TOTAL, description="Methods with TIES: how a sign is elected.")
    rank: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Rank of the result. Default: Linear and the KnOTS methods the sum of the input ranks, which is "
        f"exact; else, and above {OPEN_RANK_LIMIT}, the smallest rank from the inputs' largest to {OPEN_RANK_LIMIT} at "
        f"which no module's relative error is above {OPEN_RANK_ERROR}; a condition says where none is.",
    )
    seed: int = Field(42, ge=0, le=2**31 - 1, description="Seed of DARE's random drops.")
    into: MergeTarget = Field(
        MergeTarget.ADAPTER,
        description="Adapter: one adapter. Model: the base model with the adapters merged in.",
        json_schema_extra={SERVER_DEFAULT: True},
    )
    model: ModelSpec | None = Field(
        None,
        description="The base model: for into: Model, for evaluation, and to check adapters with a uri against. "
        "Default: the base that the adapters' manifests name; adapters made elsewhere name none.",
    )
    evaluation: MergeEvaluationSpec | None = Field(
        None, description="Measure the base, each input and the result on data before publishing."
    )
    dtype: ComputeType | None = Field(
        None, description="Type of the written weights. Default: the base's (Model) or Float32 (Adapter)."
    )
    verify: bool = Field(True, description="Reload the result and compare it with its inputs before publishing.")
    output: OutputSpec = Field(default_factory=OutputSpec, description="Where the result is published.")
    resources: MergeResourcesSpec = Field(
        default_factory=MergeResourcesSpec, description="Resources of the merging pod."
    )
    scheduling: SchedulingSpec = Field(
        default_factory=SchedulingSpec, description="Where the pod runs. May change while no pod runs."
    )

    def effective_density(self) -> float:
        """Return density, or what it defaults to with the method."""
        trims = self.method in (MergeMethod.TIES, MergeMethod.KNOTS_TIES)
        return self.density or (TRIMMED_DENSITY if trims else DEFAULT_DENSITY)

    def effective_weights(self) -> list[float]:
        """Return the weight of each adapter, or what it defaults to with the method."""
        share = 1.0 if self.method in ELECTING else 1 / len(self.adapters)
        return [share if item.weight is None else item.weight for item in self.adapters]
