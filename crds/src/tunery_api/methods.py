"""Define the training tasks, the PEFT methods with their settings and learning rates, and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, Final, NamedTuple

from pydantic import Field

from tunery_api.fields import ApiModel, Number


class TrainingTask(StrEnum):
    """The training objective of a LoRAJob."""

    SFT = "SFT"
    DPO = "DPO"
    ORPO = "ORPO"
    KTO = "KTO"


PREFERENCE_TASKS: Final = frozenset(TrainingTask) - {TrainingTask.SFT}


class PreferenceLoss(StrEnum):
    """The loss functions of DPO."""

    SIGMOID = "Sigmoid"
    HINGE = "Hinge"
    IPO = "IPO"


class PreferenceSpec(ApiModel):
    """The settings of DPO, ORPO and KTO."""

    beta: Number = Field(
        0.1,
        gt=0,
        description="Above 0. DPO, KTO: strength of the pull towards the model before training. DPO with IPO: the "
        "paper's tau. ORPO: weight of the odds ratio loss (lambda).",
    )
    loss_type: PreferenceLoss = Field(
        PreferenceLoss.SIGMOID,
        description="Loss of DPO: Sigmoid (as in the paper), Hinge (SLiC) or IPO, which averages over an answer's "
        "tokens.",
    )
    desirable_weight: Number = Field(
        1.0,
        gt=0,
        description="KTO: weight of answers with label true, above 0. Recommended: desirableWeight x desirable "
        "answers is 1 to 4/3 times undesirableWeight x undesirable answers.",
    )
    undesirable_weight: Number = Field(1.0, gt=0, description="KTO: weight of answers with label false, above 0.")


PREFERENCE_FIELDS: Final[dict[TrainingTask, frozenset[str]]] = {
    TrainingTask.DPO: frozenset({"beta", "lossType"}),
    TrainingTask.ORPO: frozenset({"beta"}),
    TrainingTask.KTO: frozenset({"beta", "desirableWeight", "undesirableWeight"}),
}
"""The fields of `preference` that each task uses."""


class Method(StrEnum):
    """A parameter-efficient fine-tuning method."""

    AUTO = "Auto"
    LORA = "LoRA"
    QLORA = "QLoRA"
    DORA = "DoRA"
    QDORA = "QDoRA"
    ADALORA = "AdaLoRA"
    PREFIX_TUNING = "PrefixTuning"
    PROMPT_TUNING = "PromptTuning"
    IA3 = "IA3"


LORA_FAMILY: Final = frozenset({Method.LORA, Method.QLORA, Method.DORA, Method.QDORA})
QUANTIZED_TWIN: Final = {Method.LORA: Method.QLORA, Method.DORA: Method.QDORA}
"""The method's name on a quantised base model, if it has one of its own."""
QUANTIZED: Final = frozenset(QUANTIZED_TWIN.values())
PROMPT_LEARNING: Final = frozenset({Method.PREFIX_TUNING, Method.PROMPT_TUNING})


class Preset(StrEnum):
    """Recommended settings by use case; a preset fills unset fields only."""

    INSTRUCTION_TUNING = "InstructionTuning"
    DOMAIN_ADAPTATION = "DomainAdaptation"
    STYLE_TRANSFER = "StyleTransfer"


class RankGuideline(NamedTuple):
    """The recommended use of a rank."""

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
"""The recommended uses, ordered by rank."""
_RANKS: Final = "; ".join(f"{line.rank}: {line.name} ({line.use})" for line in RANK_GUIDELINES)


class LoraInit(StrEnum):
    """The initialisation of the adapter."""

    DEFAULT = "Default"
    GAUSSIAN = "Gaussian"
    PISSA = "PiSSA"
    OLORA = "OLoRA"
    EVA = "EVA"
    LOFTQ = "LoftQ"


class QuantizationType(StrEnum):
    """The data type of the frozen base weights."""

    NF4 = "NF4"
    FP4 = "FP4"
    INT8 = "Int8"


class ComputeType(StrEnum):
    """A floating point type."""

    BFLOAT16 = "BFloat16"
    FLOAT16 = "Float16"
    FLOAT32 = "Float32"


ModuleName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
ModulePattern = Annotated[str, Field(min_length=1, max_length=253)]
TARGET_WORDS: Final = frozenset({"all-linear", "attention", "mlp", "query-value"})
"""Words that targetModules accepts instead of module names; they are resolved by the model's architecture."""


