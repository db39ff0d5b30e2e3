"""Decide every setting of a run from the manifest, the preset and the guide's rules; no tensor is touched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import (
    DEFAULT_TARGET_RANK,
    INITIAL_RANK_FACTOR,
    PROMPT_LEARNING,
    QUANTIZED,
    ComputeType,
    LoraInit,
    Method,
    PrefixTuningSpec,
    PromptTuningSpec,
    QuantizationSpec,
)
from tunery_api.preference import PREFERENCE_TASKS
from tunery_api.reasons import FailureReason
from tunery_api.training import Optimizer, Precision
from tunery_trainer.errors import TrainerError
from tunery_trainer.settings.auto_method import MethodChoice
from tunery_trainer.settings.decisions import Decisions, Fallback, number
from tunery_trainer.settings.experts import EXPERTS, adapts_experts, check_experts, told_of_experts
from tunery_trainer.settings.preference import PREFERENCE_RATE, preference_settings
from tunery_trainer.settings.presets import PRESETS, rank_reason
from tunery_trainer.settings.sizing import MOST_ROWS, DataFacts, Sizing, size
from tunery_trainer.settings.stored import check_stored
from tunery_trainer.settings.types import (
    AdaLoraSettings,
    AdapterSettings,
    DeviceFacts,
    DeviceKind,
    ModelFacts,
    PromptSettings,
    QuantizationSettings,
    RunSettings,
    SettingSource,
    StoredQuantization,
    TrainingSettings,
)

DEFAULT_RANK: Final = 16
DEFAULT_DROPOUT: Final = 0.05
DEFAULT_WARMUP: Final = 0.1
DEFAULT_BATCH_SIZE: Final = 4
"""Rows of a forward pass where the memory of the device is not known."""
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
BASE_RANK: Final = 8
"""The rank at which the guide's scaled learning rate is the plain one."""
SCALED_LEARNING_RATE: Final = "training.learningRate, scaled with rank"
IA3_TARGETS: Final = "keys, values, second feed-forward layer"

T = TypeVar("T")


@dataclass(frozen=True)
class Chosen:
    """What the data and the memory of the device have decided where the manifest leaves it open."""

    data: DataFacts | None = None
    """None: not tokenised yet."""
    batch_size: int | None = None
    """Rows of a forward pass that fit; None: not known."""
    gradient_checkpointing: bool = True
    optimizer: Optimizer = Optimizer.ADAMW


def resolve(
    spec: LoRAJobSpec, facts: ModelFacts, devices: DeviceFacts, choice: MethodChoice, chosen: Chosen | None = None
) -> RunSettings:
    """Return every effective setting of the run that `spec` asks for.

    `choice` is the method, which is never Auto; `chosen` is what the data and the memory have decided. A value of the
    manifest always wins, then the preset's, then a rule or default. Before the data is tokenised, and so without
    `chosen`, packing is whether it may be packed, and batches and passes are the largest.
    Raises TrainerError(InvalidSpec) where the model cannot do what the manifest asks for.
    """
    method = choice.method
    decisions = Decisions(spec, method, PRESETS[spec.preset] if spec.preset else None)
    decisions.note("method", method, SettingSource.RULE if spec.method is Method.AUTO else SettingSource.MANIFEST)
    decisions.note(
        "task", spec.task, SettingSource.MANIFEST if "task" in spec.model_fields_set else SettingSource.DEFAULT
    )
    decisions.plain(spec.dataset, "dataset", "template")
    adapter = _adapter(decisions, facts)
    training = _training(decisions, adapter.rank, _Given(facts, devices, chosen or Chosen()))
    return RunSettings(
        method=method,
        method_reason=choice.reason,
        adapter=adapter,
        adalora=_adalora(decisions) if method is Method.ADALORA else None,
        prompt=_prompt(decisions),
        quantization=_quantization(decisions, training.precision, facts.stored),
        training=training,
        task=spec.task,
        preference=preference_settings(decisions),
        values=tuple(decisions.values),
    )


def learning_rate_factor(rank: int) -> float:
    """Return sqrt(8 / rank): the guide's scale_learning_rate."""
    return math.sqrt(BASE_RANK / rank)


