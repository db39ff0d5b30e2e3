"""Define the training tasks, the PEFT methods with their settings and learning rates, and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, Final, NamedTuple

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


PREFERENCE_FIELDS: Final[dict[TrainingTask, frozenset[str]]] = {
    TrainingTask.DPO: frozenset({"beta", "lossType"}),
    TrainingTask.ORPO: frozenset({"beta"}),
    TrainingTask.KTO: frozenset({"beta", "desirableWeight", "undesirableWeight"}),
}
"""The fields of `preference` that each task looks at."""


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
"""The names of methods on a quantised base, where they have one of their own."""
QUANTIZED: Final = frozenset(QUANTIZED_TWIN.values())
PROMPT_LEARNING: Final = frozenset({Method.PREFIX_TUNING, Method.PROMPT_TUNING})


class Preset(StrEnum):
    """The guide's tuned configurations by use case; a preset only fills what the manifest leaves open."""

    INSTRUCTION_TUNING = "InstructionTuning"
    DOMAIN_ADAPTATION = "DomainAdaptation"
    STYLE_TRANSFER = "StyleTransfer"


class RankGuideline(NamedTuple):
    """How much a rank can change, and what for."""

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
"""The guide's, number for number, in the order of the ranks."""
_RANKS: Final = "; ".join(f"{line.rank}: {line.name} ({line.use})" for line in RANK_GUIDELINES)


class LoraInit(StrEnum):
    """How the adapter starts."""

    DEFAULT = "Default"
    GAUSSIAN = "Gaussian"
    PISSA = "PiSSA"
    OLORA = "OLoRA"
    EVA = "EVA"
    LOFTQ = "LoftQ"


class QuantizationType(StrEnum):
    """How the frozen base weights are stored."""

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
"""Words that targetModules takes instead of names; they are resolved for the model's own architecture."""


class LoraSpec(ApiModel):
    """The settings of LoRA, QLoRA, DoRA and QDoRA.

    AdaLoRA reads alpha, dropout, targetModules and modulesToSave; IA3 the last two; prompt and prefix tuning none.
    """

    PREFLIGHT_NEUTRAL: ClassVar = frozenset({"alpha", "dropout", "use_rslora"})
    """As of TrainingSpec."""

    rank: int | None = Field(
        None,
        ge=1,
        le=1024,
        description=f"Rank of the decomposition. {_RANKS}. Default: the preset's, else 16.",
    )
    alpha: int | None = Field(None, ge=1, le=4096, description="Scaling. Default: 2 x rank, as in every preset.")
    dropout: Number | None = Field(
        None,
        ge=0,
        lt=1,
        description="Dropout on the adapter's input, below 1. Default: the preset's, else 0.05; DPO, ORPO, KTO and "
        "with a mixture's experts 0.",
    )
    target_modules: list[ModuleName] | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Module names (with LoRA and QLoRA also experts.down_proj and experts.gate_up_proj of a mixture), "
        "or one of all-linear, attention, mlp, query-value. A name that matches nothing is "
        "refused with the names that exist. Default: the preset's, else all-linear; IA3: keys, values and the second "
        "feed-forward layer.",
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead of alpha / rank.")
    init: LoraInit = Field(
        LoraInit.DEFAULT,
        description="How the adapter starts: Default, Gaussian, PiSSA, OLoRA, EVA or LoftQ. What is published "
        "always loads on the original base model.",
    )
    modules_to_save: list[ModuleName] | None = Field(
        None, max_length=16, description="Modules trained in full and saved with the adapter, such as embed_tokens."
    )
    rank_pattern: dict[ModulePattern, Annotated[int, Field(ge=1, le=1024)]] | None = Field(
        None, max_length=64, description="Ranks of single modules, by name or regular expression."
    )
    alpha_pattern: dict[ModulePattern, Annotated[int, Field(ge=1, le=4096)]] | None = Field(
        None, max_length=64, description="Alphas of single modules, by name or regular expression."
    )


LORA_FIELDS: Final[dict[Method, frozenset[str]]] = {
    Method.ADALORA: frozenset({"targetModules", "modulesToSave", "alpha", "dropout"}),
    Method.IA3: frozenset({"targetModules", "modulesToSave"}),
    Method.PROMPT_TUNING: frozenset(),
    Method.PREFIX_TUNING: frozenset(),
}
"""The fields of `lora` that methods outside its family look at; the family looks at all of them."""

DEFAULT_TARGET_RANK: Final = 8
INITIAL_RANK_FACTOR: Final = 1.5


class AdaLoraSpec(ApiModel):
    """The settings of AdaLoRA."""

    initial_rank: int | None = Field(None, ge=1, le=1024, description="Rank before pruning. Default: 1.5 x targetRank.")
    target_rank: int | None = Field(None, ge=1, le=1024, description="Average rank at the end. Default: 8.")
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

    virtual_tokens: int = Field(20, ge=1, le=512, description="Number of trained tokens before the prompt.")
    init_text: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="Text whose embeddings the tokens start from. Default: embeddings sampled from the vocabulary.",
    )


class PrefixTuningSpec(ApiModel):
    """The settings of prefix tuning."""

    virtual_tokens: int = Field(20, ge=1, le=512, description="Number of trained keys and values in each layer.")
    projection: bool = Field(False, description="Train them through a two-layer network, which is left out at the end.")


class QuantizationSpec(ApiModel):
    """How the frozen base is quantised; implied by QLoRA and QDoRA, not for LoRA and DoRA, allowed with the others."""

    type: QuantizationType = Field(QuantizationType.NF4, description="NF4, FP4 (4 bits) or Int8.")
    double_quant: bool = Field(True, description="4 bits only: quantise the quantisation constants too.")
    compute_type: ComputeType = Field(
        ComputeType.BFLOAT16,
        description="4 bits only: the type that matrix products are computed in. Default: training.precision.",
    )


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

DEFAULT_LEARNING_RATE: Final = 2e-4
METHOD_LEARNING_RATES: Final = {
    Method.ADALORA: 1e-3,
    Method.IA3: 3e-3,
    Method.PROMPT_TUNING: 3e-2,
    Method.PREFIX_TUNING: 1e-2,
}
"""Where 2e-4 would hardly move the weights: AdaLoRA and IA3 as in their papers (Zhang et al. 2023, Liu et al. 2022),
prompt and prefix tuning as in PEFT's own examples. No preset changes them: the presets are tuned for LoRA."""
PROJECTION_LEARNING_RATE: Final = 1e-3
"""Prefix tuning through its network: at 1e-2 the loss of SmolLM2 tripled within 20 steps (docs/benchmarks.md)."""
LORA_LEARNING_RATES: Final = (1e-5, 5e-4)
"""The guide's span, for the LoRA family."""
LEARNING_RATE_FACTOR: Final = 10.0
"""How far another method's rate may be from its own."""


def method_learning_rate(method: Method, projection: bool) -> float | None:
    """Return the learning rate of a method that has one of its own; `projection` is that of prefix tuning."""
    if method is Method.PREFIX_TUNING and projection:
        return PROJECTION_LEARNING_RATE
    return METHOD_LEARNING_RATES.get(method)


def usual_learning_rates(own: float | None) -> tuple[float, float]:
    """Return the guide's span of learning rates, or that around the rate of a method that has one of its own."""
    return (own / LEARNING_RATE_FACTOR, own * LEARNING_RATE_FACTOR) if own else LORA_LEARNING_RATES