class LoraSpec(ApiModel):
    """The settings of LoRA, QLoRA, DoRA and QDoRA.

    AdaLoRA uses alpha, dropout, targetModules and modulesToSave; IA3 the last two; prompt and prefix tuning none.
    """

    PREFLIGHT_NEUTRAL: ClassVar = frozenset({"alpha", "dropout", "use_rslora"})
    """Fields that change neither the prepared data nor the memory, as in TrainingSpec."""

    rank: int | None = Field(
        None,
        ge=1,
        le=1024,
        description=f"Rank of the decomposition. {_RANKS}. Default: the preset's value, else 16.",
    )
    alpha: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Scaling factor: the update is scaled by alpha / rank. Default: 2 x rank, with presets too.",
    )
    dropout: Number | None = Field(
        None,
        ge=0,
        lt=1,
        description="Dropout on the adapter's input, below 1. Default: the preset's value, else 0.05; 0 for DPO, ORPO "
        "and KTO, and for adapted experts.",
    )
    target_modules: list[ModuleName] | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Module names (for LoRA and QLoRA also experts.down_proj and experts.gate_up_proj), or one of "
        "all-linear, attention, mlp, query-value. Default: the preset's value, else all-linear. For IA3: "
        "keys, values and second feed-forward layer.",
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead of alpha / rank.")
    init: LoraInit = Field(
        LoraInit.DEFAULT,
        description="Initialisation of the adapter (docs/methods.md#initialisation). The published adapter always "
        "loads on the original base model.",
    )
    modules_to_save: list[ModuleName] | None = Field(
        None,
        max_length=16,
        description="Modules that are fully trained and saved with the adapter, such as embed_tokens.",
    )
    rank_pattern: dict[ModulePattern, Annotated[int, Field(ge=1, le=1024)]] | None = Field(
        None,
        max_length=64,
        description="Ranks of single modules, by name or regular expression. Default: rank for all.",
    )
    alpha_pattern: dict[ModulePattern, Annotated[int, Field(ge=1, le=4096)]] | None = Field(
        None,
        max_length=64,
        description="Alphas of single modules, by name or regular expression. Default: alpha for all.",
    )


LORA_FIELDS: Final[dict[Method, frozenset[str]]] = {
    Method.ADALORA: frozenset({"targetModules", "modulesToSave", "alpha", "dropout"}),
    Method.IA3: frozenset({"targetModules", "modulesToSave"}),
    Method.PROMPT_TUNING: frozenset(),
    Method.PREFIX_TUNING: frozenset(),
}
"""The fields of `lora` that methods outside the LoRA family use; the family uses all fields."""

DEFAULT_TARGET_RANK: Final = 8
INITIAL_RANK_FACTOR: Final = 1.5


class AdaLoraSpec(ApiModel):
    """The settings of AdaLoRA."""

    initial_rank: int | None = Field(None, ge=1, le=1024, description="Rank before pruning. Default: 1.5 x targetRank.")
    target_rank: int | None = Field(None, ge=1, le=1024, description="Target average rank after pruning. Default: 8.")
    warmup_steps: int | None = Field(
        None, ge=0, le=1_000_000, description="Steps before the first pruning. Default: a tenth of all steps."
    )
    final_steps: int | None = Field(
        None, ge=0, le=1_000_000, description="Steps at the end with fixed ranks. Default: a third of all steps."
    )
    update_every_steps: int | None = Field(
        None, ge=1, le=10_000, description="Steps between two prunings. Default: a hundredth of all steps, at least 1."
    )


class PromptTuningSpec(ApiModel):
    """The settings of prompt tuning."""

    virtual_tokens: int = Field(20, ge=1, le=512, description="Number of trainable tokens before the prompt.")
    init_text: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="Text whose embeddings initialise the tokens. Default: embeddings sampled from the vocabulary.",
    )


class PrefixTuningSpec(ApiModel):
    """The settings of prefix tuning."""

    virtual_tokens: int = Field(20, ge=1, le=512, description="Number of trainable keys and values in each layer.")
    projection: bool = Field(False, description="Train the prefix through a two-layer network, which isn't published.")


class QuantizationSpec(ApiModel):
    """The quantisation of the base model: implied by QLoRA and QDoRA, invalid for LoRA and DoRA, else optional."""

    type: QuantizationType = Field(
        QuantizationType.NF4, description="Data type of the base weights: NF4 or FP4 (4 bits), or Int8."
    )
    double_quant: bool = Field(True, description="Quantise the quantisation constants too; 4 bits only.")
    compute_type: ComputeType = Field(
        ComputeType.BFLOAT16, description="Data type of the matrix products; 4 bits only. Default: training.precision."
    )


@dataclass(frozen=True)
class PresetValues:
    """The values of a preset for unset fields."""

    rank: int
    alpha: int
    dropout: float
    target_modules: tuple[str, ...]
    learning_rate: float
    epochs: float
    warmup: float
    """Share of all steps."""
    use: str
    """The use in the guideline of its rank."""


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
"""Methods for which 2e-4 would hardly move the weights. AdaLoRA and IA3: as in their papers (Zhang et al. 2023, Liu
et al. 2022). Prompt and prefix tuning: as in PEFT's examples. No preset changes them: presets are tuned for LoRA."""
PROJECTION_LEARNING_RATE: Final = 1e-3
"""Prefix tuning with projection: at 1e-2 the loss of SmolLM2 tripled within 20 steps (docs/benchmarks.md)."""
LORA_LEARNING_RATES: Final = (1e-5, 5e-4)
"""The recommended range for the LoRA family."""
LEARNING_RATE_FACTOR: Final = 10.0
"""The factor by which another method's learning rate may differ from its default."""


def method_learning_rate(method: Method, projection: bool) -> float | None:
    """Return the default learning rate of a method that has its own; `projection` is that of prefix tuning."""
    if method is Method.PREFIX_TUNING and projection:
        return PROJECTION_LEARNING_RATE
    return METHOD_LEARNING_RATES.get(method)


def usual_learning_rates(own: float | None) -> tuple[float, float]:
    """Return the recommended range of learning rates, or the range around a method's own rate."""
    return (own / LEARNING_RATE_FACTOR, own * LEARNING_RATE_FACTOR) if own else LORA_LEARNING_RATES