def _adapter(decisions: Decisions, facts: ModelFacts) -> AdapterSettings:
    if decisions.method in PROMPT_LEARNING:
        return AdapterSettings(rank=0, alpha=0, dropout=0.0, target_modules=None)
    if decisions.method is Method.IA3:
        return _ia3_adapter(decisions)
    lora = decisions.spec.lora
    rank, rank_source = _rank(decisions)
    alpha_source = rank_source if rank_source is SettingSource.PRESET else SettingSource.RULE
    targets = _targets(decisions)
    return AdapterSettings(
        rank=rank,
        alpha=decisions.pick("lora.alpha", lora.alpha, None, Fallback(2 * rank, alpha_source)),
        dropout=_dropout(decisions, targets, facts),
        target_modules=targets,
        use_rslora=decisions.plain(lora, "lora", "use_rslora") if decisions.method is not Method.ADALORA else False,
        init=decisions.plain(lora, "lora", "init") if decisions.method is not Method.ADALORA else LoraInit.DEFAULT,
        modules_to_save=tuple(lora.modules_to_save or ()),
        rank_pattern=dict(lora.rank_pattern or {}),
        alpha_pattern=dict(lora.alpha_pattern or {}),
    )


def _targets(decisions: Decisions) -> tuple[str, ...]:
    asked, preset = decisions.spec.lora.target_modules, decisions.preset
    return decisions.pick(
        "lora.targetModules",
        tuple(asked) if asked else None,
        preset.target_modules if preset else None,
        Fallback(("all-linear",), SettingSource.DEFAULT),
    )


def _dropout(decisions: Decisions, targets: tuple[str, ...], facts: ModelFacts) -> float:
    """Return the dropout, which PEFT has none of for a mixture's experts, and record what becomes of them."""
    asked, preset = number(decisions.spec.lora.dropout), decisions.preset
    if adapts_experts(decisions.method, targets, facts.experts):
        check_experts(decisions.spec)
        decisions.note(EXPERTS, told_of_experts(facts, adapted=True), SettingSource.RULE)
        return decisions.pick("lora.dropout", asked, None, Fallback(0.0, SettingSource.RULE))
    if facts.experts:
        decisions.note(EXPERTS, told_of_experts(facts, adapted=False), SettingSource.RULE)
    otherwise = Fallback(DEFAULT_DROPOUT, SettingSource.DEFAULT)
    if decisions.spec.task in PREFERENCE_TASKS:
        # As in TRL: the model is compared with what it was, and noise would be a difference of its own.
        otherwise = Fallback(0.0, SettingSource.RULE)
    return decisions.pick("lora.dropout", asked, preset.dropout if preset else None, otherwise)


def _ia3_adapter(decisions: Decisions) -> AdapterSettings:
    lora = decisions.spec.lora
    targets = tuple(lora.target_modules) if lora.target_modules else None
    decisions.note(
        "lora.targetModules", targets or IA3_TARGETS, SettingSource.MANIFEST if targets else SettingSource.RULE
    )
    return AdapterSettings(0, 0, 0.0, targets, modules_to_save=tuple(lora.modules_to_save or ()))


def _rank(decisions: Decisions) -> tuple[int, SettingSource]:
    """Return the rank and its source; AdaLoRA's is the average it ends with, and no guideline knows it."""
    if decisions.method is Method.ADALORA:
        block = decisions.spec.adalora
        target = block.target_rank if block else None
        rank = decisions.pick("adalora.targetRank", target, None, Fallback(DEFAULT_TARGET_RANK, SettingSource.DEFAULT))
    else:
        preset = decisions.preset.rank if decisions.preset else None
        rank = decisions.pick(
            "lora.rank", decisions.spec.lora.rank, preset, Fallback(DEFAULT_RANK, SettingSource.DEFAULT)
        )
        decisions.explain(rank_reason(rank, decisions.preset))
    return rank, SettingSource(decisions.values[-1].source)


def _adalora(decisions: Decisions) -> AdaLoraSettings:
    block = decisions.spec.adalora
    target = (block.target_rank if block else None) or DEFAULT_TARGET_RANK
    initial = decisions.pick(
        "adalora.initialRank",
        block.initial_rank if block else None,
        None,
        Fallback(math.ceil(INITIAL_RANK_FACTOR * target), SettingSource.RULE),
    )
    if initial <= target:
        raise TrainerError(
            FailureReason.INVALID_SPEC,
            f"spec.adalora.initialRank: must be above targetRank, {target}, is {initial}: AdaLoRA prunes from the one "
            "down to the other",
        )
    return AdaLoraSettings(
        initial_rank=initial,
        target_rank=target,
        warmup_steps=block.warmup_steps if block else None,
        final_steps=block.final_steps if block else None,
        update_every_steps=block.update_every_steps if block else None,
    )


