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
    """How several adapters are combined."""

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
"""The methods with sign election."""
DEFAULT_DENSITY: Final = 0.5
TRIMMED_DENSITY: Final = 0.2
"""Default of the methods that trim and elect signs: the papers' value, with the lowest loss in bench.merge_quality."""
OPEN_RANK_LIMIT: Final = 128
"""The largest rank that Tunery chooses for a result: every server of LoRA adapters loads it."""
OPEN_RANK_ERROR: Final = 0.5
"""An unset rank grows until no module's relative error (Frobenius norm) is above this value."""


class MajoritySign(StrEnum):
    """How TIES elects a sign: by the sum of the values, or by the number of signs."""

    TOTAL = "Total"
    FREQUENCY = "Frequency"


class MergeTarget(StrEnum):
    """The type of the result."""

    ADAPTER = "Adapter"
    MODEL = "Model"


LARGEST_WEIGHT: Final = 1000
"""The largest absolute weight: beyond it, the other adapters vanish and values leave float16's range."""


class MergeInput(AdapterReference):
    """One input adapter of a merge; exactly one of loraJobRef and uri."""

    weight: Number | None = Field(
        None,
        ge=-LARGEST_WEIGHT,
        le=LARGEST_WEIGHT,
        description="Factor of the adapter's delta, such as 1, 0.5 or -1. Set it for all adapters or none. Default: 1 "
        "/ number of adapters for Linear, DARELinear and MagnitudePrune; 1 for the TIES methods, which "
        "average.",
    )


class MergeDataset(ApiModel):
    """The data that a merge is evaluated on: all rows of the split."""

    uri: DatasetUri = Field(
        description="URI of the data, as in a LoRAJob: hf://owner/name, s3://bucket/key, pvc://claim/path or "
        "configmap://name/key; a file, a folder or a glob."
    )
    format: DatasetFormat = Field(
        DatasetFormat.AUTO, description="Format of a row, as in a LoRAJob. Auto detects it by the columns."
    )
    split: Split = Field("train", description="Split to evaluate on, if the data set has splits.")
    columns: dict[Annotated[str, Field(max_length=32)], ColumnName] | None = Field(
        None,
        max_length=8,
        description="Column of the data set for each field of the format, such as {prompt: question}. Default: a "
        "column has its field's name.",
    )
    max_invalid_rows: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Maximum invalid rows, which are skipped and counted. With more, the data set is rejected.",
    )
    secret_ref: LocalReference | None = Field(
        None, description="Secret that grants access to the data set. Default: the pod's workload identity."
    )


class MergeEvaluationSpec(ApiModel):
    """The evaluation of the base model, each input and the result, and the required improvement."""

    dataset: MergeDataset = Field(description="Evaluation data; it should cover every task of the result.")
    max_length: int = Field(2048, ge=8, le=1_048_576, description="Maximum tokens per row; longer rows are truncated.")
    loss: Loss = Field(
        Loss.COMPLETION,
        description="Tokens that count in the loss. Completion: the assistant's tokens. All: every token.",
    )
    min_improvement: Number = Field(
        0.0,
        lt=1,
        description="Required improvement, as a share of the base model's loss, such as 0.05; below 1. Below it the "
        "result isn't published.",
    )


class MergeResourcesSpec(PodResources):
    """The resources of the merging container; requests equal limits."""

    gpus: int = Field(0, ge=0, le=1, description="GPUs of the pod: 0, or 1 to merge on a GPU.")


class AdapterMergeSpec(LifecycleFields):
    """Which adapters to merge, how, and where to publish the result."""

    adapters: list[MergeInput] = Field(min_length=1, max_length=32, description="Input adapters, 1 to 32.")
    method: MergeMethod = Field(
        MergeMethod.LINEAR,
        description="Linear: weighted sum. TIES: trim, then elect signs. DARELinear, DARETIES: drop random entries and "
        "rescale first. MagnitudePrune: sum of each delta's largest entries. KnOTSTIES, KnOTSDARETIES: merge "
        "in the adapters' common basis, with a low rank.",
        json_schema_extra={SERVER_DEFAULT: True},
    )
    density: Number | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of each delta's entries to retain, above 0 and at most 1. Not for Linear. Default: 0.2 for "
        "TIES and KnOTSTIES, else 0.5.",
    )
    majority_sign: MajoritySign = Field(
        MajoritySign.TOTAL,
        description="How the TIES methods elect a sign. Total: by the sum of the values. Frequency: by the number of "
        "signs.",
    )
    rank: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Rank of the result. Default for Linear and KnOTS: the sum of the input ranks, up to "
        f"{OPEN_RANK_LIMIT}. Else: the smallest rank up to {OPEN_RANK_LIMIT} with relative error "
        f"{OPEN_RANK_ERROR} or less; RankSufficient reports more.",
    )
    seed: int = Field(42, ge=0, le=2**31 - 1, description="Random seed of DARE's drops.")
    into: MergeTarget = Field(
        MergeTarget.ADAPTER,
        description="Type of the result. Adapter: one adapter. Model: the base model with the adapters merged into its "
        "weights.",
        json_schema_extra={SERVER_DEFAULT: True},
    )
    model: ModelSpec | None = Field(
        None,
        description="Base model: required for into: Model and evaluation if no adapter has Tunery's manifest; adapters "
        "with a uri are checked against it. Default: the base model in the adapters' manifests.",
    )
    evaluation: MergeEvaluationSpec | None = Field(
        None,
        description="Evaluate the base model, each input and the result before publishing. Default: no evaluation.",
    )
    dtype: ComputeType | None = Field(
        None,
        description="Data type of the written weights. Default: that of the base model for into: Model, Float32 for an "
        "adapter.",
    )
    verify: bool = Field(True, description="Reload the result and compare it with its inputs before publishing.")
    output: OutputSpec = Field(default_factory=OutputSpec, description="Where the result is published.")
    resources: MergeResourcesSpec = Field(
        default_factory=MergeResourcesSpec, description="Resources of the merging pod."
    )
    scheduling: SchedulingSpec = Field(
        default_factory=SchedulingSpec, description="Where the pod runs. You can change it while no pod runs."
    )

    def effective_density(self) -> float:
        """Return density or its default."""
        trims = self.method in (MergeMethod.TIES, MergeMethod.KNOTS_TIES)
        return self.density or (TRIMMED_DENSITY if trims else DEFAULT_DENSITY)

    def effective_weights(self) -> list[float]:
        """Return the weight of each adapter or its default."""
        share = 1.0 if self.method in ELECTING else 1 / len(self.adapters)
        return [share if item.weight is None else item.weight for item in self.adapters]