def _prompt(decisions: Decisions) -> PromptSettings | None:
    if decisions.method is Method.PROMPT_TUNING:
        text = decisions.spec.prompt_tuning or PromptTuningSpec()
        tokens = decisions.plain(text, "promptTuning", "virtual_tokens")
        start = text.init_text or "sampled from the vocabulary"
        decisions.note(
            "promptTuning.initText", start, SettingSource.MANIFEST if text.init_text else SettingSource.DEFAULT
        )
        return PromptSettings(tokens, init_text=text.init_text)
    if decisions.method is Method.PREFIX_TUNING:
        prefix = decisions.spec.prefix_tuning or PrefixTuningSpec()
        return PromptSettings(
            decisions.plain(prefix, "prefixTuning", "virtual_tokens"),
            projection=decisions.plain(prefix, "prefixTuning", "projection"),
        )
    return None


def _quantization(
    decisions: Decisions, precision: Precision, stored: StoredQuantization | None
) -> QuantizationSettings | None:
    """Return how the base is quantised: as it is stored, or as asked, else NF4 for QLoRA and QDoRA.

    Computed in the run's precision.
    """
    spec = decisions.spec.quantization
    if stored is not None:
        check_stored(decisions.spec, decisions.method, stored)
        decisions.note("quantization.type", stored.type, SettingSource.MODEL)
        decisions.note("quantization.doubleQuant", stored.double_quant, SettingSource.MODEL)
        asked = spec.compute_type if spec and "compute_type" in spec.model_fields_set else None
        compute = decisions.pick(
            "quantization.computeType", asked, None, Fallback(ComputeType(precision.value), SettingSource.RULE)
        )
        return QuantizationSettings(stored.type, stored.double_quant, compute, stored)
    if spec is None and decisions.method not in QUANTIZED:
        return None
    block = spec or QuantizationSpec()
    asked = block.compute_type if "compute_type" in block.model_fields_set else None
    return QuantizationSettings(
        type=decisions.plain(block, "quantization", "type"),
        double_quant=decisions.plain(block, "quantization", "double_quant"),
        compute_type=decisions.pick(
            "quantization.computeType", asked, None, Fallback(ComputeType(precision.value), SettingSource.RULE)
        ),
    )


class _Given(NamedTuple):
    facts: ModelFacts
    devices: DeviceFacts
    chosen: Chosen


def _training(decisions: Decisions, rank: int, given: _Given) -> TrainingSettings:
    block, chosen = decisions.spec.training, given.chosen

    def plain(name: str) -> Any:
        return decisions.plain(block, "training", name)

    max_length, packing = _max_length(decisions, given.facts), _packing(decisions, given)
    epochs, rows = _length(decisions, chosen.data)
    batch_size, accumulation = _batch(decisions, rows, chosen.batch_size)
    return TrainingSettings(
        epochs=epochs,
        max_steps=block.max_steps,
        learning_rate=_learning_rate(decisions, rank),
        scheduler=plain("scheduler"),
        warmup=_warmup(decisions),
        batch_size=batch_size,
        gradient_accumulation=accumulation,
        max_length=max_length,
        packing=packing,
        group_by_length=plain("group_by_length"),
        loss=plain("loss"),
        optimizer=decisions.pick(
            "training.optimizer", block.optimizer, None, Fallback(chosen.optimizer, SettingSource.RULE)
        ),
        weight_decay=float(plain("weight_decay")),
        max_grad_norm=float(plain("max_grad_norm")),
        precision=_precision(decisions, given.devices),
        gradient_checkpointing=decisions.pick(
            "training.gradientCheckpointing",
            block.gradient_checkpointing,
            None,
            Fallback(
                chosen.gradient_checkpointing and decisions.method is not Method.PREFIX_TUNING, SettingSource.RULE
            ),
        ),
        neftune_noise_alpha=number(plain("neftune_noise_alpha")),
        seed=plain("seed"),
    )


def _length(decisions: Decisions, data: DataFacts | None) -> tuple[float | None, int]:
    """Return the epochs, None with maxSteps, and the rows that an optimizer step should see."""
    block = decisions.spec.training
    preset = decisions.preset.epochs if decisions.preset else None
    asked = number(block.epochs) if block.epochs is not None else preset
    sizing = size(data, asked, block.max_steps) if data else Sizing(MOST_ROWS, asked or 1.0)
    if block.max_steps is not None:
        decisions.note("training.maxSteps", block.max_steps, SettingSource.MANIFEST)
        return None, sizing.rows
    epochs = decisions.pick(
        "training.epochs", number(block.epochs), preset, Fallback(sizing.epochs or 1.0, SettingSource.RULE)
    )
    return epochs, sizing.rows


def _batch(decisions: Decisions, rows: int, fits: int | None) -> tuple[int, int]:
    """Return the rows of a forward pass, and how many of them make the `rows` of an optimizer step."""
    block = decisions.spec.training
    accumulation = block.gradient_accumulation
    most = rows if accumulation is None else max(1, rows // accumulation)
    largest = min(most, fits or DEFAULT_BATCH_SIZE)
    if accumulation is None:  # a checkpoint's steps may be of any number of rows
        largest = next(size for size in range(largest, 0, -1) if rows % size == 0)
    batch_size = decisions.pick("training.batchSize", block.batch_size, None, Fallback(largest, SettingSource.RULE))
    return batch_size, decisions.pick(
        "training.gradientAccumulation", accumulation, None, Fallback(max(1, rows // batch_size), SettingSource.RULE)
    )


def _warmup(decisions: Decisions) -> float:
    preset = decisions.preset.warmup if decisions.preset else None
    asked = number(decisions.spec.training.warmup)
    return decisions.pick("training.warmup", asked, preset, Fallback(DEFAULT_WARMUP, SettingSource.DEFAULT))


def _learning_rate(decisions: Decisions, rank: int) -> float:
    block = decisions.spec.training
    own = METHOD_LEARNING_RATES.get(decisions.method)
    if (
        decisions.method is Method.PREFIX_TUNING
        and decisions.spec.prefix_tuning
        and decisions.spec.prefix_tuning.projection
    ):
        own = PROJECTION_LEARNING_RATE
    preset = decisions.preset.learning_rate if decisions.preset and own is None else None
    otherwise = (
        Fallback(DEFAULT_LEARNING_RATE, SettingSource.DEFAULT) if own is None else Fallback(own, SettingSource.RULE)
    )
    if decisions.spec.task in PREFERENCE_TASKS:
        otherwise = Fallback(PREFERENCE_RATE * otherwise.value, SettingSource.RULE)
    rate = decisions.pick("training.learningRate", number(block.learning_rate), preset, otherwise)
    if not block.scale_learning_rate_with_rank or not rank:
        return rate
    scaled = rate * learning_rate_factor(rank)
    decisions.note(SCALED_LEARNING_RATE, scaled, SettingSource.RULE)
    return scaled


def _max_length(decisions: Decisions, facts: ModelFacts) -> int:
    """Return maxLength; the default shrinks to what the model has positions for, virtual tokens included."""
    block = decisions.spec.training
    room = None
    if facts.max_positions is not None:
        room = facts.max_positions - _virtual_tokens(decisions)
    if room is None or block.max_length <= room:
        length: int = decisions.plain(block, "training", "max_length")
        return length
    if "max_length" in block.model_fields_set:
        raise TrainerError(
            FailureReason.INVALID_SPEC,
            f"spec.training.maxLength: must be at most {room}, is {block.max_length}: {facts.architecture} has "
            f"{facts.max_positions} positions",
        )
    decisions.note("training.maxLength", room, SettingSource.RULE)
    return room


def _virtual_tokens(decisions: Decisions) -> int:
    spec = decisions.spec
    if decisions.method is Method.PROMPT_TUNING:
        return (spec.prompt_tuning or PromptTuningSpec()).virtual_tokens
    if decisions.method is Method.PREFIX_TUNING:
        return (spec.prefix_tuning or PrefixTuningSpec()).virtual_tokens
    return 0


def _packing(decisions: Decisions, given: _Given) -> bool:
    asked, facts, data = decisions.spec.training.packing, given.facts, given.chosen.data
    if asked and not facts.packable:
        raise TrainerError(
            FailureReason.INVALID_SPEC,
            f"spec.training.packing: {facts.architecture} was not measured to keep the examples of a packed row apart; "
            "leave packing out, or use another base model",
        )
    alone = decisions.spec.task in PREFERENCE_TASKS or decisions.spec.training.group_by_length
    possible = facts.packable and decisions.method not in PROMPT_LEARNING and not alone
    return decisions.pick(
        "training.packing", asked, None, Fallback(possible and (data is None or data.packed), SettingSource.RULE)
    )


def natural_precision(devices: DeviceFacts) -> Precision:
    """Return what the device computes best in: BFloat16 where it has it, else Float16 on a GPU, Float32 on a CPU."""
    full = Precision.FLOAT32 if devices.kind is DeviceKind.CPU else Precision.FLOAT16
    return Precision.BFLOAT16 if devices.bfloat16 else full


def _precision(decisions: Decisions, devices: DeviceFacts) -> Precision:
    asked = decisions.spec.training.precision
    if asked is not Precision.AUTO:
        decisions.note("training.precision", asked, SettingSource.MANIFEST)
        return asked
    precision = natural_precision(devices)
    decisions.note("training.precision", precision, SettingSource.RULE)
    return precision
